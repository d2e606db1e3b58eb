"""The process that steps are forked from: small, single-threaded, and process 1 of a pid namespace of its own.

It is forked from the executor before that has any thread, and keeps what a step needs ready: this code loaded, the
workshop furnished, the filters computed. Requests come over a socket of packets, each with its descriptors:

    packet        b"run"
    descriptors   the reply socket, the packed Spec in memory, stdin, stdout, stderr, and those of BindFd mounts

and the answer goes back over the reply socket, as one packet. The requester's end closing its writing half means:
cancel. When the executor dies, the kernel kills this process; when this process dies, however it does, the kernel
kills all that runs in its pid namespace, which is every process of every step; and their mounts go with them.
"""

from __future__ import annotations

import contextlib
import gc
import marshal
import os
import select
import signal
import socket
import sys
from typing import Final, NoReturn

import msgspec

from executor.sandbox import isolation, seccomp, spec, step, targets, workshop
from platforms import syscalls

NAMESPACES: Final = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID
_STEP: Final = NAMESPACES | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS
_PACKET: Final = 1 << 17
FDS: Final = 250
"""Descriptors in one packet: the kernel's SCM_MAX_FD is 253."""


class Answer(msgspec.Struct, frozen=True):
    """What goes back over the reply socket. ``unfit`` is why the host does not allow it; "" when it does."""

    code: int = 0
    signal: int = 0
    oom: bool = False
    error: str = ""
    unfit: str = ""
    made: tuple[targets.Made, ...] = ()
    touched: tuple[targets.Touched, ...] = ()

    def pack(self) -> bytes:
        return marshal.dumps(tuple(getattr(self, name) for name in self.__struct_fields__))

    @classmethod
    def unpack(cls, data: bytes) -> Answer:
        return cls(*marshal.loads(data))


class _Running(msgspec.Struct, frozen=True):
    pid: int
    pidfd: int
    reply: socket.socket
    report: int
    """The reading end of the pipe over which the step's process tells what it made, or why it failed."""
    supervisor: int = 0
    """The process id of the supervisor, if there is one. It ends by itself."""


def serve(control: socket.socket) -> NoReturn:
    """Answer requests until the other end of ``control`` is closed; then end, and everything below with it."""
    namespaces = _STEP | (syscalls.CLONE_NEWCGROUP if os.path.exists("/proc/self/ns/cgroup") else 0)
    single = isolation.id_limit() == 1
    filters = {
        (insecure, supervised): seccomp.program(confined=not insecure, single=supervised)
        for insecure in (False, True)
        for supervised in {False, single}
    }
    rules = step.Rules(single, filters)
    proc = workshop.proc_of_all() if single else -1
    if single:
        from executor.sandbox import owners  # noqa: F401
    kills = _Kills()
    poll = select.poll()
    poll.register(control, select.POLLIN)
    by_pidfd: dict[int, _Running] = {}
    by_reply: dict[int, _Running] = {}
    supervisors: dict[int, int] = {}
    # From a step's new root, Python would import what the image has there. Whatever is needed is loaded by now.
    sys.meta_path.clear()
    gc.collect()
    gc.freeze()  # so that the collector does not write to, and thereby copy, what children share with us
    gc.disable()
    while True:
        for fd, _ in poll.poll():
            if fd == control.fileno():
                packet, fds, _, _ = socket.recv_fds(control, _PACKET, FDS, socket.MSG_CMSG_CLOEXEC)
                if not packet:
                    os._exit(0)
                if (running := _begin(fds, namespaces, rules, proc)) is not None:
                    by_pidfd[running.pidfd] = by_reply[running.reply.fileno()] = running
                    poll.register(running.pidfd, select.POLLIN)
                    poll.register(running.reply, select.POLLIN)
                    if running.supervisor:
                        supervisors[pidfd := os.pidfd_open(running.supervisor)] = running.supervisor
                        poll.register(pidfd, select.POLLIN)
            elif fd in supervisors:
                poll.unregister(fd)
                os.close(fd)
                os.waitpid(supervisors.pop(fd), 0)
            elif fd in by_reply:  # cancelled
                signal.pidfd_send_signal(by_reply.pop(fd).pidfd, signal.SIGKILL)
                poll.unregister(fd)
            elif fd in by_pidfd:
                running = by_pidfd.pop(fd)
                poll.unregister(fd)
                if by_reply.pop(running.reply.fileno(), None):
                    poll.unregister(running.reply)
                _end(running, kills)


def _begin(fds: list[int], namespaces: int, rules: step.Rules, proc: int) -> _Running | None:
    """Fork a step, and its supervisor if it needs one; None when that failed and the answer is given."""
    reply = socket.socket(fileno=fds[0])
    report, report_write = os.pipe()
    try:
        with open(fds[1], "rb") as packed:
            packed.seek(0)
            wanted = spec.unpack(packed.read(), fds[5:])
        if wanted.network == "none":
            namespaces |= syscalls.CLONE_NEWNET
        line = socket.socketpair() if rules.supervised(wanted) else None
        pid = syscalls.fork(namespaces)
        if pid == 0:
            _child(wanted, (fds[2], fds[3], fds[4]), rules, line[0] if line else None, report_write)
        supervisor = _supervisor(line, pid, wanted.upper, proc) if line else 0
        return _Running(pid, os.pidfd_open(pid), reply, report, supervisor)
    except OSError as error:
        os.close(report)
        _answer(reply, Answer(unfit=f"cannot start a process in namespaces of its own: {error}"))
        return None
    finally:
        os.close(report_write)
        for fd in fds[2:]:
            os.close(fd)


def _supervisor(line: tuple[socket.socket, socket.socket], pid: int, upper: str, proc: int) -> int:
    """Fork the supervisor of the step ``pid``; closes ``line``."""
    theirs, ours = line
    supervisor = syscalls.fork(0)
    if supervisor == 0:
        try:
            keep_only(ours.fileno(), proc)
            from executor.sandbox import owners

            owners.supervise(ours, pid, upper, proc)
        finally:
            os._exit(1)
    theirs.close()
    ours.close()
    return supervisor


def keep_only(*fds: int) -> None:
    """Close all descriptors but these and standard error, and put /dev/null in the place of the other streams."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(null, 1)
    first = 3
    for fd in sorted(fds):
        if fd > first:
            syscalls.close_range(first, fd - 1)
        first = fd + 1
    syscalls.close_range(first)


def _child(
    wanted: spec.Spec,
    stdio: tuple[int, int, int],
    rules: step.Rules,
    supervisor: socket.socket | None,
    report: int,
) -> NoReturn:
    """Become the step, or report why not. Never returns into the server's loop."""
    made: tuple[tuple[targets.Made, ...], tuple[targets.Touched, ...]] = ((), ())

    def tell(code: int = 0, error: str = "", unfit: str = "") -> None:
        os.write(report, Answer(code, 0, False, error, unfit, *made).pack())

    def mounted(root: targets.Root) -> None:
        nonlocal made
        made = (tuple(root.made), tuple(root.touched.values()))
        if any(made):
            tell()

    try:
        step.become(wanted, stdio, rules, supervisor, mounted)
    except step.RefusedError as refused:
        tell(refused.code, str(refused))
    except step.UnfitError as unfit:
        tell(unfit=str(unfit))
    except BaseException as error:
        tell(unfit=f"cannot put the step's root file system together: {error}")
    finally:
        os._exit(step.NOT_SET_UP)


def _end(running: _Running, kills: _Kills) -> None:
    """Answer for a step whose process has ended, and with it all others of its pid namespace."""
    _, status = os.waitpid(running.pid, 0)
    os.close(running.pidfd)
    # The process tells once that all mounts are made, and again if it fails after that: the last word counts.
    told = Answer()
    with open(running.report, "rb") as report:
        while True:
            try:
                told = Answer(*marshal.load(report))
            except EOFError:
                break
    code = os.waitstatus_to_exitcode(status)
    killed = -code if code < 0 else 0
    code = 128 + killed if killed else code
    if told.error or told.unfit:
        code, killed = told.code, 0
    oom = code == 128 + signal.SIGKILL and kills.more()
    _answer(running.reply, Answer(code, killed, oom, told.error, told.unfit, told.made, told.touched))


def _answer(reply: socket.socket, answer: Answer) -> None:
    with reply, contextlib.suppress(OSError):  # nobody may be waiting any more
        reply.send(answer.pack())


class _Kills:
    """The kernel's count of processes killed for want of memory, in our control group or, without one, on the host."""

    def __init__(self) -> None:
        self.last = self.count()

    def more(self) -> bool:
        """Whether there have been kills since the last time."""
        last, self.last = self.last, self.count()
        return self.last > last

    def count(self) -> int:
        for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control", "/proc/vmstat"):
            try:
                with open(path, "rb") as file:
                    for line in file:
                        name, _, value = line.partition(b" ")
                        if name == b"oom_kill":
                            return int(value)
            except OSError:
                continue
        return 0
