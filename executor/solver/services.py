"""The services of one job, and its memory.

The solver and steps have them as a whole; the functions that they call take only what they use.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from executor import protocol
from executor.conversation import Conversation
from executor.rootfs.tree import Tree
from executor.solver.content import Contents
from executor.solver.inputs import Inputs
from executor.solver.layer import Layer, Layers
from executor.solver.lazy import Lazy
from executor.solver.lifetime import Cancellation, ScratchSpace, together
from executor.solver.progress import Progress
from executor.store.store import Store
from platforms.emulation import Emulation
from platforms.errors import EnvironmentUnfit
from platforms.platform import Platform

if TYPE_CHECKING:
    from executor.context import http
    from executor.context.git import ResolvedRef
    from executor.context.gitreference import GitReference
    from executor.registry.client import Client
    from executor.sandbox.runner import Runner
    from executor.snapshotter.snapshotter import Parents, Snapshotter
    from executor.solver.remote_cache import RemoteCaches


class Services(msgspec.Struct, frozen=True):
    """The services that the steps of a job use. All are thread-safe."""

    store: Store
    conversation: Conversation
    registry: Lazy[Client]
    remote_caches: Lazy[RemoteCaches]
    """The remote caches."""
    snapshotter: Snapshotter
    """Makes the file systems of steps."""
    runner: Lazy[Runner]
    """Runs steps."""
    layers: Layers
    """Creates the layers of steps."""
    slots: threading.Semaphore
    """Limits the steps that run in parallel."""
    background: ThreadPoolExecutor
    """Runs what overlaps with steps: packing, pushing, unpacking."""
    cancellation: Cancellation
    platform: Platform
    """The target platform."""
    emulation: Emulation | EnvironmentUnfit | None
    """How programs of the target run here, or why they do not; None if the job has no RUN."""
    clock_ahead: float = 0.0
    """Seconds by which the clock of this machine is ahead of the orchestrator's."""

    def now(self) -> str:
        """Return the orchestrator's time (RFC 3339)."""
        return (datetime.now(UTC) - timedelta(seconds=self.clock_ahead)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def tell(self, message: protocol.Message) -> None:
        """Send a message to the orchestrator."""
        self.conversation.send(message)

    @property
    def how(self) -> str:
        """How steps run: ``native`` or the name of the emulator; "" if they cannot."""
        return str(self.emulation) if isinstance(self.emulation, Emulation) else ""

    def check_runs(self, platform: Platform) -> None:
        """Raise ``EnvironmentUnfit`` if programs of ``platform`` do not run here."""
        if isinstance(self.emulation, EnvironmentUnfit) and platform == self.platform:
            raise self.emulation


class Downloads(msgspec.Struct, frozen=True):
    """What ADD has fetched for a job."""

    lock: threading.Lock = msgspec.field(default_factory=threading.Lock)
    """Held during a download."""
    files: dict[tuple[str, str], http.Downloaded] = msgspec.field(default_factory=dict)
    """By URL and checksum."""
    commits: dict[GitReference, ResolvedRef] = msgspec.field(default_factory=dict)
    """The commits of git references."""


class Memory(msgspec.Struct, frozen=True):
    """What a job keeps from step to step. All of it is thread-safe."""

    inputs: Inputs
    """What the result of the job depends on."""
    scratch: ScratchSpace
    contents: Contents
    """The digests of files."""
    downloads: Downloads = msgspec.field(default_factory=Downloads)


class FileSystems:
    """The file systems of one job's stages. Thread-safe."""

    def __init__(self, snapshotter: Snapshotter, background: ThreadPoolExecutor, progress: Progress) -> None:
        self._snapshotter = snapshotter
        self._background = background
        self._progress = progress

    def snapshots(self, layers: tuple[Layer, ...]) -> Parents:
        """Return the snapshots of ``layers``, bottom first. Missing ones are made in parallel."""
        missing = [layer for layer in layers if not layer.snapshot.done]
        with nullcontext() if all(layer.unpacked() for layer in missing) else self._progress.waiting("unpack"):
            together(self._background, [layer.snapshot for layer in missing])
        return tuple(layer.snapshot() for layer in layers)

    def tree(self, layers: tuple[Layer, ...]) -> Tree:
        """Return the file system of ``layers``, which can be read until the job ends."""
        return self._snapshotter.view(self.snapshots(layers))
