"""Executors as the orchestrator holds them: two pipes to speak over, one for its stderr, and an end.

An executor on another node is a command. Those on this machine come out of a nursery, several in one process where
there are more of them than processors: what each of them is for ends with its own pipes, and the process with the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec

from orchestrator.prefork import PreforkServer
from platforms import debug
from platforms.errors import KanifoldError

GRACE: Final = 1.5
"""Seconds that a cancelled executor has to clean up before it is killed: Ctrl-C promises a clean stop in under two."""
_COMPLAINT_LIMIT: Final = 16 << 10


class Child:
    """A process of ours with executors in it. ``open`` of them are not over yet."""

    def __init__(
        self, pid: int, executors: int, stderr: asyncio.StreamReader, transport: asyncio.BaseTransport
    ) -> None:
        self.pid = pid
        self.open = executors
        self._transport = transport
        # A thread of its own: waiting in the loop's shared ones would, with enough processes, leave none for the work
        # that lets the executors go.
        waiter = ThreadPoolExecutor(1, "executor-end")
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().run_in_executor(waiter, _status, pid)
        waiter.shutdown(wait=False)
        self._said = b""
        self.stderr_closed = asyncio.create_task(self._hear(stderr))
        """Done when its stderr is closed."""

    @property
    def stderr_tail(self) -> str:
        """The end of what it wrote to stderr until now: nothing, unless something went wrong."""
        return self._said.decode("utf-8", "replace").strip()

    async def _hear(self, stderr: asyncio.StreamReader) -> None:
        while block := await stderr.read(4096):
            self._said = (self._said + block)[-_COMPLAINT_LIMIT:]

    def kill(self) -> None:
        """End it and what it has started, unless it has ended."""
        if not self.ended.done():
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """One executor less; after the last nobody reads its stderr."""
        self.open -= 1
        if not self.open:
            self._transport.close()


class Process(msgspec.Struct, frozen=True):
    """A running executor."""

    child: Child
    stdin: asyncio.StreamWriter
    stdout: asyncio.StreamReader
    transport: asyncio.BaseTransport

    async def end(self) -> None:
        """Wait until the executor is over, and the process with the last of its executors; stdin should be closed.

        Cancelling this leaves everything as it is.
        """
        silent = asyncio.create_task(_drain(self.stdout))  # who cannot write cannot end
        either: set[asyncio.Future[Any]] = {silent, self.child.ended}
        try:
            if self.child.open > 1:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            # Not until its pipes are closed, which a stray grandchild may never do.
            if self.child.open == 1:
                await asyncio.shield(self.child.ended)
        finally:
            silent.cancel()

    def release(self) -> None:
        """Close our ends of its pipes."""
        self.transport.close()
        self.child.close()


async def start(command: Sequence[str], environment: Sequence[tuple[str, str]], limit: int) -> Process:
    """Run ``command``; ``limit`` is the longest line that is read from it, in bytes. Raises ``OSError``."""
    # Not asyncio's own subprocess: its wait() lasts until the pipes are closed, which a stray grandchild may never do.
    pipes = [os.pipe(), os.pipe(), os.pipe()]
    stdin, stdout, stderr = pipes[0][1], pipes[1][0], pipes[2][0]
    theirs = (pipes[0][0], pipes[1][1], pipes[2][1])
    try:
        pid = os.posix_spawnp(
            command[0],
            tuple(command),
            {**os.environ, **dict(environment)},
            # While debugging, its stderr is the user's.
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, place) for place, fd in enumerate(theirs[: 2 if debug.on else 3])],
            setsid=True,  # Ctrl-C is ours to handle: an executor is stopped through its stdin
        )
    except BaseException:
        for fd in (stdin, stdout, stderr):
            os.close(fd)
        raise
    finally:
        for fd in theirs:
            os.close(fd)
    debug.log("executor started", pid=pid, command=tuple(command))
    return await _connect(Child(pid, 1, *await _reader(stderr, _COMPLAINT_LIMIT)), stdin, stdout, limit)


class WorkerPool:
    """The executors of a nursery."""

    def __init__(self, nursery: PreforkServer) -> None:
        self._nursery = nursery
        self._born: asyncio.Task[tuple[Child, ...]] | None = None

    def start(self, executors: int) -> None:
        """Have as many ``executors``, unless some have been ordered. Ordered early, they are there when jobs are."""
        if self._born is None:
            self._nursery.start(executors)
            shares = Counter(each.process for each in self._nursery.channels)
            self._born = asyncio.create_task(self._hear(shares))

    async def acquire(self, limit: int) -> Process | None:
        """One that nobody has taken yet; None when there is none left. ``limit`` as for ``start``.

        Raises ``EnvironmentUnfit`` or ``ProtocolError`` when there should be some and are not.
        """
        if self._born is None or not self._nursery.channels:
            return None
        channel = self._nursery.channels.pop()
        try:
            child = (await asyncio.shield(self._born))[channel.process]
        except BaseException:
            self._nursery.channels.append(channel)
            raise
        return await _connect(child, channel.stdin, channel.stdout, limit)

    async def close(self) -> None:
        """Send those away that nobody has taken, and wait for all processes' ends."""
        self._nursery.release()
        if self._born is None:
            return
        with contextlib.suppress(KanifoldError):
            children = await self._born
            await asyncio.wait([each.ended for each in children], timeout=GRACE)
            for each in children:
                each.kill()
            await asyncio.wait([each.ended for each in children])

    async def _hear(self, shares: Counter[int]) -> tuple[Child, ...]:
        nursery, loop = self._nursery, asyncio.get_running_loop()
        said = asyncio.Event()
        loop.add_reader(nursery, said.set)
        try:
            await said.wait()
        finally:
            loop.remove_reader(nursery)
        pids = nursery.pids()
        found = []
        for process, pid in enumerate(pids):
            stderr, nursery.stderrs[process] = nursery.stderrs[process], -1
            found.append(Child(pid, shares[process], *await _reader(stderr, _COMPLAINT_LIMIT)))
        return tuple(found)


async def _connect(child: Child, stdin: int, stdout: int, limit: int) -> Process:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(stdin, "wb", 0))
    return Process(child, asyncio.StreamWriter(transport, protocol, None, loop), *await _reader(stdout, limit))


async def _reader(fd: int, limit: int) -> tuple[asyncio.StreamReader, asyncio.BaseTransport]:
    stream = asyncio.StreamReader(limit=limit)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(fd, "rb", 0)
    )
    return stream, transport


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(1 << 20):
        pass


def _status(pid: int) -> int:
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    debug.log("executor process ended", pid=pid, status=status)
    return status
