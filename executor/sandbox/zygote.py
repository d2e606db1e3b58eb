"""The process that steps are forked from: small, single-threaded, and process 1 of a pid namespace.

It is forked from the executor before that has any thread. After the first packet it holds what steps need: loaded
modules, the staging area, the seccomp filters. Packets come over a socket:

    packet        PREPARE: a step is to come; CONNECT: one that needs the job's network
    descriptors   none; there is no answer

    packet        RUN
    descriptors   the reply socket, the packed Spec in memory, stdout, stderr, and those of BindFd mounts

The response is one packet on the reply socket. Spec and response are in the format of ``marshal``, unlike all other
messages (``platforms.framing``): file names and environments need not be UTF-8, as JSON requires; nothing has to be
loaded in a process whose start a step waits for; and both ends are the same program.

Shutting down the writing half of the requester's end cancels the step. As a step needs some milliseconds of
preparation, a process for the next one, with the same profile, is prepared while one runs. The kernel kills this
process when the executor dies; and when this process dies, the kernel kills all processes in its pid namespace, that is
all processes of steps, whose mounts go with them.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import marshal
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Final, NoReturn

import msgspec
from msgspec.structs import replace

from executor.sandbox import isolation, network, report, seccomp, spec, staging, step_process, targets
from executor.store import faults
from platforms import debug, syscalls
from platforms.descriptors import keep_only, receive_fds

NAMESPACES: Final = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID
_STEP: Final = NAMESPACES | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS
RUN: Final = b"run"
PREPARE: Final = b"prepare"
CONNECT: Final = b"connect"
_PACKET: Final = 1 << 17
FDS: Final = 250
"""Maximum number of descriptors in a packet: the kernel's SCM_MAX_FD is 253."""


class StepOutcome(msgspec.Struct, frozen=True):
    """The response on the reply socket. ``unfit``: why the host does not allow the step; "" if it does."""

    code: int = 0
    signal: int = 0
    oom: bool = False
    error: str = ""
    unfit: str = ""
    made: tuple[targets.Made, ...] = ()
    touched: tuple[targets.Touched, ...] = ()
    shared: str = ""
    devices: tuple[tuple[bytes, int, int, str, int, int], ...] = ()
    """Devices in whose place there are empty files: path, owner, group, ``c`` or ``b``, major and minor number."""

    def pack(self) -> bytes:
        return marshal.dumps(tuple(getattr(self, name) for name in self.__struct_fields__))

    @classmethod
    def unpack(cls, data: bytes) -> StepOutcome:
        return cls(*marshal.loads(data))


class _Running(msgspec.Struct, frozen=True):
    pid: int
    pidfd: int
    reply: socket.socket
    report: int
    """The reading end of the pipe on which the step's process reports what it made, or why it failed."""
    supervisor: int = 0
    """The process id of the supervisor, if there is one. It ends after the step, when everything is recorded."""
    tracer: int = 0
    """The process id of the tracer, if there is one. It ends after the step."""

    def kill(self) -> None:
        """Kill the step: with a tracer, which its end may wait for, its processes die too."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        if self.tracer:
            os.kill(self.tracer, signal.SIGKILL)


class _Prewarmed(msgspec.Struct, frozen=True):
    """A process that is prepared for any step of ``shape``."""

    shape: step_process.Profile
    pid: int
    pidfd: int
    report: int
    line: socket.socket
    """The socket on which it receives what the zygote received, except for the reply socket."""

    def discard(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        os.close(self.report)
        self.line.close()


def serve(control: socket.socket, net: network.Network, foreign: step_process.Foreign | None) -> NoReturn:
    """Serve requests until the other end of ``control`` is closed; then exit, and with this process all steps.

    ``foreign``: the programs that need a tracer.
    """
    single = isolation.id_limit() == 1
    filters = {
        (insecure, supervised): seccomp.program(
            confined=not insecure, single=supervised, traced=seccomp.EXECUTING if foreign else ""
        )
        for insecure in (False, True)
        for supervised in {False, single}
    }
    rules = step_process.Rules(
        single=single,
        filters=filters,
        network=net,
        sniffs=network.can_capture_packets(),
        scoped=syscalls.landlock_version() >= network.SCOPES,
        sees_others=staging.shows_outer_processes(),
        foreign=foreign,
    )
    proc = staging.proc_of_all() if single or foreign else -1
    if single:
        from executor.sandbox import owners  # noqa: F401
    if foreign:
        from executor.supervised import step_tracer  # noqa: F401
    kills = _Kills()
    poll = select.poll()
    poll.register(control, select.POLLIN)
    by_pidfd: dict[int, _Running] = {}
    by_reply: dict[int, _Running] = {}
    by_supervisor: dict[int, _Running] = {}
    spare: _Prewarmed | None = None
    # In a step's root, Python would import modules of the image. Everything needed is loaded.
    sys.meta_path.clear()
    gc.freeze()  # so that the collector does not write to, and thereby copy, memory shared with children
    gc.disable()
    while True:
        for fd, _ in poll.poll():
            if fd == control.fileno():
                packet, fds = receive_fds(control, _PACKET, FDS)
                if not packet:
                    debug.log("process ends")
                    os._exit(0)
                debug.log("packet", kind=packet.decode())
                if packet == CONNECT:
                    net.begin()
                if packet in (PREPARE, CONNECT):
                    continue
                running, spare = _begin(fds, rules, proc, spare)
                if running is not None:
                    by_pidfd[running.pidfd] = by_reply[running.reply.fileno()] = running
                    poll.register(running.pidfd, select.POLLIN)
                    poll.register(running.reply, select.POLLIN)
            elif fd in by_supervisor:
                poll.unregister(fd)
                os.close(fd)
                _end(by_supervisor.pop(fd), kills)
            elif fd in by_reply:  # cancelled
                debug.log("step cancelled")
                by_reply.pop(fd).kill()
                poll.unregister(fd)
            elif fd in by_pidfd:
                running = by_pidfd.pop(fd)
                poll.unregister(fd)
                if by_reply.pop(running.reply.fileno(), None):
                    poll.unregister(running.reply)
                if running.supervisor:
                    by_supervisor[pidfd := os.pidfd_open(running.supervisor)] = running
                    poll.register(pidfd, select.POLLIN)
                else:
                    _end(running, kills)


def _begin(
    fds: list[int], rules: step_process.Rules, proc: int, spare: _Prewarmed | None
) -> tuple[_Running | None, _Prewarmed | None]:
    """Start a step, in the pre-warmed process or a new one; None if that failed, which was reported.

    Returns the next pre-warmed process as well.
    """
    reply = socket.socket(fileno=fds[0])
    try:
        wanted = _read(fds[1], fds[4:])
        shape = step_process.Profile.of(wanted)
        if wanted.network == "isolated":
            rules.network.begin()
            rules.network.descriptors()
        if rules.supervised(wanted) or rules.foreign:
            return _start(wanted, fds, rules, proc, reply), spare
        running = None
        if spare is not None:
            if spare.shape == shape:
                running = _use(spare, fds, reply)
            if running is None:
                spare.discard()
        return running or _start(wanted, fds, rules, proc, reply), _prewarm(shape, rules)
    except OSError as error:
        _answer(reply, StepOutcome(unfit=f"cannot start a process in namespaces of its own: {error}"))
        return None, None
    finally:
        for fd in fds[1:]:
            os.close(fd)


def _read(packed: int, mounts: list[int]) -> spec.Spec:
    with open(packed, "rb", closefd=False) as file:
        file.seek(0)
        return spec.unpack(file.read(), mounts)


def _namespaces(shape: step_process.Profile) -> int:
    namespaces = _STEP | (syscalls.CLONE_NEWCGROUP if os.path.exists("/proc/self/ns/cgroup") else 0)
    return namespaces | (syscalls.CLONE_NEWNET if shape.network == "none" else 0)


def _use(spare: _Prewarmed, fds: list[int], reply: socket.socket) -> _Running | None:
    """Run the step in ``spare``; None if that process has ended, because preparation failed or it was killed."""
    try:
        socket.send_fds(spare.line, [RUN], fds[1:])
    except OSError:
        return None
    spare.line.close()
    debug.log("step given to the prepared process", pid_inside=spare.pid)
    return _Running(spare.pid, spare.pidfd, reply, spare.report)


def _start(wanted: spec.Spec, fds: list[int], rules: step_process.Rules, proc: int, reply: socket.socket) -> _Running:
    """Fork a step, and the processes beside it that are required."""
    told, tell = os.pipe()
    supervisor = _Companion() if rules.supervised(wanted) else None
    tracer = _Companion() if rules.foreign else None
    try:
        pid = syscalls.fork(_namespaces(step_process.Profile.of(wanted)))
        if pid == 0:
            beside = step_process.Beside(supervisor.steps if supervisor else None, tracer.steps if tracer else None)
            _child(wanted, (fds[2], fds[3]), rules, beside, report.StartReporter(tell))
        recording = supervisor.start(partial(_record_owners, wanted, proc)) if supervisor else 0
        tracing = tracer.start(partial(_trace, pid, rules.foreign, proc)) if tracer and rules.foreign else 0
    except OSError:
        os.close(told)
        raise
    finally:
        os.close(tell)
        for each in (supervisor, tracer):
            if each is not None:
                each.close()
    debug.log("step's process started", pid_inside=pid, supervisor=recording or "none", tracer=tracing or "none")
    return _Running(pid, os.pidfd_open(pid), reply, told, recording, tracing)


def _prewarm(shape: step_process.Profile, rules: step_process.Rules) -> _Prewarmed | None:
    """Fork a process for the next step of ``shape``; None if that fails, which the next step will report."""
    told, tell = os.pipe()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        pid = syscalls.fork(_namespaces(shape))
        if pid == 0:
            _wait_for_step(shape, rules, theirs, report.StartReporter(tell))
        return _Prewarmed(shape, pid, os.pidfd_open(pid), told, ours)
    except OSError:
        os.close(told)
        ours.close()
        return None
    finally:
        os.close(tell)
        theirs.close()


def _wait_for_step(
    shape: step_process.Profile, rules: step_process.Rules, line: socket.socket, told: report.StartReporter
) -> NoReturn:
    try:
        keep_only(line.fileno(), told.fd, *rules.network.descriptors())
        prepared = step_process.prepare(shape)
        packet, fds = receive_fds(line, _PACKET, FDS)
        if packet:
            _become(_read(fds[0], fds[3:]), prepared, (fds[1], fds[2]), rules, step_process.Beside(), told)
    finally:
        os._exit(report.NOT_SET_UP)


class _Companion:
    """A process beside a step, and a socket between the two."""

    def __init__(self) -> None:
        self.steps, self.own = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def start(self, main: Callable[[socket.socket], NoReturn]) -> int:
        """Fork the process, which calls ``main`` with its end of the socket; return its id."""
        pid = syscalls.fork(0)
        if pid == 0:
            try:
                main(self.own)
            except BaseException as error:
                os.write(2, f"kanifold: a process beside a step has failed: {error!r}\n".encode())
            finally:
                os._exit(1)
        return pid

    def close(self) -> None:
        self.steps.close()
        self.own.close()


def _record_owners(wanted: spec.Spec, proc: int, line: socket.socket) -> NoReturn:
    from executor.sandbox import owners

    stacks = owners.mounted_stacks(wanted)
    keep_only(line.fileno(), proc)
    owners.supervise(line, wanted, stacks, proc)


def _trace(pid: int, foreign: step_process.Foreign, proc: int, line: socket.socket) -> NoReturn:
    from executor.supervised import step_tracer

    syscalls.set_name("kanifold-tracer")
    keep_only(line.fileno(), proc)
    _, mounts = receive_fds(line, _PACKET, 1)  # when the step's root file system is complete
    if not mounts:  # it did not get that far
        os._exit(0)
    try:
        syscalls.setns(mounts[0], syscalls.CLONE_NEWNS)  # and have its root directory
        os.close(mounts[0])
        tracer = step_tracer.attached(pid, foreign.architecture, foreign.emulator, proc)
    except OSError as error:
        line.send(str(error).encode())
        os._exit(0)
    line.send(step_process.TRACED)
    line.close()
    tracer.run(pid)
    os._exit(0)


def _child(
    wanted: spec.Spec,
    output: tuple[int, int],
    rules: step_process.Rules,
    beside: step_process.Beside,
    told: report.StartReporter,
) -> NoReturn:
    """Become the step, or report why not. Never returns."""
    try:
        prepared = step_process.prepare(step_process.Profile.of(wanted))
    except BaseException as error:
        told.unfit(_cannot_prepare(error))
        os._exit(report.NOT_SET_UP)
    _become(wanted, prepared, output, rules, beside, told)


def _become(
    wanted: spec.Spec,
    prepared: step_process.PreparedStep,
    output: tuple[int, int],
    rules: step_process.Rules,
    beside: step_process.Beside,
    told: report.StartReporter,
) -> NoReturn:
    try:
        step_process.become(wanted, prepared, output, rules, beside, told)
    except step_process.RefusedError as refused:
        told.refused(refused.code, str(refused))
    except step_process.UnfitError as unfit:
        told.unfit(str(unfit))
    except BaseException as error:
        told.unfit(_cannot_prepare(error))
    finally:
        os._exit(report.NOT_SET_UP)


def _cannot_prepare(error: BaseException) -> str:
    return f"cannot put the step's root file system together: {error}"


def _end(running: _Running, kills: _Kills) -> None:
    """Respond for a step whose process has ended, and with it all others of its pid namespace."""
    _, status = os.waitpid(running.pid, 0)
    os.close(running.pidfd)
    told = report.read(running.report)
    for companion, what in (
        (running.supervisor, "records the owners of a step's files"),
        (running.tracer, "traces it"),
    ):
        if companion and (ended := os.waitpid(companion, 0)[1]) and not told.unfit:
            if os.waitstatus_to_exitcode(ended) == errno.ENAMETOOLONG:
                told = replace(told, code=report.NOT_SET_UP, error=faults.TOO_LONG)
            else:
                told = replace(told, unfit=f"the process that {what} has died", error="")
    code = os.waitstatus_to_exitcode(status)
    debug.log("step's process ended", pid_inside=running.pid, status=code)
    killed = -code if code < 0 else 0
    code = 128 + killed if killed else code
    if told.error or told.unfit:
        code, killed = told.code, 0
    oom = code == 128 + signal.SIGKILL and kills.more()
    _answer(running.reply, StepOutcome(code, killed, oom, told.error, told.unfit, told.made, told.touched, told.shared))


def _answer(reply: socket.socket, answer: StepOutcome) -> None:
    with reply, contextlib.suppress(OSError):  # the requester may be gone
        reply.send(answer.pack())


class _Kills:
    """The kernel's count of OOM kills, in our control group or, without one, on the host."""

    def __init__(self) -> None:
        self.last = self.count()

    def more(self) -> bool:
        """Whether there were kills since the last call."""
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
