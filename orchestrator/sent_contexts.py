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
from functools import partial
from itertools import pairwise
from typing import Final

import msgspec
from msgspec.structs import replace

from executor.context import bundle, listing
from executor.context.directory import open_context
from executor.protocol import ContextArtifact, ContextPattern, DirectoryContext, PickedFiles
from executor.rootfs.entry import Entry, Kind
from executor.rootfs.tree import Tree, TreeOptions
from executor.solver import content, copying, keys, statwalk
from executor.solver.content import Contents
from executor.solver.copying import CopySource
from executor.solver.external_sort import ENTRIES, ExternalSort
from executor.solver.lazy import Lazy
from executor.solver.lifetime import Cancellation
from executor.store import metadata_cache
from executor.store.removal import remove_tree
from executor.store.spool import Batches
from executor.store.store import Store
from orchestrator.context_artifacts import ContextArtifacts
from platforms.errors import ContextError, KanifoldError, ProtocolError

Out = Callable[[bytes | memoryview], object]

_ENCODER: Final = msgspec.msgpack.Encoder()
_BLOCK: Final = 256 << 10
_THREADS: Final = 2
_ENTRIES_LIMIT: Final = 50_000_000
"""Entries in all listings of a build: the disk for them is bounded, whatever an executor asks."""
_LISTINGS_LIMIT: Final = 500
"""Listings of a build, each with a descriptor. An executor asks for what its Dockerfile reaches all at once."""
_PATTERNS_LIMIT: Final = 64 << 20
"""Bytes of all patterns of a build, which are kept."""
_PATTERN: Final = 200
"""Bytes of a pattern without any path."""


class SentContexts:
    """The contexts of one build. Thread-safe; each listing is made once for all executors.

    ``artifacts`` are for content that goes by way of a registry; None to send everything.
    """

    def __init__(self, store: Store, artifacts: ContextArtifacts | None = None) -> None:
        self._store = store
        self._artifacts = artifacts
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
        self._patterns = 0

    def listing(self, context: DirectoryContext, patterns: tuple[ContextPattern, ...]) -> bytes:
        """Return the SHA-256 of each part of the listing of what ``patterns`` match in ``context``.

        Nothing is listed for a pattern without a match. Raises ``ContextError`` for files that cannot be read, and
        ``ProtocolError`` for what no build asks, or more than any does.
        """
        with self._busy(), self._lock:
            found = self._asked.get((context, patterns))
            if found is None:
                self._count(patterns)
                found = self._make(context, patterns)
                self._asked[context, patterns] = self._listings[context, found.name] = found
            return found.digests

    def parts(self, context: DirectoryContext, name: str, numbers: Sequence[int], out: Out) -> None:
        """Pass parts of a listing to ``out``, as a bundle."""
        with self._busy():
            self._listings[context, name].send_parts(numbers, partial(self._pass, out))

    def files(self, context: DirectoryContext, name: str, picked: Sequence[PickedFiles], out: Out) -> None:
        """Pass the content of files of a listing to ``out``, as a bundle. Raises ``ContextError`` for a file that has
        changed since it was listed, or cannot be read."""
        with self._busy():
            self._listings[context, name].send_files(picked, partial(self._pass, out))

    def artifact(
        self, context: DirectoryContext, name: str, picked: tuple[PickedFiles, ...], repository: str
    ) -> ContextArtifact | None:
        """Return where ``repository`` has the content of files of a listing, as a bundle: it is pushed there once for
        all executors. None if that is not possible, or no listing of this name was made of ``context``."""
        with self._busy():
            if self._artifacts is None or not self.has(context, name):
                return None
            listing = self._listings[context, name]
            return self._artifacts.get((listing.name, picked), repository, partial(self._packed, listing, picked))

    def _packed(self, listing: Listing, picked: Sequence[PickedFiles], out: Out) -> None:
        listing.send_files(picked, partial(self._pass, out))

    def has(self, context: DirectoryContext, name: str) -> bool:
        """Whether a listing of this name was made of ``context``."""
        return (context, name) in self._listings

    def close(self) -> None:
        """Release everything; waits for what is being answered, which is cancelled."""
        self._cancellation.cancel()
        if self._artifacts is not None:
            self._artifacts.delete()
        with self._idle:
            self._idle.wait_for(lambda: not self._answering)
        self._background.shutdown()
        if self._artifacts is not None:
            self._artifacts.delete()  # one that was being pushed
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

    def _pass(self, out: Out, block: bytes | memoryview) -> None:
        """Pass ``block`` to ``out``, unless this is closed."""
        self._cancellation.check()
        out(block)

    def _count(self, patterns: Sequence[ContextPattern]) -> None:
        """Raise ``ProtocolError`` if there are too many listings with that of ``patterns``."""
        paths = (path for each in patterns for path in (each.path, *each.include, *each.exclude))
        self._patterns += _PATTERN * len(patterns) + sum(_PATTERN + len(path) for path in paths)
        if len(self._asked) >= _LISTINGS_LIMIT or self._patterns > _PATTERNS_LIMIT:
            raise ProtocolError("an executor asked for more listings than a build needs")

    def _make(self, context: DirectoryContext, patterns: Sequence[ContextPattern]) -> Listing:
        """Return the listing, recorded by the stat signatures of all that was looked up: files that have not changed
        are walked, and nothing else."""
        for each in patterns:
            _check(each)
        tree, contents = self._opened(context)
        signature = _signature(tree, contents, patterns)
        fact = keys.key("listing", signature, context.owners)
        known = metadata_cache.get(self._store, "listing", fact) if signature else None
        made = Listing(tree, known or b"", partial(self._fill, patterns, tree, contents))
        if known is None and signature:
            metadata_cache.put(self._store, "listing", fact, made.digests)
        return made

    def _opened(self, context: DirectoryContext) -> tuple[Tree, Contents]:
        """Return the files of ``context``, and their digests."""
        if not self._directory:
            self._directory = self._store.session.temporary()
            os.mkdir(self._directory, 0o700)
        tree, contents = self._trees.get(context), self._contents.get(context)
        if tree is None or contents is None:
            tree = self._trees[context] = open_context(context.path, context.ignore, owners=context.owners)
            contents = self._contents[context] = Contents(
                self._store, self._directory, self._background, self._cancellation, "", None
            )
        return tree, contents

    def _fill(self, patterns: Sequence[ContextPattern], tree: Tree, contents: Contents) -> Batches[Entry]:
        """Return the parts of the listing of ``patterns``."""
        found = ExternalSort(self._directory)
        recorder = _Recorder(tree, found)
        for each in patterns:
            _select(recorder, contents, each)
        parts: Batches[Entry] = Batches(ENTRIES, self._directory)
        for part in listing.cut(found.finish()):
            self._entries += len(part)
            if self._entries > _ENTRIES_LIMIT:
                raise ProtocolError("an executor asked for more files than can be listed")
            parts.add(part)
        return parts


def _signature(tree: Tree, contents: Contents, patterns: Sequence[ContextPattern]) -> str:
    """Return the SHA-256 of the status of all that is looked up for ``patterns``; "" where that does not tell whether
    files are unchanged."""
    signing = _Signing(tree)
    told = []
    for each in patterns:
        if (source := _found(signing, each)) is not None:
            walked = statwalk.walk(contents.directory, source, _excluded(each), contents.cancellation.check)
            if not walked.signature or content.is_racy(walked):
                return ""
            told.append(walked.signature)
    return keys.key("signature", signing.digest.hexdigest(), tuple(told))


def _check(pattern: ContextPattern) -> None:
    """Raise ``ProtocolError`` for a pattern that no step has: one with ``..``, say."""
    paths = (pattern.path, *(b"/" + each for each in pattern.include))
    if any(b"\0" in each or copying.normal_path("/", _text(each)) != _text(each) for each in paths):
        raise ProtocolError(f"an executor asked for what is no path of a context: {paths[0]!r}")


def _found(tree: Tree, pattern: ContextPattern) -> CopySource | None:
    """Look up in ``tree`` what a step does for ``pattern``; None if the step will find nothing."""
    source = CopySource(
        tree,
        _text(pattern.path),
        wildcards=pattern.wildcards,
        include=tuple(map(_text, pattern.include)),
        required=bool(pattern.include),
        context=True,
    )
    with suppress(KanifoldError):  # the step will say what it does not find
        copying.require(source, _excluded(pattern))
    try:
        for match in copying.matches(source):
            copying.top_of(source, match)
    except KanifoldError:
        return None
    return source


def _select(tree: _Recorder, contents: Contents, pattern: ContextPattern) -> None:
    """Record all that a step looks up in ``tree`` for ``pattern``, and the digests of the files that it would read."""
    source = _found(tree, pattern)
    if source is not None:
        for each in contents.select(source, _excluded(pattern)).reached:
            tree.record(each.entry)


def _excluded(pattern: ContextPattern) -> tuple[str, ...]:
    return tuple(map(_text, pattern.exclude))


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


class _Observed(Tree):
    """The files of ``tree``. Each that is looked up is passed to ``observe``."""

    def __init__(self, tree: Tree) -> None:
        super().__init__(-1, b"", TreeOptions())
        self._tree = tree

    def observe(self, entry: Entry) -> Entry:
        """Return ``entry``, which was looked up."""
        raise NotImplementedError

    def lstat(self, path: bytes) -> os.stat_result | None:
        self.entry(path)
        return self._tree.lstat(path)

    def readlink(self, path: bytes) -> bytes:
        return self._tree.readlink(path)

    def names(self, path: bytes) -> list[bytes]:
        return [each.path.rpartition(b"/")[2] for each in self.entries(path)]

    def entry(self, path: bytes) -> Entry | None:
        entry = self._tree.entry(path)
        return None if entry is None else self.observe(entry)

    def entries(self, path: bytes) -> Iterator[Entry]:
        return map(self.observe, self._tree.entries(path))


class _Signing(_Observed):
    """Hashes what is looked up."""

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.digest = hashlib.sha256()

    def observe(self, entry: Entry) -> Entry:
        self.digest.update(_ENCODER.encode(entry))
        return entry


class _Recorder(_Observed):
    """Records what is looked up in ``found``."""

    def __init__(self, tree: Tree, found: ExternalSort) -> None:
        super().__init__(tree)
        self._found = found

    def record(self, entry: Entry) -> None:
        """Record ``entry``, which has a digest, in place of the one that was looked up."""
        if (known := self._found.get(entry.path)) is not None:
            entry = replace(entry, xattrs=known.xattrs)  # which are left out where a copy ignores them
        self._found.put(entry)

    def observe(self, entry: Entry) -> Entry:
        known = self._found.get(entry.path)
        if known is None or not known.digest:
            self._found.put(entry)
        return entry


class Listing:
    """A listing, with where its files are. ``tree`` is the context.

    ``known`` are the digests of its parts, if they are known; ``fill`` returns the parts when they are needed.
    """

    def __init__(self, tree: Tree, known: bytes, fill: Callable[[], Batches[Entry]]) -> None:
        self._tree = tree
        self._parts = Lazy(fill)
        self.digests = known or self._digests()

    def _digests(self) -> bytes:
        parts = self._parts()
        return b"".join(hashlib.sha256(listing.encode(parts[each])).digest() for each in range(len(parts)))

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
        if any(before.part >= after.part for before, after in pairwise(picked)):
            raise ProtocolError("an executor asked for the content of files twice")
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
        if not 0 <= number < len(self.digests) // 32:
            raise ProtocolError(f"an executor asked for part {number} of a listing that has {len(self.digests) // 32}")
        parts = self._parts()
        if number >= len(parts) or hashlib.sha256(listing.encode(parts[number])).digest() != self._digest(number):
            raise ContextError("the build context changed during the build", remedy="build again")
        return parts[number]

    def _digest(self, number: int) -> bytes:
        return self.digests[32 * number : 32 * number + 32]
