"""What the steps of one job work with: the store, the registries, the sandbox, and someone to tell."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from executor import protocol
from executor.conversation import Conversation
from executor.rootfs.tree import Tree
from executor.solver.fingerprints import Fingerprints
from executor.solver.inputs import Inputs
from executor.solver.once import Once
from executor.store.store import Store
from platforms.errors import EnvironmentUnfit, Interrupted
from platforms.platform import Platform

if TYPE_CHECKING:
    from executor.context import http
    from executor.context.git import ResolvedRef
    from executor.context.gitreference import GitReference
    from executor.registry.client import Client
    from executor.sandbox.runner import Runner
    from executor.snapshotter.snapshotter import Snapshotter
    from executor.solver.remote_cache import RemoteCaches

T = TypeVar("T")


class Trees:
    """Trees of contexts, sources and archives, open until the job ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._trees: list[Tree] = []

    def keep(self, tree: Tree) -> Tree:
        """``tree``, which will be closed with the others."""
        with self._lock:
            self._trees.append(tree)
        return tree

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            for tree in self._trees:
                tree.close()
            self._trees.clear()


class FileCopy(msgspec.Struct, frozen=True):
    """A file of our own with what another held at one moment."""

    path: bytes
    size: int
    digest: str


class Workshop(msgspec.Struct, frozen=True):
    """One job's means. Everything in it may be used from any thread."""

    job: protocol.Job
    platform: Platform
    """The target."""
    native: Platform
    """What this node is: BUILDPLATFORM."""
    store: Store
    inputs: Inputs
    """What the job's answer rests on."""
    conversation: Conversation
    registry: Once[Client]
    snapshotter: Snapshotter
    """Makes the file systems of steps."""
    runner: Once[Runner]
    """Runs steps."""
    exchange: Once[RemoteCaches]
    """The caches outside of this machine."""
    background: ThreadPoolExecutor
    """For work that overlaps the steps: packing, pushing, unpacking."""
    slots: threading.Semaphore
    """Bounds the steps that run at once."""
    cancelled: Future[None]
    """Done when the job is to end; waiting calls take it."""
    cancel: Callable[[], None]
    """Ends the job: steps are killed, whatever waits is woken."""
    directory: str
    """For what lives as long as the job."""
    how: str
    """How steps run here: ``native`` or the emulator's name; "" when they cannot."""
    unfit: EnvironmentUnfit | None = None
    """Why no program of the target platform runs here; None when they do."""
    trees: Trees = msgspec.field(default_factory=Trees)
    downloading: threading.Lock = msgspec.field(default_factory=threading.Lock)
    downloads: dict[tuple[str, str], http.Downloaded] = msgspec.field(default_factory=dict)
    """What ADD has fetched, by URL and the checksum that it was held against."""
    commits: dict[GitReference, ResolvedRef] = msgspec.field(default_factory=dict)
    """What git references point to, as long as this job lasts."""
    contents: Fingerprints = msgspec.field(default_factory=Fingerprints)
    """The digest under which this job knows each file of people's that it has read, by path."""
    copies: dict[bytes, FileCopy] = msgspec.field(default_factory=dict)
    """Of files that were being written when they were read."""

    def tell(self, message: protocol.Message) -> None:
        """Say something to the orchestrator."""
        self.conversation.send(message)

    def check(self) -> None:
        """Raise ``Interrupted`` when the job is to end."""
        if self.cancelled.done():
            raise Interrupted("the build was cancelled")

    def scratch(self) -> str:
        """A new directory that goes with the job."""
        import tempfile

        return tempfile.mkdtemp(dir=self.directory)

    def later(self, work: Callable[[], T]) -> Future[T]:
        """Do ``work`` in the background."""
        return self.background.submit(work)


def together(workshop: Workshop, works: list[Callable[[], Any]]) -> None:
    """Do all of ``works`` at once; the first error of any is raised when all have ended.

    What the background has no thread for is done by the caller, for whom all of its threads may be waiting.
    """
    begun = [workshop.later(work) for work in works[1:]]
    error: BaseException | None = None
    for number, work in enumerate(works):
        try:
            if number == 0 or begun[number - 1].cancel():
                work()
            else:
                begun[number - 1].result()
        except BaseException as raised:
            error = error or raised
    if error is not None:
        raise error
