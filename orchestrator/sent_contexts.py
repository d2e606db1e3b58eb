"""The contexts of a build for executors that do not share this machine's disk: listings, and the files in them.

An executor names patterns, which are looked up in the context as a step would, within it and without what its ignore
file excludes; it then names files by their places in the listing. So there is no path that it could ask for. Digests
are those that a build on this machine would compute, by the same code, and the content that is sent is verified by
them: a file that has changed since fails the build.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Final

from msgspec.structs import replace

from executor.context import bundle, listing
from executor.context.directory import open_context
from executor.protocol import ContextPattern, DirectoryContext, PickedFiles
from executor.rootfs.entry import Entry, Kind
from executor.rootfs.tree import Tree, TreeOptions
from executor.solver import content, copying, statwalk
from executor.solver.content import Contents
from executor.solver.copying import CopySource
from executor.solver.external_sort import ENTRIES, ExternalSort
from executor.solver.lifetime import Cancellation
from executor.store.removal import remove_tree
from executor.store.spool import Batches
from executor.store.store import Store
from platforms.errors import KanifoldError, ProtocolError

Out = Callable[[bytes | memoryview], object]

_BLOCK: Final = 256 << 10
_THREADS: Final = 2
_ENTRIES_LIMIT: Final = 50_000_000
"""Entries in all listings of a build: the disk for them is bounded, whatever an executor asks."""


class SentContexts:
    """The contexts of one build. Thread-safe; each listing is made once for all executors."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._idle = threading.Condition()
        self._answering = 0
        self._directory = ""
        self._background = ThreadPoolExecutor(_THREADS, "contexts")
        self._cancellation = Cancellation()
        self._contents: dict[DirectoryContext, Contents] = {}
        self._trees: dict[DirectoryContext, Tree] = {}
        self._asked: dict[tuple[DirectoryContext, tuple[ContextPattern, ...]], Listing] = {}
        self._listings: dict[tuple[DirectoryContext, str], Listing] = {}
        self._entries = 0

    def listing(self, context: DirectoryContext, patterns: tuple[ContextPattern, ...]) -> bytes:
        """Return the SHA-256 of each part of the listing of what ``patterns`` match in ``context``.

        Nothing is listed for a pattern without a match. Raises ``ContextError`` for files that cannot be read.
        """
        with self._busy(), self._lock:
            found = self._asked.get((context, patterns))
            if found is None:
                found = self._make(context, patterns)
                self._asked[context, patterns] = self._listings[context, found.name] = found
            return found.digests

    def parts(self, context: DirectoryContext, name: str, numbers: Sequence[int], out: Out) -> None:
        """Pass parts of a listing to ``out``, as a bundle."""
        with self._busy():
            self._listings[context, name].send_parts(numbers, self._until_closed(out))

    def files(self, context: DirectoryContext, name: str, picked: Sequence[PickedFiles], out: Out) -> None:
        """Pass the content of files of a listing to ``out``, as a bundle. Raises ``ContextError`` for a file that has
        changed since it was listed, or cannot be read."""
        with self._busy():
            self._listings[context, name].send_files(picked, self._until_closed(out))

    def has(self, context: DirectoryContext, name: str) -> bool:
        """Whether a listing of this name was made of ``context``."""
        return (context, name) in self._listings

    def close(self) -> None:
        """Release everything; waits for what is being answered, which is cancelled."""
        self._cancellation.cancel()
        with self._idle:
            self._idle.wait_for(lambda: not self._answering)
        self._background.shutdown()
        for each in self._trees.values():
            each.close()
        self._asked.clear()
        self._listings.clear()
        if self._directory:
            remove_tree(self._directory)

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """Answer a request in the block, unless this is closed."""
        with self._idle:
            self._answering += 1
        try:
            self._cancellation.check()
            yield
        finally:
            with self._idle:
                self._answering -= 1
                self._idle.notify_all()

    def _until_closed(self, out: Out) -> Out:
        def passed(block: bytes | memoryview) -> None:
            self._cancellation.check()
            out(block)

        return passed

    def _make(self, context: DirectoryContext, patterns: Sequence[ContextPattern]) -> Listing:
        if not self._directory:
            self._directory = self._store.session.temporary()
            os.mkdir(self._directory, 0o700)
        tree, contents = self._trees.get(context), self._contents.get(context)
        if tree is None or contents is None:
            tree = self._trees[context] = open_context(context.path, context.ignore, owners=context.owners)
            contents = self._contents[context] = Contents(
                self._store, self._directory, self._background, self._cancellation, "", None
            )
        found = ExternalSort(self._directory)
        recorder = _Recorder(tree, found)
        for each in patterns:
            _check(each)
            _select(recorder, contents, each)
        made = Listing(tree, self._directory)
        for part in listing.cut(found.finish()):
            self._entries += len(part)
            if self._entries > _ENTRIES_LIMIT:
                raise ProtocolError("an executor asked for more files than can be listed")
            made.add(part)
        return made


def _check(pattern: ContextPattern) -> None:
    """Raise ``ProtocolError`` for a pattern that no step has: one with ``..``, say."""
    paths = (pattern.path, *(b"/" + each for each in pattern.include))
    if any(b"\0" in each or copying.normal_path("/", _text(each)) != _text(each) for each in paths):
        raise ProtocolError(f"an executor asked for what is no path of a context: {paths[0]!r}")


def _select(tree: _Recorder, contents: Contents, pattern: ContextPattern) -> None:
    """Record all that a step looks up in ``tree`` for ``pattern``, and the digests of the files that it would read."""
    source = CopySource(
        tree,
        _text(pattern.path),
        wildcards=pattern.wildcards,
        include=tuple(map(_text, pattern.include)),
        required=bool(pattern.include),
        context=True,
    )
    exclude = tuple(map(_text, pattern.exclude))
    with suppress(KanifoldError):  # the step will say what it does not find
        copying.require(source, exclude)
    try:
        for match in copying.matches(source):
            copying.top_of(source, match)
    except KanifoldError:
        return
    for each in contents.select(source, exclude).reached:
        tree.record(each.entry)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


class _Recorder(Tree):
    """The files of ``tree``, of which each that is looked up is recorded in ``found``."""

    def __init__(self, tree: Tree, found: ExternalSort) -> None:
        super().__init__(-1, b"", TreeOptions())
        self._tree = tree
        self._found = found

    def record(self, entry: Entry) -> None:
        """Record ``entry``, which has a digest, in place of the one that was looked up."""
        if (known := self._found.get(entry.path)) is not None:
            entry = replace(entry, xattrs=known.xattrs)  # which are left out where a copy ignores them
        self._found.put(entry)

    def lstat(self, path: bytes) -> os.stat_result | None:
        self.entry(path)
        return self._tree.lstat(path)

    def readlink(self, path: bytes) -> bytes:
        return self._tree.readlink(path)

    def names(self, path: bytes) -> list[bytes]:
        return [each.path.rpartition(b"/")[2] for each in self.entries(path)]

    def entry(self, path: bytes) -> Entry | None:
        entry = self._tree.entry(path)
        return None if entry is None else self._noted(entry)

    def entries(self, path: bytes) -> Iterator[Entry]:
        return map(self._noted, self._tree.entries(path))

    def _noted(self, entry: Entry) -> Entry:
        known = self._found.get(entry.path)
        if known is None or not known.digest:
            self._found.put(entry)
        return entry


class Listing:
    """A listing, with where its files are. Parts are in a file in ``directory``; ``tree`` is the context."""

    def __init__(self, tree: Tree, directory: str) -> None:
        self._tree = tree
        self._parts: Batches[Entry] = Batches(ENTRIES, directory)
        self.digests = b""

    def add(self, part: Sequence[Entry]) -> None:
        """Append a part."""
        self.digests += hashlib.sha256(listing.encode(part)).digest()
        self._parts.add(part)

    @property
    def name(self) -> str:
        """The name of the listing in requests."""
        return hashlib.sha256(self.digests).hexdigest()

    def send_parts(self, numbers: Sequence[int], out: Out) -> None:
        """Pass the parts ``numbers`` to ``out``, as a bundle."""
        packer = bundle.BundleWriter(out)
        for number in numbers:
            data = listing.encode(self._part(number))
            packer.begin(len(data))
            packer.write(data)
        packer.finish()

    def send_files(self, picked: Sequence[PickedFiles], out: Out) -> None:
        """Pass the content of the files ``picked`` to ``out``, as a bundle."""
        packer = bundle.BundleWriter(out)
        for each in picked:
            for index, entry in enumerate(self._part(each.part)):
                if index // 8 < len(each.which) and each.which[index // 8] >> index % 8 & 1:
                    if entry.kind is not Kind.FILE or not entry.digest:
                        raise ProtocolError("an executor asked for the content of what is no file")
                    self._send(entry, packer)
        packer.finish()

    def _send(self, entry: Entry, packer: bundle.BundleWriter) -> None:
        """Pass the content of ``entry`` to ``packer``."""
        digest, left = hashlib.sha256(), entry.size
        packer.begin(left)
        try:
            fd = self._open(entry)
            try:
                while data := os.read(fd, min(_BLOCK, left + 1)):
                    left -= len(data)
                    if left < 0:
                        break
                    digest.update(data)
                    packer.write(data)
            finally:
                os.close(fd)
        except OSError as error:
            raise statwalk.unreadable(os.fsdecode(entry.source), error) from error
        if left or digest.hexdigest() != entry.digest:
            raise content.edited(entry.source)

    def _open(self, entry: Entry) -> int:
        if entry.source == self._tree.host_path(entry.path):
            return self._tree.open(entry.path)
        return os.open(entry.source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)  # a copy, or no content

    def _part(self, number: int) -> Sequence[Entry]:
        if not 0 <= number < len(self._parts):
            raise ProtocolError(f"an executor asked for part {number} of a listing that has {len(self._parts)}")
        return self._parts[number]
