"""Processes with executors in them, as the orchestrator holds them: pipes to each executor, stderr, and an exit status.

An executor that was started as a command is alone in its process. Of those that the prefork server forks several share
one where there are more than processors: each is over when its own pipes are closed, and the process with the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol, SupportsIndex

import msgspec

from platforms import debug
from platforms.errors import ConnectionLost

GRACE: Final = 1.5
"""Seconds that a cancelled executor has to clean up before it is killed: Ctrl-C promises a clean stop in under two."""
STDERR_LIMIT: Final = 16 << 10
"""Bytes of a process's stderr that are kept."""


class CountedReader(asyncio.StreamReader):
    """A stream that counts the blocks that have come, and tells whether its transport is to wait.

    It stands between itself and the transport, as not all transports of Python 3.11 tell whether they are paused.
    """

    blocks = 0
    behind = False
    """Whether so much has not been read yet that nothing is taken from the transport."""
    _source: asyncio.ReadTransport

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._source!r}>"  # that of the base class would show this object again

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        """Take blocks from ``transport``."""
        assert isinstance(transport, asyncio.ReadTransport)
        self._source = transport
        super().set_transport(self)  # type: ignore[arg-type]

    def pause_reading(self) -> None:
        """Have the transport wait."""
        self.behind = True
        self._source.pause_reading()

    def resume_reading(self) -> None:
        """Have the transport go on."""
        self.behind = False
        self._source.resume_reading()

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        """Take a block from the transport."""
        self.blocks += 1
        super().feed_data(data)


class WorkerProcess:
    """A child process with ``executors`` in it, whose stderr is read from ``stderr``, a stream over ``transport``."""

    def __init__(
        self, pid: int, executors: int, stderr: asyncio.StreamReader, transport: asyncio.BaseTransport
    ) -> None:
        self.pid = pid
        self.executors = executors
        """Those that are not over yet."""
        self._transport = transport
        # A thread for each process: if these took the event loop's threads, enough processes would leave none for the
        # work that ends the executors.
        waiter = ThreadPoolExecutor(1, "executor-end")
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().run_in_executor(waiter, _status, pid)
        """The exit status; negative for a signal."""
        waiter.shutdown(wait=False)
        self._tail = b""
        self.stderr_closed = asyncio.create_task(self._read(stderr))

    @property
    def stderr_tail(self) -> str:
        """The end of what the process has written to stderr: nothing, unless something went wrong."""
        return self._tail.decode("utf-8", "replace").strip()

    async def _read(self, stderr: asyncio.StreamReader) -> None:
        while block := await stderr.read(4096):
            self._tail = (self._tail + block)[-STDERR_LIMIT:]

    async def gone(self) -> None:
        """Wait until the process has ended and all of its stderr was read, ``GRACE`` seconds at most."""
        both: set[asyncio.Future[Any]] = {self.ended, self.stderr_closed}
        await asyncio.wait(both, timeout=GRACE)

    def kill(self) -> None:
        """Kill the process and its process group, unless it has ended."""
        if not self.ended.done():
            os.killpg(self.pid, signal.SIGKILL)

    def release(self) -> None:
        """Count one executor less. After the last, stderr is not read any more."""
        self.executors -= 1
        if not self.executors:
            self._transport.close()


class ExecutorProcess(Protocol):
    """What is known of the process of an executor: a child (``WorkerProcess``), or one elsewhere."""

    @property
    def executors(self) -> int:
        """Those in it that are not over yet."""
        ...

    @property
    def ended(self) -> asyncio.Future[int]:
        """The exit status; negative for a signal."""
        ...

    @property
    def stderr_tail(self) -> str:
        """The end of what it has written to stderr."""
        ...

    async def gone(self) -> None:
        """Wait until it has ended and all of its stderr was read, for a moment at most."""
        ...

    def kill(self) -> None:
        """Kill it with all that it has started, unless it has ended."""
        ...

    def release(self) -> None:
        """Count one executor less."""
        ...


class Worker(msgspec.Struct, frozen=True):
    """One executor in a process, and the streams to it and from it."""

    process: ExecutorProcess
    stdin: asyncio.StreamWriter
    stdout: CountedReader
    transport: asyncio.BaseTransport
    """Of ``stdout``."""

    async def end(self) -> None:
        """Wait until the executor is over; for the process if it was the last in it. ``stdin`` should be closed.

        May be cancelled, and changes nothing then.
        """
        drained = asyncio.create_task(_drain(self.stdout))  # an executor that cannot write does not end
        either: set[asyncio.Future[Any]] = {drained, self.process.ended}
        try:
            if self.process.executors > 1:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            # The process's end, not that of its pipes, which a process that it has left behind may hold open.
            if self.process.executors == 1:
                await asyncio.shield(self.process.ended)
        finally:
            drained.cancel()

    def release(self) -> None:
        """Close our ends of the pipes, and count the executor as over."""
        self.transport.close()
        self.process.release()


async def start(command: Sequence[str], environment: Sequence[tuple[str, str]], limit: int) -> Worker:
    """Run ``command``, an executor, with ``environment`` added to this process's own.

    ``limit`` is the longest line that is read from it, in bytes. Raises ``OSError``.
    """
    # Not asyncio's own subprocess: its wait() lasts until the pipes are closed, see Worker.end.
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
            setsid=True,  # a terminal's Ctrl-C is for the orchestrator, which closes the executor's stdin
        )
    except BaseException:
        for fd in (stdin, stdout, stderr):
            os.close(fd)
        raise
    finally:
        for fd in theirs:
            os.close(fd)
    debug.log("executor started", pid=pid, command=tuple(command))
    connecting = asyncio.create_task(_connect_alone(pid, (stdin, stdout, stderr), limit))
    try:
        return await asyncio.shield(connecting)
    except asyncio.CancelledError:  # the process is there, and so must its end be
        worker = await connecting
        worker.stdin.close()
        worker.process.kill()
        worker.release()
        raise


async def _connect_alone(pid: int, pipes: tuple[int, int, int], limit: int) -> Worker:
    """The only executor in the process ``pid``; ``pipes`` as its stdin, stdout and stderr."""
    stdin, stdout, stderr = pipes
    return await connect(WorkerProcess(pid, 1, *await reader(stderr, STDERR_LIMIT)), stdin, stdout, limit)


async def connect(process: WorkerProcess, stdin: int, stdout: int, limit: int) -> Worker:
    """An executor in ``process``, with streams over the two descriptors. ``limit`` as for ``start``."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(stdin, "wb", 0))
    return Worker(process, asyncio.StreamWriter(transport, protocol, None, loop), *await reader(stdout, limit))


async def reader(fd: int, limit: int) -> tuple[CountedReader, asyncio.BaseTransport]:
    """A stream over the descriptor ``fd``, which it closes, and its transport."""
    stream = CountedReader(limit=limit)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(fd, "rb", 0)
    )
    return stream, transport


async def _drain(stream: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionLost):
        while await stream.read(1 << 20):
            pass


def _status(pid: int) -> int:
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    debug.log("executor process ended", pid=pid, status=status)
    return status
