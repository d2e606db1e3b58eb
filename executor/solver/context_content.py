"""The content of files of a context on another machine: from a checkout, an artifact in a registry, or a stream.

Whatever it comes from, it is added to the store by the digests that the listing has, so it need not be trusted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from executor import protocol
from executor.context import bundle, listing
from executor.conversation import Conversation
from executor.protocol import PickedFiles
from executor.registry import reference
from executor.rootfs.entry import Entry
from executor.rootfs.tree import Tree
from executor.solver.lazy import Lazy
from executor.solver.lifetime import Cancellation, ScratchSpace
from executor.store import blobs, faults, locks
from executor.store.blobs import StoredBlob
from executor.store.store import Store
from platforms import decoding
from platforms.descriptors import write_all
from platforms.errors import (
    ContextError,
    EnvironmentUnfit,
    KanifoldError,
    Problem,
    ProtocolError,
    RegistryError,
)

if TYPE_CHECKING:
    from executor.registry.client import Client

_ADDED: Final = 256
_ADDED_BYTES: Final = 32 << 20
"""Files, and bytes in them, that are added to the store together."""
_BLOCK: Final = 256 << 10
# Made here, by one thread: two that make the decoder of one type at the same moment crash msgspec.
_ARTIFACT: Final[msgspec.json.Decoder[protocol.ContextArtifact]] = msgspec.json.Decoder(protocol.ContextArtifact)


class ContextSender(msgspec.Struct, frozen=True):
    """Where a context comes from."""

    context: protocol.SentContext
    build: str
    """``protocol.Job.build``."""
    conversation: Conversation
    store: Store
    cancellation: Cancellation
    registry: Lazy[Client]
    scratch: ScratchSpace

    @property
    def name(self) -> str:
        """The name of the context."""
        return self.context.name

    def lock(self) -> locks.Lock:
        """Acquire the lock under which executors of the build receive files of the context."""
        return locks.lock(self.store, f"context {self.build} {self.name}", cancel=self.cancellation.future)

    def is_large(self, entries: Iterable[Entry]) -> bool:
        """Whether the content of ``entries`` is first looked for elsewhere than at the orchestrator."""
        return 0 < self.context.large <= sum(each.size for each in entries)

    def warn(self, rule: str, what: str, why: str) -> None:
        """Show a warning."""
        self.conversation.send(protocol.BuildWarning(Problem(rule, what, why), rule))

    def received(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` bytes are there."""
        name = self.name or "build context"
        self.conversation.send(protocol.Transfer(protocol.Action.CONTEXT, name, min(done, total), total))


class Arriving:
    """Adds the items of a bundle to the store: blobs that are ``expected``, each verified."""

    def __init__(self, source: ContextSender, expected: Iterator[StoredBlob | str], total: int = 0) -> None:
        self._source = source
        self._expected = expected
        """Blobs, or digests of blobs whose size is not known."""
        self._total = total
        self._done = 0
        self._made: list[tuple[str, StoredBlob]] = []
        self._bytes = 0
        self._digest = ""
        self._size = 0
        self._fd = -1
        self._path = ""
        self._hash = hashlib.sha256()

    def begin(self, size: int) -> None:
        """Open the file of the next blob."""
        expected = next(self._expected, None)
        if expected is None:
            raise ProtocolError("the orchestrator sent more than it was asked for")
        if isinstance(expected, StoredBlob):
            self._digest, wanted = expected.digest, size == expected.size
        else:
            self._digest, wanted = expected, size <= listing.PART_LIMIT
        if not wanted:
            raise ProtocolError(f"the orchestrator sent {size} bytes in place of {self._digest}")
        store = self._source.store
        self._path, self._size, self._hash = store.session.temporary(), size, hashlib.sha256()
        with faults.translated(store.root, "cannot keep a file of the context"):
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, data: memoryview) -> None:
        """Append to the file."""
        self._hash.update(data)
        with faults.translated(self._source.store.root, "cannot keep a file of the context"):
            write_all(self._fd, data)

    def end(self) -> None:
        """Verify the blob, and add it to the store together with others."""
        self.close()
        digest = f"sha256:{self._hash.hexdigest()}"
        if digest != self._digest:
            raise ProtocolError("the orchestrator sent another file than it was asked for", why=f"it has {digest}")
        self._made.append((self._path, StoredBlob(digest, self._size)))
        self._bytes += self._size
        if len(self._made) >= _ADDED or self._bytes >= _ADDED_BYTES:
            self._add()

    def finish(self) -> None:
        """Add what is left. Raises ``ProtocolError`` if blobs are missing."""
        self._add()
        if next(self._expected, None) is not None:
            raise ProtocolError("the orchestrator sent less than it was asked for")

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _add(self) -> None:
        blobs.adopt_all(self._source.store, self._made)
        self._done += self._bytes
        self._made, self._bytes = [], 0
        if self._total:
            self._source.received(self._done, self._total)


def receive(source: ContextSender, question: protocol.Question, arriving: Arriving) -> None:
    """Receive the bundle that is the answer to ``question``."""
    unpacker = bundle.BundleReader(arriving)
    try:
        if not source.conversation.ask_into(unpacker.feed, question):
            raise ProtocolError(f"the orchestrator does not have its listing of the context {source.name!r}")
        unpacker.finish()
        arriving.finish()
    finally:
        arriving.close()


def receive_artifact(source: ContextSender, listed: str, picked: tuple[PickedFiles, ...], arriving: Arriving) -> bool:
    """Receive the content of files of the listing ``listed`` by way of a registry. Returns whether all of it came."""
    answer = source.conversation.ask(protocol.AskContextArtifact(source.name, listed, picked))
    if answer is None:
        return False
    unpacker = bundle.BundleReader(arriving)
    try:
        found = decoding.decode(_ARTIFACT, answer)
        for block in source.registry().open_stream(reference.parse(found.repository), found.bundle):
            unpacker.feed(block)
        unpacker.finish()
        arriving.finish()
    except msgspec.DecodeError as error:
        raise ProtocolError("where an artifact is, is malformed", why=str(error)) from error
    except (RegistryError, ProtocolError) as error:  # a bundle that is malformed is the registry's, too
        what = "the build context is sent by the orchestrator, not by the registry"
        source.warn("ContextArtifact", what, _words(error))
        return False
    finally:
        arriving.close()
    return True


class GitContent:
    """The content of files that are of a commit, out of a checkout that is made here, once."""

    def __init__(self, source: ContextSender, origin: protocol.GitOrigin) -> None:
        self._source = source
        self._origin = origin
        self._tree = Lazy(self._checked_out)

    def add(self, entries: Sequence[Entry]) -> list[Entry]:
        """Add the content of ``entries`` to the store, and return those that the checkout does not have."""
        tree = self._tree()
        if tree is None:
            return list(entries)
        arriving = _Adding(self._source, sum(each.size for each in entries))
        lacking = [each for each in entries if not arriving.add(tree, each)]
        arriving.finish()
        return lacking

    def _checked_out(self) -> Tree | None:
        """Return the files of the commit; None if they cannot be had here, with a warning unless that is for want of
        git."""
        from executor.solver import fetched  # with all that fetches
        from executor.solver.services import Downloads

        source = self._source
        fetcher = fetched.Fetcher(source.store, source.conversation, source.cancellation, source.scratch, Downloads())
        try:
            return fetched.check_out_origin(fetcher, self._origin)
        except EnvironmentUnfit:
            return None
        except ContextError as error:
            what = "the build context is sent by the orchestrator: its commit cannot be fetched on the node"
            source.warn("GitContext", what, _words(error))
            return None


class _Adding:
    """Adds files to the store, of ``total`` bytes."""

    def __init__(self, source: ContextSender, total: int) -> None:
        self._source = source
        self._total = total
        self._done = 0
        self._made: list[tuple[str, StoredBlob]] = []
        self._bytes = 0

    def add(self, tree: Tree, entry: Entry) -> bool:
        """Add the content of the file at the path of ``entry``; return whether it is what its digest says."""
        try:
            fd = tree.open(entry.path)
        except OSError:
            return False
        try:
            return self._copy(fd, entry)
        finally:
            os.close(fd)

    def finish(self) -> None:
        """Add what is left."""
        blobs.adopt_all(self._source.store, self._made)
        self._done += self._bytes
        self._made, self._bytes = [], 0
        self._source.received(self._done, self._total)

    def _copy(self, fd: int, entry: Entry) -> bool:
        store, digest, left = self._source.store, hashlib.sha256(), entry.size
        path = store.session.temporary()
        self._source.cancellation.check()
        with faults.translated(store.root, "cannot keep a file of the context"), open(path, "xb", 0) as file:
            while left >= 0 and (data := os.read(fd, _BLOCK)):
                digest.update(data)
                write_all(file.fileno(), data)
                left -= len(data)
        if left or digest.hexdigest() != entry.digest:
            os.unlink(path)
            return False
        self._made.append((path, StoredBlob(f"sha256:{entry.digest}", entry.size)))
        self._bytes += entry.size
        if len(self._made) >= _ADDED or self._bytes >= _ADDED_BYTES:
            self.finish()
        return True


def _words(error: KanifoldError) -> str:
    return ": ".join(filter(None, (error.problem.what, error.problem.why)))
