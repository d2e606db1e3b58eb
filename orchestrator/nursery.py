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
from orchestrator.registries import Speaker
from platforms import syscalls
from platforms.errors import EnvironmentUnfit, KanifoldError, ProtocolError

_LIMIT: Final = 1 << 16
_MOST: Final = 84
"""Executors that are brought forth: with three descriptors for each, what one message can carry (unix(7))."""
_ORDER: Final[msgspec.json.Decoder[tuple[int, ...]]] = msgspec.json.Decoder(tuple[int, ...])
"""By process, how many of the descriptors that come with it are for it: stderr, and a pair for each executor."""
_ANSWER: Final[msgspec.json.Decoder[tuple[int, ...] | str]] = msgspec.json.Decoder(tuple[int, ...] | str)
"""The process ids, or why there are none."""


class Channel(msgspec.Struct, frozen=True):
    """Our ends of the pipes to an executor that waits for a job, or will."""

    process: int
    """Which of the nursery's processes it is in; several executors may share one."""
    stdin: int
    stdout: int


class Nursery:
    """``order`` executors, once; ``hear`` which processes they are; ``close`` it in the end."""

    def __init__(self, pid: int, line: socket.socket, speaker: Speaker) -> None:
        self._pid = pid
        self._line = line
        self._ordered = False
        self._pids: tuple[int, ...] = ()
        self.speaker = speaker
        self.channels: list[Channel] = []
        """Those that nobody has taken yet."""
        self.complaints: list[int] = []
        """By process: where its stderr can be read. Whoever takes one leaves -1."""

    def order(self, executors: int) -> None:
        """Have as many ``executors``, or as many of them as can be had from here.

        There are no more processes than processors: a further one would cost its start, and win nothing.
        """
        executors = min(executors, _MOST)
        processes = min(executors, len(os.sched_getaffinity(0)))
        theirs: list[list[int]] = []
        for _ in range(processes):
            complaint, stderr = os.pipe2(os.O_CLOEXEC)
            self.complaints.append(complaint)
            theirs.append([stderr])
        for number in range(executors):
            process = number % processes
            incoming, stdin = os.pipe2(os.O_CLOEXEC)
            stdout, outgoing = os.pipe2(os.O_CLOEXEC)
            self.channels.append(Channel(process, stdin, stdout))
            theirs[process] += (incoming, outgoing)
        descriptors = [fd for fds in theirs for fd in fds]
        with contextlib.suppress(ConnectionError):  # who listens for the answer hears that it has died
            socket.send_fds(self._line, [msgspec.json.encode([len(fds) for fds in theirs])], descriptors)
        for fd in descriptors:
            os.close(fd)
        self._ordered = True

    @property
    def answer(self) -> int:
        """Where it can be read that there is something to ``hear``."""
        return self._line.fileno()

    def hear(self) -> tuple[int, ...]:
        """The process ids, by process; waits for them. Raises ``EnvironmentUnfit`` or ``ProtocolError`` without any."""
        if not self._pids:
            said = self._line.recv(_LIMIT)
            if not said:
                raise ProtocolError("there are no executors", why="the process that was to fork them has died")
            answer = _ANSWER.decode(said)
            if isinstance(answer, str):
                raise _unfit(answer)
            self._pids = answer
            self._bury()
        return self._pids

    def dismiss(self) -> None:
        """Send those away that nobody has taken."""
        for each in self.channels:
            os.close(each.stdin)
            os.close(each.stdout)
        self.channels.clear()

    def close(self) -> None:
        """``dismiss``, and wait: when this returns, none of the processes is left."""
        self.dismiss()
        for fd in self.complaints:
            if fd >= 0:
                os.close(fd)
        self.speaker.close()
        if not self._ordered:
            os.kill(self._pid, signal.SIGKILL)
        try:
            ours = (*self.hear(), self.speaker.pid) if self._ordered else (self.speaker.pid,)
        except KanifoldError:
            ours = (-1,)  # what it had forked by then is ours all the same, and nothing else is any more
        self._bury()
        for pid in filter(None, ours):
            with contextlib.suppress(ChildProcessError):  # who has taken an executor has waited for it, too
                while True:
                    os.waitpid(pid, 0)
        self._line.close()

    def _bury(self) -> None:
        if self._pid:
            os.waitpid(self._pid, 0)
            self._pid = 0


@contextlib.contextmanager
def opened() -> Iterator[Nursery | None]:
    """A nursery, as long as this context lasts; None where executors do not run.

    To be called while this process has a single thread. Raises ``EnvironmentUnfit`` when there can be no process.
    """
    if sys.platform != "linux":
        yield None
        return
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    speaker, pipes = registries.prepared()
    try:
        pid = os.fork() or forking.live("kanifold-forks", partial(_nursery, theirs, pipes))
    except OSError as error:
        speaker.close()
        raise _unfit(error.strerror or str(error)) from error
    finally:
        theirs.close()
        for fd in pipes:
            os.close(fd)
    nursery = Nursery(pid, ours, speaker)
    try:
        yield nursery
    finally:
        nursery.close()


def _unfit(why: str) -> EnvironmentUnfit:
    return EnvironmentUnfit("cannot start executors", why=why)


def _nursery(line: socket.socket, pipes: tuple[int, int]) -> int:
    """The life of the nursery, which holds nothing open that is not its own."""
    forking.keep_only((line.fileno(), *pipes))

    from executor import __main__ as executor

    executor.preload_registries()
    try:
        _ = os.fork() or forking.live("kanifold-http", partial(registries.speak, *pipes))
    except OSError as error:
        registries.refuse(pipes[1], error.strerror or str(error))
    for fd in pipes:
        os.close(fd)
    order, descriptors, *_ = socket.recv_fds(line, _LIMIT, 3 * _MOST)
    if not order:
        return 0
    executor.preload()
    gc.freeze()  # else the collector of each executor writes to, and thereby copies, all that they share
    given = iter(descriptors)
    executors = [[next(given) for _ in range(count)] for count in _ORDER.decode(order)]
    answer: list[int] | str
    try:
        answer = [os.fork() or forking.live("kanifold-exec", partial(_executors, fds)) for fds in executors]
    except OSError as error:
        answer = error.strerror or str(error)
    with contextlib.suppress(ConnectionError):  # nobody waits for it any more
        line.send(msgspec.json.encode(answer))
    return int(isinstance(answer, str))


def _executors(fds: Sequence[int]) -> int:
    """Do a job for each pair of descriptors after the first, which is stderr."""
    from executor.serving import serve

    os.dup2(fds[0], 2)
    forking.keep_only(fds[1:])
    os.dup2(2, 1)  # what prints by mistake complains
    return serve(tuple(zip(fds[1::2], fds[2::2], strict=True)))
