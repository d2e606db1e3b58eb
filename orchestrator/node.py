"""A node: a place where executors are started, and what a build has to know of one.

Each kind of node is a module: this machine (``local_node``), whatever a command leads to (``command_node``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from platforms.emulation import Emulation
from platforms.errors import EnvironmentUnfit
from platforms.platform import Platform

if TYPE_CHECKING:
    from orchestrator.connection import Connection


class Support(msgspec.Struct, frozen=True):
    """How a node runs the programs of a platform."""

    how: str = ""
    """``native``, or the emulator's name; "" when that is not known, or when it does not."""
    emulation: Emulation | None = None
    """How, as it was found on this machine; None when another has to find out for itself."""
    unfit: EnvironmentUnfit | None = None
    """Why it does not: of no account for a build that only copies files."""


class Description(msgspec.Struct, frozen=True):
    """What a node is."""

    platform: Platform
    """Its own."""
    support: tuple[tuple[Platform, Support], ...]
    """How it runs the platforms that it was asked about."""
    kanifold: str
    """The version of its executors."""
    protocol: int
    """The version of the protocol that they speak."""
    processors: int = 0
    """That an executor may use; 0 when unknown."""
    isolation: str = ""
    """The mode in which steps run, by name; "" when that is not known before an executor is started, or when none is
    possible."""
    emulators: tuple[str, ...] = ()
    """Architectures that it has an emulator for, none of them tried."""
    shares_disk: bool = False
    """Whether paths of this machine, its store's included, mean the same there."""

    @property
    def native(self) -> tuple[Platform, ...]:
        """Those of the platforms asked about that run without emulation."""
        return tuple(platform for platform, support in self.support if support.how == "native")

    @property
    def emulated(self) -> tuple[Platform, ...]:
        """Those of the platforms asked about that run in an emulator."""
        return tuple(platform for platform, support in self.support if support.how not in ("", "native"))

    def runs(self, platform: Platform) -> Support:
        """How programs of ``platform`` run; nothing is known of a platform that was not asked about."""
        return dict(self.support).get(platform, Support())


class Node(Protocol):
    """A place where executors are started."""

    @property
    def name(self) -> str:
        """As users know it."""
        ...

    async def describe(self, platforms: Sequence[Platform]) -> Description:
        """What the node is, and how it runs programs of ``platforms``: those of them that have to be run.

        Raises ``KanifoldError`` when there can be no executor.
        """
        ...

    async def start(self) -> Connection:
        """An executor that waits for a job. Raises ``KanifoldError``.

        Several that are wanted at once are started at once: whoever needs more than one does not wait for the first.
        """
        ...

    async def close(self) -> None:
        """End what the node has of its own. No executor of it is left afterwards."""
        ...


class ExecutorPool:
    """The executors of one build, of which some are started before their jobs are known."""

    def __init__(self) -> None:
        self._starting: dict[str, list[asyncio.Task[Connection]]] = {}
        self._begun = False

    def start(self, nodes: Iterable[Node]) -> None:
        """Begin to start an executor on each of ``nodes``, unless that was done before."""
        if not self._begun:
            self._begun = True
            for each in nodes:
                self._starting.setdefault(each.name, []).append(asyncio.create_task(each.start()))

    async def acquire(self, node: Node) -> Connection:
        """An executor on ``node`` that has no job yet. Raises ``KanifoldError``."""
        starting = self._starting.get(node.name)
        return await (starting.pop(0) if starting else node.start())

    async def release(self) -> None:
        """End the executors that nobody has acquired."""
        waiting = [task for tasks in self._starting.values() for task in tasks]
        self._starting.clear()
        for each in waiting:
            each.cancel()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.gather(*(each.end() for each in ended if not isinstance(each, BaseException)))
