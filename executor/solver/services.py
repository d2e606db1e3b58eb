"""What the steps of one job work with, and what the job remembers of what they have looked at.

Steps, and what schedules them, are given these as a whole. What they call takes what it uses.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
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
    """Who does the work. Everything in it may be used from any thread."""

    store: Store
    conversation: Conversation
    registry: Lazy[Client]
    remote_caches: Lazy[RemoteCaches]
    """The caches outside of this machine."""
    snapshotter: Snapshotter
    """Makes the file systems of steps."""
    runner: Lazy[Runner]
    """Runs steps."""
    layers: Layers
    """Makes the layers of steps."""
    slots: threading.Semaphore
    """Bounds the steps that run at once."""
    background: ThreadPoolExecutor
    """For work that overlaps the steps: packing, pushing, unpacking."""
    cancellation: Cancellation
    platform: Platform
    """The target."""
    emulation: Emulation | EnvironmentUnfit | None
    """How programs of the target run here, or why they do not; None where none can come."""

    def tell(self, message: protocol.Message) -> None:
        """Say something to the orchestrator."""
        self.conversation.send(message)

    @property
    def how(self) -> str:
        """How steps run here: ``native`` or the emulator's name; "" when they cannot."""
        return str(self.emulation) if isinstance(self.emulation, Emulation) else ""

    def check_runs(self, platform: Platform) -> None:
        """Raise ``EnvironmentUnfit`` when programs of ``platform`` do not run here."""
        if isinstance(self.emulation, EnvironmentUnfit) and platform == self.platform:
            raise self.emulation


class Downloads(msgspec.Struct, frozen=True):
    """What ADD has fetched."""

    lock: threading.Lock = msgspec.field(default_factory=threading.Lock)
    """Held while something is fetched."""
    files: dict[tuple[str, str], http.Downloaded] = msgspec.field(default_factory=dict)
    """By URL and the checksum that it was held against."""
    commits: dict[GitReference, ResolvedRef] = msgspec.field(default_factory=dict)
    """What git references point to."""


class Memory(msgspec.Struct, frozen=True):
    """What a job remembers as long as it lasts. Everything in it may be used from any thread."""

    inputs: Inputs
    """What the job's answer rests on."""
    scratch: ScratchSpace
    contents: Contents
    """What files hold."""
    downloads: Downloads = msgspec.field(default_factory=Downloads)


class FileSystems:
    """The file systems of one job's stages. Safe for threads."""

    def __init__(self, snapshotter: Snapshotter, background: ThreadPoolExecutor, progress: Progress) -> None:
        self._snapshotter = snapshotter
        self._background = background
        self._progress = progress

    def snapshots(self, layers: tuple[Layer, ...]) -> Parents:
        """``layers`` as snapshots, bottom first; missing ones are made at the same time."""
        missing = [layer for layer in layers if not layer.snapshot.done]
        with nullcontext() if all(layer.unpacked() for layer in missing) else self._progress.waiting("unpack"):
            together(self._background, [layer.snapshot for layer in missing])
        return tuple(layer.snapshot() for layer in layers)

    def tree(self, layers: tuple[Layer, ...]) -> Tree:
        """The file system of ``layers``, mounted for reading until the job ends."""
        return self._snapshotter.view(self.snapshots(layers))
