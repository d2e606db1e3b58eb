"""This machine as a node. Its executors are forked by the prefork server; when none of these is left, started as
commands."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from executor import __version__, protocol
from orchestrator.nodes.node import Description, Say, Support, silent
from orchestrator.prefork import PreforkServer
from platforms import emulation, host
from platforms.emulation import ImageEmulators
from platforms.errors import EnvironmentUnfit
from platforms.platform import Platform

if TYPE_CHECKING:
    from orchestrator.connection import Connection
    from orchestrator.workerpool import WorkerPool


class LocalNode:
    """This machine, with the executors that ``server`` forks, once: as many as are wanted at the same moment first.

    ``isolation`` is the name of the mode that was requested; "" for any. ``emulators`` are those out of images.
    ``executors`` is the number that several builds will want in all; each is in a process of its own then.
    """

    name = "local"

    def __init__(
        self,
        server: PreforkServer | None,
        isolation: str = "",
        emulators: ImageEmulators | None = None,
        executors: int = 0,
    ) -> None:
        self._server = server
        self._requested = isolation
        self._emulators = emulators
        self._pool: WorkerPool | None = None
        self._executors = executors
        self._wanted = 0
        """Number of requested executors."""
        self._isolation = ""
        """The name of the isolation mode, once an executor has reported it."""

    async def describe(self, platforms: Sequence[Platform]) -> Description:
        """Determine how ``platforms`` run here, which takes some 20 ms for each that is emulated.

        Raises ``EnvironmentUnfit`` where executors do not run: on anything but Linux.
        """
        if sys.platform != "linux":
            emulation.emulation(host.default_platform())  # raises the reason
        return Description(
            platform=host.host(),
            support=tuple((each, _support(each, self._emulators)) for each in platforms),
            kanifold=__version__,
            protocol=protocol.VERSION,
            processors=len(os.sched_getaffinity(0)),
            isolation=self._isolation,
            shares_disk=True,
        )

    async def start(self, say: Say = silent) -> Connection:
        """Return a forked executor, or one that is started as a command when all forked ones are in use."""
        self._wanted += 1
        if self._server is not None and self._pool is None:
            await asyncio.sleep(0)  # lets concurrent calls be counted
            if self._pool is None:
                from orchestrator.workerpool import WorkerPool

                self._pool = WorkerPool(self._server)
                self._pool.start(max(self._wanted, self._executors), self._requested, self._executors)
        from orchestrator import connection  # while executors are being forked

        forked = None if self._pool is None else await self._pool.acquire(connection.LINE_LIMIT)
        if forked is None:
            started = await connection.launch(self.name, _command(), _environment(self._requested))
        else:
            started = await connection.connect(forked, self.name)
        self._isolation = started.greeting.isolation
        return started

    async def close(self) -> None:
        """End the executors that were not acquired, and wait for all."""
        if self._pool is not None:
            await self._pool.close()


def _support(platform: Platform, emulators: ImageEmulators | None) -> Support:
    try:
        found = emulation.emulation(platform, emulators)
    except EnvironmentUnfit as unfit:
        return Support(unfit=unfit)
    return Support(str(found), found)


def _command() -> tuple[str, ...]:
    # -P: modules are not loaded from the current directory.
    return (sys.executable, "-P", "-m", "executor")


def _environment(isolation: str) -> tuple[tuple[str, str], ...]:
    """Return what is added to the environment: the requested isolation, and the location of the packages, as kanifold
    may run from a checkout."""
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = [home, *(each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each)]
    mode = (("KANIFOLD_ISOLATION", isolation),) if isolation else ()
    return (("PYTHONPATH", os.pathsep.join(paths)), *mode)
