"""Digests of files, for cache keys and names of layers. Each version of a file is read once."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Final, cast

import msgspec
from msgspec.structs import replace

from executor.rootfs.entry import Entry, Kind
from executor.rootfs.tree import Tree
from executor.solver import keys
from executor.solver.copying import CopySource, Matched, WalkEntry
from executor.solver.fingerprints import Fingerprints
from executor.solver.lazy import Lazy
from executor.solver.lifetime import Cancellation, together
from executor.solver.statwalk import REACHED, TOGETHER, MatchedPath, StatWalk, unreadable, walk
from executor.store import faults, locks, metadata_cache, stat_cache
from executor.store.spool import SpooledList
from executor.store.store import Store
from platforms import decoding
from platforms.errors import ContextError

_SMALL: Final = 16 << 10
_LARGE: Final = 256 << 10
"""Bytes of a file that are read at a time."""
_READERS: Final = 2
"""Files that are read in parallel: hashing releases the interpreter lock, reading does not; a third gains nothing."""


class MatchedSource(msgspec.Struct, frozen=True):
    """The files that a source matched, as of the walk. Files that are being written to are copies."""

    chosen: SpooledList[MatchedPath]
    reached: SpooledList[WalkEntry]
    """What is copied for the first of ``chosen``, then for the second, and so on."""
    name: Lazy[str]
    """The digest of the files and the names of the matches, without timestamps: touching a file is no change.

    A wildcard may match a link, whose target is then copied under the name of the link.
    """
    live: bool
    """Whether a file seems to be being written to."""
    tree: Tree

    def matches(self) -> Iterator[Matched]:
        """Yield each match with its entries, which are to be consumed in this order. Their content can be read."""
        self.tree.fetch(each.entry for each in self.reached)
        reached = iter(self.reached)
        for each in self.chosen:
            found = islice(reached, each.count)
            yield Matched(each.match, each.top, found)
            deque(found, maxlen=0)


def _content(reached: Iterable[WalkEntry]) -> Iterator[keys.Part]:
    """Yield the entries in ``reached``, for a key."""
    first: dict[tuple[int, int], bytes] = {}
    for entry in (each.entry for each in reached):
        link = entry.link
        if entry.kind is Kind.FILE and entry.inode != (0, 0):
            earlier = first.setdefault(entry.inode, entry.path)
            link = earlier if earlier != entry.path else link
        yield (
            entry.path,
            entry.kind.value,
            entry.mode,
            entry.uid,
            entry.gid,
            link,
            entry.device,
            entry.xattrs,
            entry.digest,
        )


class SelectionDigest(msgspec.Struct, frozen=True):
    """The ``name`` of a selection, and its stat signature; "" where signatures do not tell."""

    name: str
    signature: str = ""


_SELECTION_DIGEST: Final[msgspec.json.Decoder[SelectionDigest]] = msgspec.json.Decoder(SelectionDigest)


class FileCopy(msgspec.Struct, frozen=True):
    """A copy of a file, made at one moment."""

    path: bytes
    size: int
    digest: str


class Contents(msgspec.Struct, frozen=True):
    """Computes the digests of files for one job. Thread-safe."""

    store: Store
    directory: str
    """The job's temporary directory."""
    background: ThreadPoolExecutor
    cancellation: Cancellation
    build: str
    """``protocol.Job.build``."""
    latest: int | None
    """``protocol.Job.latest``."""
    seen: Fingerprints = msgspec.field(default_factory=Fingerprints)
    """The digest of each of the user's files that this job has read, by path."""
    copies: dict[bytes, FileCopy] = msgspec.field(default_factory=dict)
    """Copies of files that were being written when they were read, by path."""

    def select(self, source: CopySource, exclude: tuple[str, ...] = ()) -> MatchedSource:
        """Return the files that ``source`` matches, without those that match ``exclude``. Files without a known digest
        are read.

        Raises ``ContextError`` if the content of a file has changed since this job first read it.
        """
        return self.selected(walk(self.directory, source, exclude, self.cancellation.check))

    def selected(self, walked: StatWalk) -> MatchedSource:
        """As ``select``, for files that have been ``walked``."""
        reached = SpooledList(REACHED, self.directory)
        live = False
        entries = iter(walked.reached)
        try:
            while some := list(islice(entries, TOGETHER)):
                for each, entry in zip(some, self.read([each.entry for each in some]), strict=True):
                    reached.append(WalkEntry(entry, each.name, each.leads))
                    live = live or (entry.kind is Kind.FILE and not entry.stamp)
        except OSError as error:
            raise unreadable(os.fsdecode(error.filename or b"what is copied"), error) from error
        return MatchedSource(walked.chosen, reached, Lazy(partial(_name, walked.chosen, reached)), live, walked.tree)

    def shared_digest(self, what: str, walked: Lazy[StatWalk], selection: Lazy[MatchedSource]) -> SelectionDigest:
        """Return the digest of ``selection``, computed by one job of the build for all that use the same name ``what``.

        ``what`` is "" where jobs share nothing. Files that are being written to have a digest for each job.
        """
        if not (what and self.build):
            return SelectionDigest(selection().name())
        fact = keys.key("selected", what, self.build)
        with locks.lock(self.store, f"selection {fact}", cancel=self.cancellation.future):
            known = metadata_cache.get(self.store, "selection", fact)
            if known is not None:
                return decoding.decode(_SELECTION_DIGEST, known)
            found = self._recognised(walked(), selection)
            if not (selection.done and selection().live):
                metadata_cache.put(self.store, "selection", fact, msgspec.json.encode(found))
            return found

    def recorded_digest(self, version: Callable[[], str], selection: Lazy[MatchedSource]) -> SelectionDigest | None:
        """Return the digest of ``selection``, recorded by the ``version`` of what it is selected from; None if that has
        none (``Tree.version``)."""
        before = version()
        if not before:
            return None
        fact = keys.key("version", before)
        known = metadata_cache.get(self.store, "version", fact)
        if known is not None:
            return decoding.decode(_SELECTION_DIGEST, known)
        found = SelectionDigest(selection().name())
        if version() == before:
            metadata_cache.put(self.store, "version", fact, msgspec.json.encode(found))
        return found

    def _recognised(self, walked: StatWalk, selection: Lazy[MatchedSource]) -> SelectionDigest:
        """Return the digest of ``selection``, recorded by stat signature: unchanged files are neither looked up nor
        read.

        Nothing is recorded for files that were modified just before the walk: they may change again without a new
        signature.
        """
        fact = keys.key("look", walked.signature)
        known = metadata_cache.get(self.store, "look", fact) if walked.signature else None
        if known is not None:
            return SelectionDigest(known.decode(), walked.signature)
        found = selection().name()
        if not walked.signature or selection().live or is_racy(walked):
            return SelectionDigest(found)
        metadata_cache.put(self.store, "look", fact, found.encode())
        return SelectionDigest(found, walked.signature)

    def name(self, entries: SpooledList[Entry], form: tuple[str, ...] = ()) -> str:
        """Return the name of the layer with ``entries``, and with ``form`` (``LayerForm.key_parts``).

        Layers of equal names are equal, byte by byte.
        """
        rows = keys.Rows(len(entries), partial(self._rows, entries))
        return keys.key("layer", rows, self.latest, *form)

    def _rows(self, entries: Iterable[Entry]) -> Iterator[bytes]:
        """Yield the encoded ``entries``, for a key."""
        every = iter(entries)
        while some := list(islice(every, TOGETHER)):
            yield from keys.encodings(map(_row, self.read(some)))

    def read(self, entries: list[Entry]) -> list[Entry]:
        """Return ``entries`` with digests. Files without a known digest are read.

        The user's files that were modified in the last two seconds, for example a log of this build, are copied: the
        job uses their content as of the first read. Raises ``ContextError`` if the content of a file has changed since
        this job first read it.
        """
        out = list(entries)
        asked: list[tuple[bytes, bytes]] = []
        places: list[int] = []
        for place, entry in enumerate(entries):
            if entry.kind is not Kind.FILE or entry.digest:
                continue
            copy = self.copies.get(entry.source)
            if copy is not None:
                out[place] = _copied(entry, copy)
                continue
            asked.append(stat_cache.cache_key(entry.stamp or stat_cache.stat_signature(os.lstat(entry.source))))
            places.append(place)
        if not asked:
            return out
        digests = self._known([entries[place] for place in places], asked)
        theirs: list[tuple[bytes, str]] = []
        ours = self._ours()
        for place, (_, stamp), digest in zip(places, asked, digests, strict=True):
            entry = entries[place]
            copy = self.copies.get(entry.source)
            if copy is not None:
                out[place] = _copied(entry, copy)
            elif entry.source.startswith(ours):
                out[place] = replace(entry, digest=digest, stamp=b"")
            else:
                out[place] = replace(entry, digest=digest, stamp=stamp)
                theirs.append((entry.source, digest))
        changed = self.seen.first_different(theirs)
        if changed is not None:
            raise edited(changed)
        return out

    def _known(self, entries: list[Entry], asked: list[tuple[bytes, bytes]]) -> list[str]:
        """Return the digests of ``entries``. Files that several jobs need at the same time are read once."""
        known = stat_cache.get(self.store, asked)
        missing = [number for number, digest in enumerate(known) if digest is None]
        if missing:
            lock = keys.key("files", tuple(asked[number] for number in missing))
            with locks.lock(self.store, f"digests {lock}", cancel=self.cancellation.future):
                again = stat_cache.get(self.store, [asked[number] for number in missing])
                for number, digest in zip(missing, again, strict=True):
                    known[number] = digest
                self._read(entries, asked, known)
        return cast("list[str]", known)

    def _read(self, entries: list[Entry], asked: list[tuple[bytes, bytes]], known: list[str | None]) -> None:
        """Read the files whose digests are None in ``known``, and record the digests."""
        read_at = stat_cache.now()
        settled: list[int] = []
        for number, (_, stamp) in enumerate(asked):
            if known[number] is None:
                source = entries[number].source
                if stat_cache.is_racy(stamp, read_at) and self._is_live(entries[number]):
                    self.cancellation.check()
                    copy = self.copies[source] = self._copy(source)
                    known[number] = copy.digest
                else:
                    settled.append(number)
        if settled:
            shares = min(len(settled), _READERS)
            parts = [settled[share::shares] for share in range(shares)]
            together(self.background, [partial(self._read_some, entries, part, known) for part in parts])
            rows = [(*asked[number], cast("str", known[number])) for number in settled]
            stat_cache.put(self.store, rows, read_at=read_at)

    def _read_some(self, entries: list[Entry], numbers: list[int], known: list[str | None]) -> None:
        for number in numbers:
            self.cancellation.check()
            known[number] = _digest_of(entries[number].source)

    def _ours(self) -> tuple[bytes, ...]:
        """Return the prefixes of paths that nobody writes to: in mounted layers and in the store."""
        return b"/proc/self/fd/", os.fsencode(self.store.root) + b"/"

    def _is_live(self, entry: Entry) -> bool:
        """Whether the file ``entry`` may be being written to: it is the user's, and has a single link.

        A copy of a file with several links would not be recognised as one of them.
        """
        return not entry.source.startswith(self._ours()) and os.lstat(entry.source).st_nlink == 1

    def _copy(self, source: bytes) -> FileCopy:
        import tempfile

        digest = hashlib.sha256()
        size = 0
        content = _open(source)
        try:
            with faults.translated(self.store.root, "cannot copy a file that is being written"):
                fd, path = tempfile.mkstemp(dir=os.fsencode(self.directory))
                with open(fd, "wb") as file:
                    while block := _block(content, source, _LARGE):
                        digest.update(block)
                        size += file.write(block)
        finally:
            os.close(content)
        return FileCopy(path, size, digest.hexdigest())


def _row(entry: Entry) -> keys.Part:
    return (
        entry.path,
        entry.kind.value,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime_ns // 1_000_000_000,
        entry.size,
        entry.link,
        entry.device,
        entry.xattrs,
        entry.digest,
    )


def is_racy(walked: StatWalk) -> bool:
    """Whether a file was modified so shortly before the walk that it can change again without a new stat signature."""
    stamps = (each.entry.stamp for each in walked.reached if each.entry.stamp)
    return any(stat_cache.is_racy(stamp, walked.at) for stamp in stamps)


def _name(chosen: SpooledList[MatchedPath], reached: SpooledList[WalkEntry]) -> str:
    return keys.key("selection", keys.Rows(len(chosen), partial(_encoded, chosen, reached)))


def _encoded(chosen: Iterable[MatchedPath], reached: Iterable[WalkEntry]) -> Iterator[bytes]:
    entries = iter(reached)
    for each in chosen:
        yield keys.tuple_of(2) + keys.encoded(each.match.name) + keys.tuple_of(each.count)
        yield from keys.encodings(_content(islice(entries, each.count)))


def _copied(entry: Entry, copy: FileCopy) -> Entry:
    return replace(entry, source=copy.path, size=copy.size, digest=copy.digest, stamp=b"")


def edited(source: bytes) -> ContextError:
    """Return the error for the file ``source``, whose content has changed since it was first read."""
    return ContextError(f"{os.fsdecode(source)} changed during the build", remedy="build again")


def unchanged(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield ``entries``, and check each file for changes when the next one is requested.

    By then the consumer must have read the file. Raises ``ContextError`` if the file is not what cache keys and names
    of this job say: a file that is edited during a build and restored later must not be found in the cache with the
    edit.
    """
    for entry in entries:
        yield entry
        if entry.stamp:
            check(entry)


def check(entry: Entry) -> None:
    """Raise ``ContextError`` if the content of the file ``entry`` has changed since it was read."""
    if entry.stamp and _signature_of(entry) != entry.stamp and _digest_of(entry.source) != entry.digest:
        raise edited(entry.source)


def _signature_of(entry: Entry) -> bytes:
    try:
        return stat_cache.stat_signature(os.lstat(entry.source))
    except OSError as error:
        raise edited(entry.source) from error


def _digest_of(path: bytes) -> str:
    fd = _open(path)
    try:
        # Most files are small, and end within the first read: a large buffer for each would cost more than they do.
        data = _block(fd, path, _SMALL)
        digest = hashlib.sha256(data)
        while data and (data := _block(fd, path, _LARGE)):
            digest.update(data)
    finally:
        os.close(fd)
    return digest.hexdigest()


def _block(fd: int, path: bytes, size: int) -> bytes:
    try:
        return os.read(fd, size)
    except OSError as error:
        raise unreadable(os.fsdecode(path), error) from error


def _open(path: bytes) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable(os.fsdecode(path), error) from error
