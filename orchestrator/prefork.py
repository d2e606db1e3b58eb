"""The prefork server: a process that loads the modules of a build's other processes and forks them.

It is forked as soon as a build is likely, and loads modules while the orchestrator loads its own. (1) It loads httpx,
which takes longest, and forks the process that asks registries (``orchestrator.registries``). (2) Told how many
executors are wanted, it loads what else they need, forks them, reports their process ids and ends. All of them are then
children of the orchestrator, which is their reaper (prctl(2), PR_SET_CHILD_SUBREAPER), and smaller than if it had
forked them itself, with all that it has loaded by then. Executors wait for their jobs.

The socket between the two takes packets (``platforms.framing``): a ``_Worker`` for each process of executors, with its
descriptors, and one ``_Forked`` or ``_Failed`` in reply.
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
from platforms import debug, framing, syscalls
from platforms.descriptors import keep_only
from platforms.errors import EnvironmentUnfit, KanifoldError, Problem, ProtocolError

_MOST: Final = 126
"""Executors in a process: with two descriptors for each, and its stderr, what one packet can carry (unix(7))."""
_BLOCK: Final = 1 << 16


class _Worker(msgspec.Struct, frozen=True):
    """A process to be forked. Its descriptors: stderr, and for each executor one to read from and one to write to."""

    processes: int
    """How many are to be forked in all."""
    isolation: str = ""
    """The isolation mode that was requested; "" for any."""


class _Forked(msgspec.Struct, frozen=True, tag=True):
    """All processes are there; in the order of the packets."""

    pids: tuple[int, ...]


class _Failed(msgspec.Struct, frozen=True, tag=True):
    """A process could not be forked. Those that could end with their pipes."""

    problem: Problem


_WORKER: Final[msgspec.json.Decoder[_Worker]] = msgspec.json.Decoder(_Worker)
_REPLY: Final[msgspec.json.Decoder[_Forked | _Failed]] = msgspec.json.Decoder(_Forked | _Failed)


class ExecutorPipes(msgspec.Struct, frozen=True):
    """The orchestrator's ends of the pipes to an executor that waits for a job, or will."""

    process: int
    """The number of the executor's process; several executors may be in one."""
    stdin: int
    stdout: int


class PreforkServer:
    """The orchestrator's end: ``start`` executors once, wait for their ``pids``, ``close`` it in the end."""

    def __init__(self, pid: int, packets: socket.socket, registry_process: RegistryProcess) -> None:
        self._pid = pid
        self._packets = packets
        self._started = False
        self._closed = False
        self._pids: tuple[int, ...] = ()
        self.registries = registry_process
        self.channels: list[ExecutorPipes] = []
        """Of executors that nobody has acquired yet."""
        self.stderrs: list[int] = []
        """By process: a descriptor to read its stderr from. Whoever takes it over leaves -1."""

    def start(self, executors: int, isolation: str = "", processes: int = 0) -> None:
        """Have ``executors`` forked, or as many as descriptors allow. Does not wait. Raises ``EnvironmentUnfit``.

        Those of one process start when each of them has a job. ``processes`` is 0 for the number of processors: for
        jobs that start at the same moment, a further one would cost its start and gain nothing.
        """
        processes = min(executors, processes or len(os.sched_getaffinity(0)))
        executors = min(executors, processes * _MOST)
        theirs: list[list[int]] = []
        try:
            for _ in range(processes):
                readable, stderr = os.pipe2(os.O_CLOEXEC)
                self.stderrs.append(readable)
                theirs.append([stderr])
            for number in range(executors):
                process = number % processes
                incoming, stdin = os.pipe2(os.O_CLOEXEC)
                theirs[process].append(incoming)
                stdout, outgoing = os.pipe2(os.O_CLOEXEC)
                theirs[process].append(outgoing)
                self.channels.append(ExecutorPipes(process, stdin, stdout))
            for fds in theirs:
                framing.send(self._packets, _Worker(processes, isolation), fds)
        except ConnectionError:
            pass  # the server has died, as ``pids`` will find
        except OSError as error:
            raise _unfit(error) from error
        finally:
            for fd in (fd for fds in theirs for fd in fds):
                os.close(fd)
        self._started = True
        debug.log("executors ordered", executors=executors, processes=processes)

    def fileno(self) -> int:
        """The descriptor that becomes readable when ``pids`` does not have to wait."""
        return self._packets.fileno()

    def pids(self) -> tuple[int, ...]:
        """The ids of the executors' processes. Waits for them. Raises ``EnvironmentUnfit`` or ``ProtocolError``."""
        if not self._pids:
            reply: _Forked | _Failed | None = None
            with contextlib.suppress(ConnectionError):  # it has died with packets unread
                reply, _ = framing.receive(self._packets, _REPLY, "the process that forks executors")
            match reply:
                case None:
                    raise ProtocolError("there are no executors", why="the process that was to fork them has died")
                case _Failed(problem):
                    raise KanifoldError.of(problem)
                case _Forked(pids):
                    self._pids = pids
            debug.log("executors started", pids=self._pids)
            self._reap()
        return self._pids

    def release(self) -> None:
        """Close the channels of executors that nobody has acquired, which ends these."""
        for each in self.channels:
            os.close(each.stdin)
            os.close(each.stdout)
        self.channels.clear()

    def close(self) -> None:
        """``release``, and wait until none of the processes is left. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self.release()
        if not self._started:
            os.kill(self._pid, signal.SIGKILL)
        self.registries.close()
        pids: tuple[int, ...] = ()
        try:
            if self._started:
                pids = self.pids()
        except KanifoldError:
            for fd in self.stderrs:  # which executors there are is not known, but with the last of them these close
                while fd >= 0 and os.read(fd, _BLOCK):
                    pass
        for fd in self.stderrs:
            if fd >= 0:
                os.close(fd)
        self._reap()
        for pid in filter(None, (*pids, self.registries.pid)):
            with contextlib.suppress(ChildProcessError):  # those of acquired executors were waited for
                os.waitpid(pid, 0)
        self._packets.close()

    def _reap(self) -> None:
        if self._pid:
            os.waitpid(self._pid, 0)
            self._pid = 0


@contextlib.contextmanager
def opened(started: PreforkServer | None) -> Iterator[PreforkServer | None]:
    """A prefork server for as long as this context lasts: the one that has been ``started``, else a new one.

    None where executors do not run. Raises ``EnvironmentUnfit`` when there can be no process, or when this one has
    several threads.
    """
    if sys.platform != "linux":
        yield None
        return
    try:
        server = started or begin()
    except OSError as error:
        raise _unfit(error) from error
    try:
        yield server
    finally:
        server.close()


def begin() -> PreforkServer:
    """Fork a prefork server, to be closed. Linux only; see ``opened``.

    Raises ``OSError`` when there can be no process, ``EnvironmentUnfit`` when this one has several threads.
    """
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    with contextlib.ExitStack() as failed:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        failed.enter_context(ours)
        with theirs:
            registry_process, pipes = registries.prepared()
            failed.callback(registry_process.close)
            try:
                pid = forking.start("kanifold-forks", partial(_serve, theirs, pipes))
            finally:
                for fd in pipes:
                    os.close(fd)
        failed.pop_all()
    return PreforkServer(pid, ours, registry_process)


def _unfit(error: OSError | EnvironmentUnfit, what: str = "cannot start executors") -> EnvironmentUnfit:
    why = error.problem.why if isinstance(error, EnvironmentUnfit) else error.strerror or str(error)
    return EnvironmentUnfit(what, why=why)


def _serve(packets: socket.socket, pipes: tuple[int, int]) -> int:
    """The server's process, which has no descriptors but ``packets`` and those of the process that asks registries."""
    keep_only(packets.fileno(), *pipes)

    from executor import __main__ as executor

    executor.preload_registries()
    gc.freeze()  # otherwise garbage collection in a forked process writes to, and so copies, all memory that they share
    try:
        forking.start("kanifold-http", partial(registries.serve, *pipes))  # (1)
    except (OSError, EnvironmentUnfit) as error:
        registries.refuse(pipes[1], _unfit(error, "cannot speak to registries").problem)
    for fd in pipes:
        os.close(fd)

    workers: list[list[int]] = []
    wanted, isolation = 1, ""
    while len(workers) < wanted:
        worker, fds = framing.receive(packets, _WORKER, "the orchestrator", 1 + 2 * _MOST)
        if worker is None:
            return 0
        wanted, isolation = worker.processes, worker.isolation
        workers.append(fds)
    executor.preload()
    gc.freeze()
    reply: _Forked | _Failed
    try:
        reply = _Forked(tuple(forking.start("kanifold-exec", partial(_work, fds, isolation)) for fds in workers))  # (2)
    except (OSError, EnvironmentUnfit) as error:
        reply = _Failed(_unfit(error).problem)
    with contextlib.suppress(ConnectionError):  # nobody waits for it any more
        framing.send(packets, reply)
    return int(isinstance(reply, _Failed))


def _work(fds: Sequence[int], isolation: str) -> int:
    """A process of executors: ``fds`` are its stderr, and two for each executor; ``isolation`` is the requested mode.

    While debugging, stderr stays the user's. The first descriptor is then kept for its end: the process has ended.
    """
    from executor.conversation import Conversation
    from executor.worker import serve

    if not debug.on:
        os.dup2(fds[0], 2)
    keep_only(*(fds if debug.on else fds[1:]))
    os.dup2(2, 1)  # what a library prints must not get into a message
    gc.enable()
    return serve([Conversation(*each) for each in zip(fds[1::2], fds[2::2], strict=True)], mode=isolation)
