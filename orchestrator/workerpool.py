"""The executors that the prefork server has forked, for a build to acquire."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

from orchestrator import process
from orchestrator.prefork import PreforkServer
from orchestrator.process import GRACE, STDERR_LIMIT, Worker, WorkerProcess
from platforms.errors import KanifoldError


class WorkerPool:
    """The executors of ``server``: ``start`` them once, ``acquire`` each, ``close`` in the end."""

    def __init__(self, server: PreforkServer) -> None:
        self._server = server
        self._starting: asyncio.Task[tuple[WorkerProcess, ...]] | None = None

    def start(self, executors: int, isolation: str, processes: int = 0) -> None:
        """Have ``executors`` started, unless some have been, with the requested mode of isolation, or "".

        ``processes`` is as for ``PreforkServer.start``. Does not wait. Raises ``EnvironmentUnfit``.
        """
        if self._starting is None:
            self._server.start(executors, isolation, processes)
            shares = Counter(each.process for each in self._server.channels)
            self._starting = asyncio.create_task(self._started(shares))

    async def acquire(self, limit: int) -> Worker | None:
        """An executor that has not been acquired yet; None when there is none left.

        ``limit`` is the longest line that is read from it, in bytes. Raises ``EnvironmentUnfit`` or ``ProtocolError``
        when executors could not be started.
        """
        if self._starting is None or not self._server.channels:
            return None
        channel = self._server.channels.pop()
        try:
            found = (await asyncio.shield(self._starting))[channel.process]
        except BaseException:
            self._server.channels.append(channel)
            raise
        return await process.connect(found, channel.stdin, channel.stdout, limit)

    async def close(self) -> None:
        """Release the executors that nobody has acquired, and wait until all processes have ended. Kills late ones."""
        self._server.release()
        if self._starting is None:
            return
        with contextlib.suppress(KanifoldError):
            processes = await self._starting
            await asyncio.wait([each.ended for each in processes], timeout=GRACE)
            for each in processes:
                each.kill()
            await asyncio.wait([each.ended for each in processes])

    async def _started(self, shares: Counter[int]) -> tuple[WorkerProcess, ...]:
        """The processes, once they have been forked; ``shares`` are the numbers of executors in each."""
        loop, replied = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._server, replied.set)
        try:
            await replied.wait()
        finally:
            loop.remove_reader(self._server)
        found = []
        for number, pid in enumerate(self._server.pids()):
            stderr, self._server.stderrs[number] = self._server.stderrs[number], -1
            found.append(WorkerProcess(pid, shares[number], *await process.reader(stderr, STDERR_LIMIT)))
        return tuple(found)
