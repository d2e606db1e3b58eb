"""Entries by path, as a plan needs them: in memory while they are few, else in sorted runs that a file holds.

A plan mostly grows in order, and asks for little but what it has put there last: one run takes it all. Only what comes
out of order, later sources over earlier ones for example, begins further runs, of which the later ones win.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from executor.rootfs.entry import Entry, Kind
from executor.rootfs.tarwriter import canonical
from executor.store.spool import BATCH, HELD, Batches, SpooledList

# Made here, by one thread: two that make the decoder of one type at the same moment crash msgspec.
ENTRIES: Final[msgspec.msgpack.Decoder[list[Entry]]] = msgspec.msgpack.Decoder(list[Entry])


def order(path: bytes) -> bytes:
    """What sorts paths as an archive has them: by component, parents before what they hold."""
    return path.replace(b"/", b"\0")


class _Run:
    """Entries in order, in a file."""

    def __init__(self, directory: str | None) -> None:
        self.batches: Batches[Entry] = Batches(ENTRIES, directory)
        self._firsts: list[bytes] = []
        self.last = b""
        self._read = -1
        self._known: dict[bytes, Entry] = {}

    def extend(self, entries: Sequence[Entry]) -> None:
        for start in range(0, len(entries), BATCH):
            some = entries[start : start + BATCH]
            self._firsts.append(order(some[0].path))
            self.batches.add(some)
        self.last = order(entries[-1].path)

    def get(self, path: bytes, key: bytes) -> Entry | None:
        if key > self.last:
            return None
        at = bisect_right(self._firsts, key) - 1
        if at < 0:
            return None
        if at != self._read:
            self._known = {each.path: each for each in self.batches[at]}
            self._read = at
        return self._known.get(path)

    def __iter__(self) -> Iterator[Entry]:
        for number in range(len(self.batches)):
            yield from self.batches[number]


class ExternalSort:
    """At most one entry a path. What does not fit in memory goes to a file in ``directory``."""

    def __init__(self, directory: str | None = None) -> None:
        self._directory = directory
        self._recent: dict[bytes, Entry] = {}
        self._runs: list[_Run] = []
        self._removed: list[tuple[bytes, int]] = []
        """Prefixes of paths, and how many of the runs have nothing there any more."""
        self._early = False
        """Whether a hard link may come before what it leads to."""

    def __contains__(self, path: bytes) -> bool:
        return self.get(path) is not None

    def get(self, path: bytes) -> Entry | None:
        """The entry of ``path``."""
        found = self._recent.get(path)
        if found is None and self._runs:
            key = order(path)
            for number in range(len(self._runs) - 1, -1, -1):
                found = self._runs[number].get(path, key)
                if found is not None:
                    return None if self._is_removed(path, number) else found
        return found

    def _is_removed(self, path: bytes, run: int) -> bool:
        return any(run < count and path.startswith(prefix) for prefix, count in self._removed)

    def put(self, entry: Entry) -> None:
        """Let ``entry`` be the one of its path."""
        self._recent[entry.path] = entry
        if entry.kind is Kind.HARDLINK and order(entry.link) > order(entry.path):
            self._early = True
        if len(self._recent) >= HELD:
            entries = self._sorted()
            self._recent = {}
            sealed = self._removed[-1][1] if self._removed else 0
            if len(self._runs) == sealed or self._runs[-1].last >= order(entries[0].path):
                self._runs.append(_Run(self._directory))
            self._runs[-1].extend(entries)

    def remove_below(self, path: bytes) -> None:
        """Forget what is below ``path``."""
        prefix = path + b"/"
        for below in [each for each in self._recent if each.startswith(prefix)]:
            del self._recent[below]
        if self._runs:
            self._removed.append((prefix, len(self._runs)))

    def _sorted(self) -> list[Entry]:
        return sorted(self._recent.values(), key=lambda each: order(each.path))

    def finish(self) -> SpooledList[Entry]:
        """All entries, in the order of an archive. To be called last."""
        tail = self._sorted()
        if not self._runs:
            made = SpooledList.of(Batches(ENTRIES, self._directory), tail)
        elif len(self._runs) == 1 and not self._removed and (not tail or order(tail[0].path) > self._runs[0].last):
            made = SpooledList.of(self._runs[0].batches, tail)
        else:
            made = SpooledList(ENTRIES, self._directory, self._merged(tail))
        return SpooledList(ENTRIES, self._directory, canonical(made)) if self._early else made

    def _merged(self, tail: list[Entry]) -> Iterator[Entry]:
        import heapq  # seldom needed

        found = [_numbered(each, number) for number, each in enumerate(self._runs)]
        newest_first = heapq.merge(*found, _numbered(tail, len(self._runs)))
        last: bytes | None = None
        for key, number, entry in newest_first:
            if key != last:
                last = key
                if not self._is_removed(entry.path, -number):
                    yield entry


def _numbered(entries: Iterable[Entry], number: int) -> Iterator[tuple[bytes, int, Entry]]:
    """Return the entries of run ``number`` for a merge by path, in which those of later runs come first."""
    return ((order(each.path), -number, each) for each in entries)
