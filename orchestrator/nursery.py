"""Where this machine's executors come from: a process that loads what they need while we load what we need.

It is forked as soon as it is known how many executors are wanted, with what both of us need loaded; it loads the rest,
forks them, says their process ids, and ends. As this process is their reaper (prctl(2), PR_SET_CHILD_SUBREAPER), they
are then its children, and lighter than if it had forked them itself, with all that it holds by then. They wait for
their jobs like any other executor.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, NoReturn

import msgspec

from platforms import syscalls
from platforms.errors import EnvironmentUnfit, KanifoldError, ProtocolError

_ANSWER_LIMIT: Final = 1 << 16
_ANSWER: Final[msgspec.json.Decoder[tuple[int, ...] | str]] = msgspec.json.Decoder(tuple[int, ...] | str)
"""The process ids, or why there are none."""


class Channel(msgspec.Struct, frozen=True):
    """Our ends of the pipes to an executor that waits for a job, or will."""

    process: int
    """Which of the nursery's processes it is in; several executors may share one."""
    stdin: int
    stdout: int


class Nursery:
    """Executors that have been ordered. ``hear`` which processes they are; ``close`` it in the end."""

    def __init__(self, pid: int, answer: int, channels: list[Channel], complaints: list[int]) -> None:
        self._pid = pid
        self._pids: tuple[int, ...] = ()
        self.answer = answer
        """Where the process ids can be read, for ``hear``."""
        self.channels = channels
        """Those that nobody has taken yet."""
        self.complaints = complaints
        """By process: where its stderr can be read. Whoever takes one leaves -1."""

    def hear(self) -> tuple[int, ...]:
        """The process ids, by process; waits for them. Raises ``EnvironmentUnfit`` or ``ProtocolError`` without any."""
        if not self._pids:
            said = os.read(self.answer, _ANSWER_LIMIT)
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
        try:
            ours = self.hear()
        except KanifoldError:
            ours = (-1,)  # what it had forked by then is ours all the same, and nothing else is any more
        os.close(self.answer)
        self._bury()
        for pid in ours:
            with contextlib.suppress(ChildProcessError):  # who has taken an executor has waited for it, too
                while True:
                    os.waitpid(pid, 0)

    def _bury(self) -> None:
        if self._pid:
            os.waitpid(self._pid, 0)
            self._pid = 0


@contextlib.contextmanager
def opened(executors: int) -> Iterator[Nursery | None]:
    """A nursery of ``executors``, as long as this context lasts; None where executors do not run.

    There are no more processes than processors: a further one would cost its start, and win nothing. To be called while
    this process has a single thread, and has loaded what executors need as well.
    """
    if sys.platform != "linux":
        yield None
        return
    try:
        nursery = _begin(executors, min(executors, len(os.sched_getaffinity(0))))
    except OSError as error:
        raise _unfit(error.strerror or str(error)) from error
    try:
        yield nursery
    finally:
        nursery.close()


def _unfit(why: str) -> EnvironmentUnfit:
    return EnvironmentUnfit("cannot start executors", why=why)


def _begin(executors: int, processes: int) -> Nursery:
    ours: list[int] = []
    theirs: list[list[int]] = []
    channels: list[Channel] = []
    for _ in range(processes):
        complaint, stderr = os.pipe2(os.O_CLOEXEC)
        ours.append(complaint)
        theirs.append([stderr])
    for number in range(executors):
        process = number % processes
        incoming, stdin = os.pipe2(os.O_CLOEXEC)
        stdout, outgoing = os.pipe2(os.O_CLOEXEC)
        channels.append(Channel(process, stdin, stdout))
        theirs[process] += (incoming, outgoing)
    answer, tell = os.pipe2(os.O_CLOEXEC)
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    pid = os.fork() or _live(partial(_nursery, tell, theirs))
    for fd in (tell, *(fd for fds in theirs for fd in fds)):
        os.close(fd)
    return Nursery(pid, answer, channels, ours)


def _live(life: Callable[[], int]) -> NoReturn:
    """Be a forked process of ours, which is no terminal's: do ``life``, and end with the status that it returns."""
    status = 1
    try:
        os.setsid()
        status = life()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def _nursery(tell: int, executors: Sequence[Sequence[int]]) -> int:
    """The life of the nursery, which holds nothing open that is not its own."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(null, stream)
    _keep_only((tell, *(fd for fds in executors for fd in fds)))

    from executor import __main__ as executor

    executor.preload()
    gc.freeze()  # else the collector of each executor writes to, and thereby copies, all that they share
    answer: list[int] | str
    try:
        answer = [os.fork() or _live(partial(_executors, fds)) for fds in executors]
    except OSError as error:
        answer = error.strerror or str(error)
    with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
        os.write(tell, msgspec.json.encode(answer))
    return int(isinstance(answer, str))


def _executors(fds: Sequence[int]) -> int:
    """Do a job for each pair of descriptors after the first, which is stderr."""
    from executor.serving import serve

    os.dup2(fds[0], 1)
    os.dup2(fds[0], 2)
    _keep_only(fds[1:])
    return serve(tuple(zip(fds[1::2], fds[2::2], strict=True)))


def _keep_only(fds: Sequence[int]) -> None:
    """Close all descriptors but ``fds`` and the standard streams."""
    last = 2
    for fd in sorted(fds):
        if fd > last + 1:
            syscalls.close_range(last + 1, fd - 1)
        last = fd
    syscalls.close_range(last + 1)
