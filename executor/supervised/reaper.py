"""The process that runs one step where there are no pid namespaces: when the step has ended, nothing of it is left.

The step's supervisor adopts every process of the step whose own parent ends (PR_SET_CHILD_SUBREAPER), and this process
does when that one has ended. So all of them are below it. When
the step's first process has ended, when the step is cancelled, or when the zygote dies, it kills them all. Landlock's
signal scope (Linux 6.12), in which the reaper is with the step, makes that one call: ``kill(-1)`` reaches every process
that the reaper may signal, at once, so that no process can fork faster than it is killed. The step's own domain is
inside of the reaper's and reaches neither the reaper nor the supervisor. Without scopes children are killed until there
are none; the supervisor, the first, takes with it the permission to make further ones.

What the step needed in its root is put there before, and taken out after (``placements``).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec
from msgspec.structs import replace

from executor.sandbox import report, roots, staging
from executor.sandbox.step_process import TRACED, RefusedError
from executor.sandbox.zygote import StepOutcome
from executor.snapshotter.rootfs import Directory
from executor.supervised import chroot_step, step_files, step_tracer
from executor.supervised.callers import Outside
from executor.supervised.placements import PlacedFiles
from executor.supervised.proc_files import ProcFiles
from executor.supervised.step_children import NUMBER, StepChildren
from executor.supervised.supervisor import Supervisor
from platforms import child_processes, debug, syscalls
from platforms.descriptors import keep_only, receive_fds

if TYPE_CHECKING:
    from executor.sandbox.spec import Spec
    from executor.snapshotter.records import Record
    from executor.supervised.step_files import Answered

CANCELLED: Final = "the process that starts build steps has died"
"""What a step ended for that was cancelled: nobody reads it if that was by the requester."""
_UNSUPERVISED: Final = "the process that answers or traces a step's system calls has died"
NO_EMULATOR: Final = ("", "")


class CannotKillError(OSError):
    """Processes cannot be killed without reaching others."""


def confine_signals() -> bool:
    """Enter a Landlock domain from which nothing outside can be signalled; False where there are none (Linux 6.12).

    Raises OSError if it can be nevertheless.
    """
    syscalls.no_new_privileges()
    if not chroot_step.has_scopes():
        syscalls.landlock_domain()
        return False
    syscalls.landlock_domain(syscalls.LANDLOCK_SCOPE_SIGNAL)
    try:
        os.kill(os.getppid(), 0)
    except PermissionError:
        return True
    raise CannotKillError("Landlock does not keep signals from other processes")


def kill_all(*, confined: bool) -> None:
    """Kill and reap every process below this one, which has called ``adopt_orphans``.

    ``confined``: whether its signals reach no others (``confine_signals``).
    """
    child_processes.end_all(_kill_others if confined else child_processes.kill_children)


def _kill_others() -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(-1, signal.SIGKILL)


class Reaper:
    """Runs the step ``spec``, whose answer goes to ``reply``. In a process of its own.

    ``emulator``: an architecture and the path of the program that a tracer starts its programs by.
    """

    def __init__(self, spec: Spec, reply: socket.socket, output: tuple[int, int], emulator: tuple[str, str]) -> None:
        self._spec = spec
        self._emulator = emulator
        self._reply = reply
        self._output = output
        self._wake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for each in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(each, _noted)
        self._statuses: dict[int, int] = {}
        """Of children that have ended."""
        self._cancelled = False
        self._scratch = os.path.dirname(os.path.dirname(roots.written(spec.rootfs)))
        """The directory of the job in the store's directory for temporary files."""
        self._confined = False
        """Whether ``kill(-1)`` reaches the processes below this one only."""

    def run(self) -> StepOutcome:
        """Run the step to its end. Afterwards none of its processes is left, and its root has its changes only."""
        rootfs = self._spec.rootfs
        if not isinstance(rootfs, Directory):
            return StepOutcome(unfit="overlays cannot be mounted here: the plain snapshotter is needed")
        if self._spec.insecure:
            return StepOutcome(unfit="a step in a chroot has no privileges to give up: --security=insecure")
        if os.statvfs(rootfs.path).f_flag & os.ST_NOEXEC:
            return StepOutcome(unfit=f"cannot use {roots.described(rootfs)}: {staging.NO_PROGRAMS}")
        try:
            self._confined = confine_signals()
            placements = PlacedFiles(rootfs)
        except OSError as error:
            return StepOutcome(unfit=str(error))
        answered = None
        try:
            if not self._confined:
                # By abstract sockets, which Landlock keeps apart from Linux 6.12 on, two steps could hand each other a
                # directory, and with it the way out of their roots: one at a time runs in a store.
                step_files.hold(os.path.dirname(self._scratch), self._is_cancelled)
            answered = step_files.put_all(placements, self._spec, self._is_cancelled, self._emulator[1])
            outcome = self._run(placements, answered)
        except RefusedError as refused:
            outcome = StepOutcome(refused.code, error=str(refused))
        except OSError as error:
            outcome = StepOutcome(unfit=str(error))
        finally:
            kill_all(confined=self._confined)
            placements.take_out()
        made, touched = tuple(placements.root.made), tuple(placements.root.touched.values())
        devices = tuple(marshalled(each) for each in answered.devices.left(rootfs.path)) if answered else ()
        return replace(outcome, made=made, touched=touched, devices=devices)

    def _is_cancelled(self) -> bool:
        """Whether the step was cancelled. Does not wait."""
        poll = select.poll()
        poll.register(self._reply, select.POLLIN)
        self._cancelled = self._cancelled or bool(poll.poll(0)) or self._terminated()
        return self._cancelled

    def _run(self, placements: PlacedFiles, answered: Answered) -> StepOutcome:
        ours, theirs = socket.socketpair()
        told, tell = os.pipe2(os.O_CLOEXEC)
        ended, end = os.pipe2(os.O_CLOEXEC)
        traced = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) if self._emulator[0] else None
        lines = theirs, traced[0] if traced else None
        root, reporter = placements.fd, report.StartReporter(tell)
        step = partial(_become, self._spec, root, self._output, lines, reporter)
        supervisor = _forked(lambda: _supervise(step, ours, root, answered, self._spec.hostname, end))
        for line in (ours, theirs):
            line.close()
        for fd in (tell, end, *self._output):
            os.close(fd)
        first = _number(ended)
        beside: list[int] = []
        if traced is not None:
            beside.append(_forked(lambda: _trace(traced[1], first, root, self._emulator)))
            for line in traced:
                line.close()
        debug.log("step's process started", pid=first, supervisor=supervisor, tracer=beside[0] if beside else "none")
        self._wait(first, ended, (supervisor, *beside))
        failed = not self._cancelled and any(self._has_failed(each) for each in (supervisor, *beside))
        kill_all(confined=self._confined)
        said = report.read(told)
        if said.error or said.unfit:
            return StepOutcome(said.code, error=said.error, unfit=said.unfit)
        if self._cancelled:
            return StepOutcome(unfit=CANCELLED)
        if first not in self._statuses:
            return StepOutcome(unfit=_UNSUPERVISED)
        code = os.waitstatus_to_exitcode(self._statuses[first])
        if failed:
            return StepOutcome(unfit=_UNSUPERVISED)
        debug.log("step's process ended", pid=first, status=code)
        return StepOutcome(128 - code, -code) if code < 0 else StepOutcome(code)

    def _wait(self, first: int, ended: int, beside: tuple[int, ...]) -> None:
        """Wait until the process ``first`` has ended, whose status is read from ``ended``, or one ``beside`` it has
        failed, or the step is cancelled."""
        poll = select.poll()
        for fd in (self._wake, self._reply.fileno(), ended):
            poll.register(fd, select.POLLIN)
        # Those beside it may see the end earlier.
        while first not in self._statuses and not any(self._statuses.get(each) for each in beside):
            for fd, event in poll.poll():
                if fd == ended:
                    if event & select.POLLIN and (status := os.read(ended, NUMBER.size)):
                        self._statuses[first] = NUMBER.unpack(status)[0]
                    else:  # its supervisor has died
                        poll.unregister(ended)
                elif fd != self._wake or self._terminated():
                    self._cancelled = True
                    return
            self._reap()

    def _has_failed(self, pid: int) -> bool:
        """Whether the process ``pid`` beside the step has failed.

        One that has no files any more is ending, and the step may have seen that before this process could: the calls
        that it should have answered have failed.
        """
        if pid not in self._statuses and not _has_files(pid):
            self._statuses[pid] = os.waitpid(pid, 0)[1]
        return bool(self._statuses.get(pid))

    def _terminated(self) -> bool:
        """Whether the zygote has died, or wants this process to end."""
        try:
            return signal.SIGTERM in os.read(self._wake, 4096)
        except BlockingIOError:
            return False

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._statuses[ended[0]] = ended[1]


def marshalled(record: Record) -> tuple[bytes, int, int, str, int, int]:
    """Return the record of a device as ``StepOutcome.devices`` has it."""
    assert record.device is not None
    return record.path, record.uid, record.gid, record.device.letter, record.device.major, record.device.minor


def serve(
    spec: Spec, reply: socket.socket, output: tuple[int, int], emulator: tuple[str, str] = NO_EMULATOR
) -> NoReturn:
    """The main function of the reaper's process."""
    try:
        parent = os.getppid()
        syscalls.adopt_orphans()
        syscalls.set_name("kanifold-reap")
        reaper = Reaper(spec, reply, output, emulator)
        syscalls.die_with_parent(signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)
        outcome = reaper.run()
        with contextlib.suppress(OSError):  # the requester may be gone
            reply.send(outcome.pack())
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(1)


def _has_files(pid: int) -> bool:
    """Whether a child has files open: not while it ends."""
    try:
        return bool(os.listdir(f"/proc/{pid}/fd"))
    except PermissionError:  # its memory cannot be read: it still has some, which a process gives up before its files
        return True


def _noted(_signal: int, _frame: object) -> None:
    """A signal whose arrival is told by the descriptor for waking up."""


def _forked(main: Callable[[], NoReturn]) -> int:
    """Fork a process that executes ``main``; return its number."""
    pid = syscalls.fork(0)
    if pid == 0:
        try:
            main()
        finally:
            os._exit(report.NOT_SET_UP)
    return pid


def _become(
    spec: Spec,
    root: int,
    output: tuple[int, int],
    lines: tuple[socket.socket, socket.socket | None],
    told: report.StartReporter,
) -> NoReturn:
    try:
        chroot_step.become(spec, root, output, *lines, told)
    except RefusedError as refused:
        told.refused(refused.code, str(refused))
    except BaseException as error:
        told.unfit(f"cannot start a step in a chroot: {error}")
    finally:
        os._exit(report.NOT_SET_UP)


def _trace(line: socket.socket, first: int, root: int, emulator: tuple[str, str]) -> NoReturn:
    """The main function of the tracer's process: it traces the step's process ``first``."""
    syscalls.die_with_parent()
    syscalls.set_name("kanifold-tracer")
    signal.set_wakeup_fd(-1)
    for each in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(each, signal.SIG_DFL)
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    keep_only(line.fileno(), root, proc)
    os.fchdir(root)
    os.chroot(".")
    os.chdir("/")
    os.close(root)
    if not line.recv(16):  # the step did not get that far
        os._exit(0)
    try:
        tracer = step_tracer.attached(first, emulator[0], step_files.emulator_path(emulator[1]), proc)
    except OSError as error:
        line.send(str(error).encode())
        os._exit(0)
    line.send(TRACED)
    line.close()
    tracer.run(first)
    os._exit(0)


def _number(ended: int) -> int:
    """Return the number of the step's first process, which its supervisor tells; 0 if it has died."""
    data = os.read(ended, NUMBER.size)
    return int(NUMBER.unpack(data)[0]) if data else 0


def _supervise(
    step: Callable[[], NoReturn], line: socket.socket, root: int, answered: Answered, hostname: str, tell: int
) -> NoReturn:
    """The main function of the supervisor's process. Its child, the first process of the step, executes ``step``.

    ``line``: for the listener of the step's filter; ``tell`` as for ``StepChildren``.
    """
    syscalls.die_with_parent()
    syscalls.set_name("kanifold-answer")
    signal.set_wakeup_fd(-1)
    for each in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(each, signal.SIG_DFL)
    syscalls.adopt_orphans()
    children = StepChildren(_forked(step), tell)
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    outside = Outside(os.open("/proc", flags), os.open("/dev", flags), os.open("/sys", flags))
    held = (*msgspec.structs.astuple(outside), answered.proc, answered.devices.fd, *answered.secrets.values())
    keep_only(line.fileno(), root, tell, children.fd, *held)
    os.fchdir(root)
    os.chroot(".")
    os.chdir("/")
    os.close(root)
    _, fds = receive_fds(line, 16, 1)
    line.close()
    if fds:
        proc = ProcFiles(outside.proc, os.getpid())
        Supervisor(fds[0], outside, proc, answered, hostname).run(children)
    else:  # the step did not get that far
        while children.reap():
            select.select((children.fd,), (), ())
    os._exit(0)
