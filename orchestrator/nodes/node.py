"""Nodes: places where executors are started, and their descriptions.

Each kind of node is a module: this machine (``local_node``), or what a command leads to (``command_node``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import msgspec

from platforms.emulation import Emulation
from platforms.errors import EnvironmentUnfit
from platforms.platform import Platform

if TYPE_CHECKING:
    from executor import protocol
    from orchestrator.connection import Connection


class Support(msgspec.Struct, frozen=True):
    """How a node runs the programs of a platform."""

    how: str = ""
    """``native``, or the name of the emulator; "" if unknown or not supported."""
    emulation: Emulation | None = None
    """How, as determined on this machine; None if the executor has to determine it."""
    unfit: EnvironmentUnfit | None = None
    """Why it is not supported. Irrelevant for a build that only copies files."""


PUSHED: Final = "image"
"""In place of a repository: that of the image."""


class ContextRoutes(msgspec.Struct, frozen=True):
    """How content of contexts that a node lacks gets there if it is as much as ``large`` bytes: a git repository is
    fetched there, other files are read from a registry."""

    large: int
    repository: str = ""
    """The repository that they are pushed to, or ``PUSHED``; "" to send them."""

    def repository_for(self, job: protocol.Job) -> str:
        """Return the repository for the contexts of ``job``; "" if they are sent."""
        return next(iter(job.push), "") if self.repository == PUSHED else self.repository


class Description(msgspec.Struct, frozen=True):
    """The description of a node."""

    platform: Platform
    """Its own platform."""
    support: tuple[tuple[Platform, Support], ...]
    """How it runs the platforms in the request."""
    kanifold: str
    """The version of its executors."""
    protocol: int
    """The version of their protocol."""
    processors: int = 0
    """Number that an executor may use; 0 if unknown."""
    isolation: str = ""
    """The name of the isolation mode; "" if it is unknown before an executor is started, or if none is possible."""
    emulators: tuple[str, ...] = ()
    """Architectures with an emulator, not verified."""
    load: float = 0.0
    """The average number of runnable processes during the last minute; 0 if unknown."""
    memory: int = 0
    """Bytes of memory that processes may have; 0 if unknown."""
    disk: int = 0
    """Free bytes of the disk of its store; 0 if unknown."""
    shares_disk: bool = False
    """Whether paths of this machine, also that of its store, are valid there."""
    contexts: ContextRoutes | None = None
    """How contexts get there, if there is a faster way than to be sent."""
    scheduled: bool = False
    """Whether a scheduler finds a place for each executor: any number of them, each of which may have to wait."""

    absent: bool = False
    """Whether it has no machine at present, so that nothing would be started there."""

    @property
    def runs_steps(self) -> bool:
        """Whether it can isolate steps, as far as is known."""
        return bool(self.isolation) or self.shares_disk or self.scheduled

    @property
    def native(self) -> tuple[Platform, ...]:
        """Return the requested platforms that run without emulation."""
        return tuple(platform for platform, support in self.support if support.how == "native")

    @property
    def emulated(self) -> tuple[Platform, ...]:
        """Return the requested platforms that run in an emulator."""
        return tuple(platform for platform, support in self.support if support.how not in ("", "native"))

    def runs(self, platform: Platform) -> Support:
        """Return how programs of ``platform`` run; unknown for a platform that was not requested."""
        return dict(self.support).get(platform, Support())


Say = Callable[[str], object]
"""Takes what an executor waits for before it is there, in words; "" when it waits no longer."""
Acquire = Callable[["Node", Say], Awaitable["Connection"]]
"""Returns an executor on a node."""


def silent(_: str) -> None:
    """Say nothing."""


class Node(Protocol):
    """A place where executors are started."""

    @property
    def name(self) -> str:
        """Its name for users."""
        ...

    async def describe(self, platforms: Sequence[Platform]) -> Description:
        """Return a description of the node and of how it runs programs of ``platforms``.

        Raises ``KanifoldError`` when no executor can be started.
        """
        ...

    async def start(self, say: Say = silent) -> Connection:
        """Start an executor and return its connection. Raises ``KanifoldError``.

        Concurrent calls start executors concurrently. ``say`` is told what it waits for: for a place in a cluster.
        """
        ...

    async def close(self) -> None:
        """Release the node's resources. Afterwards no executor of it is left."""
        ...


@runtime_checkable
class NodeWithQuota(Protocol):
    """A node on which an executor may have to wait for the end of others."""

    async def start_awaited(self, say: Say = silent) -> Connection:
        """As ``Node.start``, for a job that a running executor waits for: before others.

        Raises ``KanifoldError``, also when it would have to wait for the end of an executor that waits for it.
        """
        ...

    def keep(self, connection: Connection) -> None:
        """Take note that the executor of ``connection`` has done its job, and stays until all platforms are built."""
        ...


class _Starting:
    """An executor that ``node`` starts, and what it waits for."""

    def __init__(self, node: Node) -> None:
        self._said = ""
        self._say: Say = silent
        self.task = asyncio.create_task(node.start(self._hear))

    async def connection(self, say: Say) -> Connection:
        """Wait for it; ``say`` is told what it waits for."""
        self._say = say
        if self._said:
            say(self._said)
        return await self.task

    def _hear(self, words: str) -> None:
        self._said = words
        self._say(words)


class ExecutorPool:
    """The executors of one build, of which some are started before their jobs are known."""

    def __init__(self) -> None:
        self._starting: dict[str, list[_Starting]] = {}
        self._begun = False

    def start(self, nodes: Iterable[Node]) -> None:
        """Start an executor on each of ``nodes``, unless that was done. Does not wait."""
        if not self._begun:
            self._begun = True
            for each in nodes:
                self._starting.setdefault(each.name, []).append(_Starting(each))

    async def acquire(self, node: Node, say: Say = silent) -> Connection:
        """Return an executor on ``node`` without a job; ``say`` as for ``Node.start``. Raises ``KanifoldError``."""
        starting = self._starting.get(node.name)
        return await (starting.pop(0).connection(say) if starting else node.start(say))

    async def acquire_awaited(self, node: Node, say: Say = silent) -> Connection:
        """As ``acquire``, for a job that another executor waits for (``NodeWithQuota``)."""
        return await (node.start_awaited(say) if isinstance(node, NodeWithQuota) else self.acquire(node, say))

    def keep(self, node: Node, connection: Connection) -> None:
        """Take note that an executor on ``node`` has done its job, and stays until all platforms are built."""
        if isinstance(node, NodeWithQuota):
            node.keep(connection)

    async def release(self) -> None:
        """End the executors that were not acquired."""
        waiting = [each.task for starting in self._starting.values() for each in starting]
        self._starting.clear()
        for each in waiting:
            each.cancel()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.gather(*(each.end() for each in ended if not isinstance(each, BaseException)))
