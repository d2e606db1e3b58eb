"""A context on another machine: its listing is requested for what steps look up, content when a step is made of it.

Parts of listings and contents are blobs of the store, so only what it lacks is sent. Executors of one build take turns:
what one has received, another finds.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import Final

from msgspec.structs import replace

from executor import protocol
from executor.context import listing
from executor.protocol import ContextPattern, PickedFiles
from executor.rootfs.entry import KIND_OF_MODE, Entry, Kind
from executor.rootfs.tree import Tree, TreeOptions
from executor.solver import context_content
from executor.solver.context_content import Arriving, ContextSender, GitContent
from executor.solver.external_sort import order
from executor.solver.lazy import Lazy
from executor.store import blobs
from executor.store.blobs import StoredBlob
from platforms.errors import ContextError, ProtocolError

_NO_CONTENT: Final = b"/dev/null"
_HELD: Final = 32
"""Parts of a listing that are kept decoded."""
_LOOKED_UP: Final = 2000
_REQUESTED: Final = 20_000
"""Files that are looked up, and requested, together."""
_MODE_OF_KIND: Final = {kind: mode for mode, kind in KIND_OF_MODE.items()}


class _Listing:
    """A listing whose parts are in the store. Thread-safe."""

    def __init__(self, source: ContextSender, name: str, digests: Sequence[str]) -> None:
        self.name = name
        self._store = source.store
        self._digests = digests
        self._lock = threading.Lock()
        self._held: OrderedDict[int, tuple[list[bytes], list[Entry]]] = OrderedDict()
        self._firsts = Lazy(self._read)

    def _read(self) -> list[bytes]:
        """Return the key of the first entry of each part. Raises ``ProtocolError`` unless all are sorted."""
        firsts: list[bytes] = []
        last = b""
        for number in range(len(self._digests)):
            paths = self.part(number)[0]
            if paths != sorted(set(paths)) or (number and paths[0] <= last):
                raise ProtocolError("the listing of a context is not sorted")
            firsts.append(paths[0])
            last = paths[-1]
        return firsts

    def part(self, number: int) -> tuple[list[bytes], list[Entry]]:
        """Return the entries of a part, and their keys by which they are sorted."""
        with self._lock:
            found = self._held.get(number)
            if found is None:
                entries = listing.decode(blobs.read(self._store, self._digests[number], listing.PART_LIMIT))
                if not entries:
                    raise ProtocolError("the listing of a context is malformed", why="a part is empty")
                found = self._held[number] = [order(each.path) for each in entries], entries
                if len(self._held) > _HELD:
                    self._held.popitem(last=False)
            else:
                self._held.move_to_end(number)
            return found

    def place(self, key: bytes) -> tuple[int, int]:
        """Return the part of the first entry at ``key`` or after it, and its number there; it may be past the end."""
        firsts = self._firsts()
        number = max(bisect_right(firsts, key) - 1, 0)
        if number < len(firsts):
            at = bisect_left(self.part(number)[0], key)
            return (number, at) if at < len(self.part(number)[0]) else (number + 1, 0)
        return number, 0

    def find(self, path: bytes) -> Entry | None:
        """Return the entry of ``path``."""
        found = self.at(*self.place(order(path)))
        return found if found is not None and found.path == path else None

    def at(self, number: int, index: int) -> Entry | None:
        """Return an entry by its place; None past the end."""
        return self.part(number)[1][index] if number < len(self._digests) else None

    def children(self, path: bytes) -> Iterator[Entry]:
        """Yield the entries of the directory ``path``, sorted by name."""
        above = path + b"/" if path else b""
        key = order(above) or b"\1"
        while (entry := self.at(*self.place(key))) is not None and entry.path.startswith(above):
            name = entry.path[len(above) :].partition(b"/")[0]
            if above + name == entry.path:
                yield entry
            key = order(above + name) + b"\1"  # after all that is below it


class SentTree(Tree):
    """The files of a context that the orchestrator sends. Thread-safe."""

    def __init__(self, source: ContextSender, usual: Callable[[], Iterable[ContextPattern]]) -> None:
        super().__init__(-1, b"", TreeOptions())
        self._source = source
        self._usual = usual
        """Patterns that will probably be looked up: they are requested together with the first."""
        origin = source.context.git
        self._git = None if origin is None else GitContent(source, origin)
        self._lock = threading.Lock()
        self._expected: dict[ContextPattern, str] = {}
        """The name of the listing of what was requested."""
        self._listings: tuple[_Listing, ...] = ()

    def expect(self, pattern: ContextPattern) -> None:
        """Request the listing of ``pattern``, unless that was done. Raises the errors of the orchestrator."""
        with self._lock:
            if pattern in self._expected:
                return
            if not self._listings:
                usual = tuple(dict.fromkeys((pattern, *self._usual())))
                if len(usual) > 1 and self._listed_together(usual):
                    return
            self._add((pattern,))

    def version(self, pattern: ContextPattern) -> str:
        """Return the name of the listing of ``pattern``; "" if there are others: what they have in common may differ,
        if the context was changed in between."""
        self.expect(pattern)
        return self._expected[pattern] if len(self._listings) == 1 else ""

    def _listed_together(self, patterns: tuple[ContextPattern, ...]) -> bool:
        """Request the listing of ``patterns``. Returns False for an error, which is of one of the steps."""
        try:
            self._add(patterns)
        except ContextError:
            return False
        return True

    def _add(self, patterns: tuple[ContextPattern, ...]) -> None:
        source = self._source
        answer = source.conversation.ask(protocol.AskContext(source.name, patterns))
        if answer is None:
            raise ContextError(f"the orchestrator does not know the context {source.name!r}")
        digests = [f"sha256:{answer[at : at + 32].hex()}" for at in range(0, len(answer), 32)]
        if len(answer) % 32:
            raise ProtocolError("the listing of a context is malformed", why="it is cut short")
        name = hashlib.sha256(answer).hexdigest()
        with source.lock():
            there = blobs.find_all(source.store, digests)
            lacking = [number for number, digest in enumerate(digests) if digest not in there]
            if lacking:
                arriving = Arriving(source, iter([digests[number] for number in lacking]))
                context_content.receive(source, protocol.AskContextParts(source.name, name, tuple(lacking)), arriving)
        self._listings = (_Listing(source, name, digests), *self._listings)
        self._expected.update(dict.fromkeys(patterns, name))

    def fetch(self, entries: Iterable[Entry]) -> None:
        """Request the content of ``entries`` that the store lacks, and lease it."""
        wanted = (each for each in entries if each.kind is Kind.FILE and each.size and each.digest)
        lacking: dict[str, Entry] = {}
        with self._source.lock():
            while some := _some(wanted):
                there = blobs.find_all(self._source.store, [f"sha256:{each.digest}" for each in some])
                lacking.update((each.digest, each) for each in some if f"sha256:{each.digest}" not in there)
                if len(lacking) >= _REQUESTED:
                    self._request(list(lacking.values()))
                    lacking.clear()
            if lacking:
                self._request(list(lacking.values()))

    def _request(self, entries: Sequence[Entry]) -> None:
        """Receive the content of ``entries``."""
        source = self._source
        if self._git is not None and source.is_large(entries):
            entries = self._git.add(entries)
        artifact = source.context.artifacts and source.is_large(entries)
        places: dict[_Listing, list[tuple[int, int]]] = {}
        for entry in entries:
            found = next((each for each in self._listings if _has_content(each.find(entry.path), entry.digest)), None)
            if found is None:
                raise ContextError(f"{os.fsdecode(entry.path)} changed during the build", remedy="build again")
            places.setdefault(found, []).append(found.place(order(entry.path)))
        for listed, chosen in places.items():
            chosen.sort()
            picked = tuple(
                PickedFiles(number, _bits([index for _, index in which]))
                for number, which in groupby(chosen, key=_part_of)
            )
            arriving = self._arriving(listed, chosen)
            if not (artifact and context_content.receive_artifact(source, listed.name, picked, arriving)):
                question = protocol.AskContextFiles(source.name, listed.name, picked)
                context_content.receive(source, question, self._arriving(listed, chosen))

    def _arriving(self, listed: _Listing, chosen: Sequence[tuple[int, int]]) -> Arriving:
        """Return what adds the content of the entries at the places ``chosen``, in this order."""
        expected = [listed.at(*each) for each in chosen]
        sizes = [StoredBlob(f"sha256:{each.digest}", each.size) for each in expected if each is not None]
        return Arriving(self._source, iter(sizes), sum(each.size for each in sizes))

    # -- as a tree

    def lstat(self, path: bytes) -> os.stat_result | None:
        found = self.entry(path)
        if found is None:
            return None
        mode = _MODE_OF_KIND[found.kind] | found.mode
        seconds = found.mtime_ns // 1_000_000_000
        return os.stat_result((mode, 0, 0, 1, found.uid, found.gid, found.size, seconds, seconds, seconds))

    def readlink(self, path: bytes) -> bytes:
        found = self.entry(path)
        return b"" if found is None else found.link

    def names(self, path: bytes) -> list[bytes]:
        return [each.path.rpartition(b"/")[2] for each in self.entries(path)]

    def entry(self, path: bytes) -> Entry | None:
        found = [each for one in self._listings if (each := one.find(path)) is not None]
        return self._readable(found) if found else None

    def entries(self, path: bytes) -> Iterator[Entry]:
        import heapq

        found = [each.children(path) for each in self._listings]
        if len(found) == 1:
            yield from (self._readable((each,)) for each in found[0])
            return
        for _, same in groupby(heapq.merge(*found, key=_path_of), key=_path_of):
            yield self._readable(same)

    def _readable(self, same: Iterable[Entry]) -> Entry:
        """Return one of ``same``, entries of the same path in several listings: one with a digest, with the path at
        which its content will be."""
        known = iter(same)
        first = next(known)
        found = next((each for each in chain((first,), known) if each.digest), first)
        if found.kind is not Kind.FILE:
            return found
        if not (found.size and found.digest):
            return replace(found, source=_NO_CONTENT)
        return replace(found, source=os.fsencode(blobs.path(self._source.store, f"sha256:{found.digest}")))


def _some(entries: Iterator[Entry]) -> list[Entry]:
    from itertools import islice

    return list(islice(entries, _LOOKED_UP))


def _path_of(entry: Entry) -> bytes:
    return order(entry.path)


def _part_of(place: tuple[int, int]) -> int:
    return place[0]


def _has_content(entry: Entry | None, digest: str) -> bool:
    return entry is not None and stat.S_ISREG(_MODE_OF_KIND[entry.kind]) and entry.digest == digest


def _bits(numbers: Sequence[int]) -> bytes:
    """Return ``numbers``, sorted, as bits (``protocol.PickedFiles``)."""
    bits = bytearray(numbers[-1] // 8 + 1)
    for each in numbers:
        bits[each // 8] |= 1 << each % 8
    return bytes(bits)
