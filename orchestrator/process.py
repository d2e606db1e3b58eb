"""Executor processes as the orchestrator holds them: two pipes to speak over, one for complaints, and an end.

An executor on another node is a command. One on this machine is *forked* where that is possible: the packages are
loaded once, and an executor is there in the time of a fork. Forks are made before anything starts a thread or an event
loop, and wait for their job like any other executor.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import msgspec


class Process(Protocol):
    """A running executor."""

    @property
    def stdin(self) -> asyncio.StreamWriter: ...

    @property
    def stdout(self) -> asyncio.StreamReader: ...

    @property
    def stderr(self) -> asyncio.StreamReader: ...

    async def wait(self) -> int:
        """The exit status, once the process has ended."""
        ...

    def kill(self) -> None:
        """End the process and those it has started."""
        ...

    def release(self) -> None:
        """Close our ends of its pipes."""
        ...


async def start(command: Sequence[str], environment: Sequence[tuple[str, str]], limit: int) -> Process:
    """Run ``command``; ``limit`` is the longest line that is read from it, in bytes. Raises ``OSError``."""
    # Not asyncio's own subprocess: its wait() lasts until the pipes are closed, which a stray grandchild may never do.
    pipes = [os.pipe(), os.pipe(), os.pipe()]
    ours = (pipes[0][1], pipes[1][0], pipes[2][0])
    theirs = (pipes[0][0], pipes[1][1], pipes[2][1])
    try:
        pid = os.posix_spawnp(
            command[0],
            tuple(command),
            {**os.environ, **dict(environment)},
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, place) for place, fd in enumerate(theirs)],
            setsid=True,  # Ctrl-C is ours to handle: an executor is stopped through its stdin
        )
    except BaseException:
        for fd in ours:
            os.close(fd)
        raise
    finally:
        for fd in theirs:
            os.close(fd)
    return await Fork(pid, *ours).open(limit)


class Fork(msgspec.Struct, frozen=True):
    """An executor that was forked and waits for its job."""

    pid: int
    stdin: int
    stdout: int
    stderr: int

    async def open(self, limit: int) -> Process:
        """Connect its pipes to the running event loop."""
        loop = asyncio.get_running_loop()

        async def reader(fd: int) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
            stream = asyncio.StreamReader(limit=limit)
            transport, _ = await loop.connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(fd, "rb", 0)
            )
            return stream, transport

        transport, protocol = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, os.fdopen(self.stdin, "wb", 0)
        )
        writer = asyncio.StreamWriter(transport, protocol, None, loop)
        # A thread of its own: waiting in the loop's shared ones would, with enough executors, leave none for the work
        # that lets the executors go.
        waiter = ThreadPoolExecutor(1, "executor-end")
        ended = loop.run_in_executor(waiter, _status, self.pid)
        waiter.shutdown(wait=False)
        (stdout, out), (stderr, err) = await reader(self.stdout), await reader(self.stderr)
        return _Forked(self.pid, ended, writer, stdout, stderr, (out, err))

    def discard(self) -> None:
        """Send it away without a job."""
        for fd in (self.stdin, self.stdout, self.stderr):
            os.close(fd)
        os.waitpid(self.pid, 0)


class _Forked(msgspec.Struct, frozen=True):
    pid: int
    ended: asyncio.Future[int]
    stdin: asyncio.StreamWriter
    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader
    incoming: tuple[asyncio.ReadTransport, ...]

    async def wait(self) -> int:
        return await asyncio.shield(self.ended)

    def kill(self) -> None:
        if not self.ended.done():
            os.killpg(self.pid, signal.SIGKILL)

    def release(self) -> None:
        for each in self.incoming:
            each.close()


def _status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fork(count: int, alone: Callable[[], None], *, pushes: bool) -> list[Fork]:
    """``count`` executors on this machine, once ``alone`` has returned: this process then has a single thread."""
    from executor import __main__ as executor

    executor.preload(pushes=pushes)
    alone()
    gc.freeze()  # else the collector of each executor writes to, and thereby copies, all that they share with us
    return [_fork_one() for _ in range(count)]


def _fork_one() -> Fork:
    from executor import __main__ as executor
    from platforms import syscalls

    ours_in, stdin = os.pipe2(os.O_CLOEXEC)
    stdout, theirs_out = os.pipe2(os.O_CLOEXEC)
    stderr, theirs_err = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setsid()
            for fd, place in ((ours_in, 0), (theirs_out, 1), (theirs_err, 2)):
                os.dup2(fd, place)
            syscalls.close_range(3)
            status = executor.main()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(status)
    for fd in (ours_in, theirs_out, theirs_err):
        os.close(fd)
    return Fork(pid, stdin, stdout, stderr)
