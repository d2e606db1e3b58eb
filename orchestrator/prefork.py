"""Where a build's other processes come from: one that loads what they need, while we load what we need.

The nursery is forked as soon as it is known that there will be a build. It loads what speaks HTTP, which takes longest,
and forks the process that asks registries for us (``registries``). When it is told that executors are wanted and how
many, it loads the rest of what they need, forks them, says their process ids, and ends. As this process is their reaper
(prctl(2), PR_SET_CHILD_SUBREAPER), all of them are then its children, and lighter than if it had forked them itself,
with all that it holds by then. Executors wait for their jobs like any other executor.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

import msgspec

from orchestrator import forking, registries
from orchestrator.registries import RegistryProcess
from platforms import debug, decoding, syscalls, threads
from platforms.descriptors import keep_only
from platforms.errors import EnvironmentUnfit, KanifoldError, ProtocolError

_FORKING: Final = "fork the processes of a build"
_LIMIT: Final = 1 << 16
_MOST: Final = 126
"""Executors in a process: with two descriptors for each, and its stderr, what one message can carry (unix(7))."""
_ANSWER: Final[msgspec.json.Decoder[tuple[int, ...] | str]] = msgspec.json.Decoder(tuple[int, ...] | str)
"""The process ids, or why there are none."""


class Channel(msgspec.Struct, frozen=True):
    """Our ends of the pipes to an executor that waits for a job, or will."""

    process: int
    """Which of the nursery's processes it is in; several executors may share one."""
    stdin: int
    stdout: int


class PreforkServer:
    """``start`` executors, once; ``pids`` waits for their process ids; ``close`` it in the end."""

    def __init__(self, pid: int, line: socket.socket, registry_process: RegistryProcess) -> None:
        self._pid = pid
        self._line = line
        self._ordered = False
        self._closed = False
        self._pids: tuple[int, ...] = ()
        self.registries = registry_process
        self.channels: list[Channel] = []
        """Those that nobody has taken yet."""
        self.stderrs: list[int] = []
        """By process: where its stderr can be read. Whoever takes one leaves -1."""

    def start(self, executors: int) -> None:
        """Have as many ``executors``, or as many of them as can be had from here. Raises ``EnvironmentUnfit``.

        There are no more processes than processors: a further one would cost its start, and win nothing.
        """
        processes = min(executors, len(os.sched_getaffinity(0)))
        executors = min(executors, processes * _MOST)
        theirs: list[list[int]] = []
        try:
            for _ in range(processes):
                reading, stderr = os.pipe2(os.O_CLOEXEC)
                self.stderrs.append(reading)
                theirs.append([stderr])
            for number in range(executors):
                process = number % processes
                incoming, stdin = os.pipe2(os.O_CLOEXEC)
                theirs[process].append(incoming)
                stdout, outgoing = os.pipe2(os.O_CLOEXEC)
                theirs[process].append(outgoing)
                self.channels.append(Channel(process, stdin, stdout))
            for fds in theirs:
                socket.send_fds(self._line, [processes.to_bytes(4, "big")], fds)
        except ConnectionError:
            pass  # who listens for the answer hears that it has died
        except OSError as error:
            raise _unfit(error.strerror or str(error)) from error
        finally:
            for fd in (fd for fds in theirs for fd in fds):
                os.close(fd)
        self._ordered = True
        debug.log("executors ordered", executors=executors, processes=processes)

    @property
    def answer(self) -> int:
        """Where it can be read that there is a list of ``pids``."""
        return self._line.fileno()

    def pids(self) -> tuple[int, ...]:
        """The process ids, by process; waits for them. Raises ``EnvironmentUnfit`` or ``ProtocolError`` without any."""
        if not self._pids:
            said = b""
            with contextlib.suppress(ConnectionError):  # it has died before it read the order
                said = self._line.recv(_LIMIT)
            if not said:
                raise ProtocolError("there are no executors", why="the process that was to fork them has died")
            answer = decoding.decode(_ANSWER, said)
            if isinstance(answer, str):
                raise _unfit(answer)
            self._pids = answer
            debug.log("executors started", pids=answer)
            self._reap()
        return self._pids

    def release(self) -> None:
        """Send those away that nobody has taken."""
        for each in self.channels:
            os.close(each.stdin)
            os.close(each.stdout)
        self.channels.clear()

    def close(self) -> None:
        """``release``, and wait: when this returns, none of the processes is left. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self.release()
        if not self._ordered:
            os.kill(self._pid, signal.SIGKILL)
        self.registries.close()
        try:
            ours = (*self.pids(), self.registries.pid) if self._ordered else (self.registries.pid,)
        except KanifoldError:
            ours = (self.registries.pid,)
            for fd in self.stderrs:  # nobody says which executors there are, but with the last of them these close
                while fd >= 0 and os.read(fd, _LIMIT):
                    pass
        for fd in self.stderrs:
            if fd >= 0:
                os.close(fd)
        self._reap()
        for pid in filter(None, ours):
            with contextlib.suppress(ChildProcessError):  # who has taken an executor has waited for it, too
                os.waitpid(pid, 0)
        self._line.close()

    def _reap(self) -> None:
        if self._pid:
            os.waitpid(self._pid, 0)
            self._pid = 0


@contextlib.contextmanager
def opened(begun: PreforkServer | None) -> Iterator[PreforkServer | None]:
    """A nursery, as long as this context lasts: the one that has ``begun``, else a new one. None where executors do not
    run.

    Raises ``EnvironmentUnfit`` when there can be no process, or when this one has more than a single thread.
    """
    if sys.platform != "linux":
        yield None
        return
    try:
        nursery = begun or begin()
    except OSError as error:
        raise _unfit(error.strerror or str(error)) from error
    try:
        yield nursery
    finally:
        nursery.close()


def begin() -> PreforkServer:
    """A nursery, to be closed. Linux only; see ``opened``.

    Raises ``OSError`` when there can be no process, ``EnvironmentUnfit`` when this one has more than a single thread.
    """
    threads.check_single(_FORKING)
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    with contextlib.ExitStack() as failed:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        failed.enter_context(ours)
        with theirs:
            registry_process, pipes = registries.prepared()
            failed.callback(registry_process.close)
            try:
                pid = os.fork() or forking.live("kanifold-forks", partial(_nursery, theirs, pipes))
            finally:
                for fd in pipes:
                    os.close(fd)
        failed.pop_all()
    return PreforkServer(pid, ours, registry_process)


def _unfit(why: str) -> EnvironmentUnfit:
    return EnvironmentUnfit("cannot start executors", why=why)


def _nursery(line: socket.socket, pipes: tuple[int, int]) -> int:
    """The life of the nursery, which holds nothing open that is not its own."""
    keep_only(line.fileno(), *pipes)

    from executor import __main__ as executor

    executor.preload_registries()
    gc.freeze()  # else the collector of whoever is forked writes to, and thereby copies, all that they share
    try:
        threads.check_single(_FORKING)
        _ = os.fork() or forking.live("kanifold-http", partial(registries.serve, *pipes))
    except OSError as error:
        registries.refuse(pipes[1], error.strerror or str(error))
    except EnvironmentUnfit as error:
        registries.refuse(pipes[1], error.problem.why)
    for fd in pipes:
        os.close(fd)
    executors: list[list[int]] = []
    wanted = 1
    while len(executors) < wanted:
        order, descriptors, *_ = socket.recv_fds(line, 4, 1 + 2 * _MOST, socket.MSG_CMSG_CLOEXEC)
        if not order:
            return 0
        wanted = int.from_bytes(order, "big")
        executors.append(descriptors)
    executor.preload()
    gc.freeze()
    answer: list[int] | str
    try:
        threads.check_single(_FORKING)
        answer = [os.fork() or forking.live("kanifold-exec", partial(_executors, fds)) for fds in executors]
    except OSError as error:
        answer = error.strerror or str(error)
    except EnvironmentUnfit as error:
        answer = error.problem.why
    with contextlib.suppress(ConnectionError):  # nobody waits for it any more
        line.send(msgspec.json.encode(answer))
    return int(isinstance(answer, str))


def _executors(fds: Sequence[int]) -> int:
    """Do a job for each pair of descriptors after the first, which is stderr.

    While debugging, stderr stays the user's. The first descriptor then only tells by its end that this process ends.
    """
    from executor.worker import serve

    if not debug.on:
        os.dup2(fds[0], 2)
    keep_only(*(fds if debug.on else fds[1:]))
    os.dup2(2, 1)  # what prints by mistake complains
    gc.enable()
    return serve(tuple(zip(fds[1::2], fds[2::2], strict=True)))
