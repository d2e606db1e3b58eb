"""The process that runs one step whose path calls are answered: its parent, its tracer and its supervisor in one.

It starts the step's first process, answers the calls that the step's filter sends (``answers``), and traces the threads
for execve(2) and for who makes whom (``tracer``). All with one thread: a call is answered when the table of threads is
up to date, and a new thread does not run before it is in the table. When the first process has ended, or the step is
cancelled, all others are killed; when this process is killed, the kernel kills them (PTRACE_O_EXITKILL).

The step has the same user as the executor. What keeps it from the executor's processes: they are not dumpable; the
filter refuses to trace and to read other processes; signals go to processes of the step only; and where the kernel has
Landlock, the step can open no path and signal nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
from typing import TYPE_CHECKING, Final, NoReturn

from msgspec.structs import replace

from executor.sandbox import cgroup, report, roots, seccomp, staging, step_process
from executor.sandbox.listener import Listener
from executor.sandbox.step_process import RefusedError
from executor.sandbox.zygote import StepOutcome
from executor.snapshotter.rootfs import Directory
from executor.store import faults, removal
from executor.supervised import answered_calls, answered_filter
from executor.supervised.answered_files import AnsweredFiles
from executor.supervised.answered_tracer import AnsweredTracer
from executor.supervised.call_answers import CallAnswers
from executor.supervised.file_metadata import FileMetadata, MetadataTable
from executor.supervised.file_view import AT_FDCWD, FileView, FoundFile
from executor.supervised.mount_table import mount_table
from executor.supervised.placements import PlacedFiles
from executor.supervised.processes import Credentials, FileSystemState, Process, Processes, WorkingDirectory
from executor.supervised.program_copies import ProgramCopies
from executor.supervised.reaper import CANCELLED
from executor.supervised.step_context import StepContext
from executor.supervised.step_proc import StepProc
from platforms import debug, syscalls
from platforms.descriptors import close_others, receive_fds

if TYPE_CHECKING:
    from executor.sandbox.spec import Spec

_UMASK: Final = 0o022
_SIGNALS: Final = (signal.SIGTERM, signal.SIGCHLD)
_SIGNAL: Final = 128
"""Bytes of a signal as it is read from its descriptor."""
_SCOPES: Final = syscalls.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | syscalls.LANDLOCK_SCOPE_SIGNAL
SCOPED: Final = 6
"""The first version of Landlock that knows these."""
_GO: Final = b"go"
_FILTER: Final = syscalls.SECCOMP_FILTER_FLAG_NEW_LISTENER | syscalls.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV


class AnsweredStep:
    """Runs the step ``spec``, whose answer goes to ``reply``. In a process of its own.

    ``emulator``: an architecture and the path of a program of this host that runs its programs; "" for none.
    """

    def __init__(
        self, spec: Spec, reply: socket.socket, output: tuple[int, int], emulator: tuple[str, str] = ("", "")
    ) -> None:
        self._spec = spec
        self._reply = reply
        self._output = output
        self._emulator = emulator
        # Blocked for good: one that arrives while a descriptor is added would have the caller get another one.
        # Nor may SIGIO end this process, when somebody outside writes to a program while it is looked at.
        signal.pthread_sigmask(signal.SIG_BLOCK, (*_SIGNALS, signal.SIGIO))
        self._signals = syscalls.signal_descriptor(_SIGNALS)
        self._statuses: dict[int, int] = {}
        self._cancelled = False

    def run(self) -> StepOutcome:
        """Run the step to its end. Afterwards none of its processes is left, and its root has its changes only."""
        rootfs = self._spec.rootfs
        if not isinstance(rootfs, Directory):
            return StepOutcome(unfit="overlays cannot be mounted here: the plain snapshotter is needed")
        if self._spec.insecure:
            return StepOutcome(unfit="a step without privileges has none to give up: --security=insecure")
        if os.statvfs(rootfs.path).f_flag & os.ST_NOEXEC:
            return StepOutcome(unfit=f"cannot use {roots.described(rootfs)}: {staging.NO_PROGRAMS}")
        os.umask(0)
        place = f"{os.path.dirname(rootfs.path)}/step"
        programs = f"{os.path.dirname(rootfs.path)}/programs"
        table = files = None
        try:
            syscalls.no_new_privileges()
            syscalls.capset(0, 0, 0)
            os.mkdir(place, 0o700)
            os.mkdir(f"{place}/cwd", 0o700)
            with contextlib.suppress(FileExistsError):
                os.mkdir(programs, 0o755)
            placements = PlacedFiles(rootfs)
        except OSError as error:
            return StepOutcome(unfit=f"cannot run a step here: {error}")
        try:
            table = MetadataTable(rootfs.path)
            files = AnsweredFiles(rootfs.path, place, table, placements)
            files.put_all(self._spec)
            outcome = self._run(files, table, place, programs)
        except RefusedError as refused:
            outcome = StepOutcome(refused.code, error=str(refused))
        except OSError as error:
            outcome = StepOutcome(unfit=f"cannot run a step here: {error}")
        finally:
            if files is not None:
                files.uncover()
            placements.take_out()
            if table is not None:
                try:
                    table.write()
                except OSError as error:
                    what = "cannot record the metadata of a step's files"
                    if error.errno == errno.ENAMETOOLONG:
                        outcome = StepOutcome(report.NOT_SET_UP, error=f"{what}: {faults.TOO_LONG}")
                    else:
                        outcome = StepOutcome(unfit=f"{what}: {error}")
            with contextlib.suppress(OSError):
                removal.remove_tree(place)
        made, touched = tuple(placements.root.made), tuple(placements.root.touched.values())
        return replace(outcome, made=made, touched=touched)

    def _run(self, files: AnsweredFiles, table: MetadataTable, place: str, programs: str) -> StepOutcome:
        processes = Processes()
        proc = StepProc(processes, f"{place}/proc", mount_table(self._spec))
        view = FileView(files.mounts, files.covered, proc)
        proc.root = view.root.fd
        spec = self._spec
        credentials = Credentials((spec.uid,) * 4, (spec.gid,) * 4, tuple(sorted(spec.groups)))
        cwd = WorkingDirectory(os.dup(view.root.fd), readonly=False)
        fs = FileSystemState(cwd, _UMASK)
        fs.cwd = _working_directory(view, table, Process(os.getpid(), 0, fs, credentials, b""), spec.cwd)

        ours, theirs = socket.socketpair()
        told, tell = os.pipe2(os.O_CLOEXEC)
        first = syscalls.fork(0)
        if first == 0:
            ours.close()
            _become(spec, self._output, theirs, report.StartReporter(tell), (place, programs, self._emulator[1]))
        theirs.close()
        os.close(tell)
        for fd in self._output:
            table.set(os.fstat(fd), FileMetadata(spec.uid))
            os.close(fd)
        processes.first = first
        processes.threads[first] = Process(first, first, fs, credentials, b"")
        rule = ProgramCopies(view, table, processes, programs, self._emulator)
        proc_fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        tracer = AnsweredTracer({"execve": rule, "execveat": rule}, proc_fd, processes)
        try:
            fds: list[int] = []
            if ours.recv(len(_GO)):  # it is dumpable
                tracer.seize(first)
                ours.send(_GO)
                _, fds = receive_fds(ours, 16, 1)
            if fds:
                listener = Listener(fds[0], seccomp.calls(answered_calls.ANSWERED))
                context = StepContext(listener, view, table, processes, place)
                context.devices, context.hostname = files.devices, spec.hostname
                self._serve(listener, CallAnswers(context), tracer, first)
        finally:
            ours.close()
            self._kill_all(processes, tracer)
            os.close(proc_fd)
        return self._outcome(first, report.read(told))

    def _serve(self, listener: Listener, answers: CallAnswers, tracer: AnsweredTracer, first: int) -> None:
        """Answer calls until the process ``first`` has ended or the step is cancelled."""
        poll = select.poll()
        for fd in (listener.fd, self._signals, self._reply.fileno()):
            poll.register(fd, select.POLLIN)
        signals, reply = self._signals, self._reply.fileno()
        self._statuses |= tracer.wait()
        while first not in self._statuses:
            for fd, event in poll.poll():
                if fd == listener.fd:
                    if event & select.POLLIN:
                        call = listener.take()
                        if call is not None:
                            answers.answer(call)
                    else:
                        poll.unregister(fd)
                elif fd == signals:
                    if signal.SIGTERM in os.read(signals, 16 * _SIGNAL)[::_SIGNAL]:
                        self._cancelled = True
                        return
                    self._statuses |= tracer.wait()
                elif fd == reply:
                    self._cancelled = True
                    return

    def _kill_all(self, processes: Processes, tracer: AnsweredTracer) -> None:
        """Kill and reap every process of the step, and those that helped it."""
        while True:
            for each in (*processes.threads, *_children()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            try:
                self._statuses |= tracer.wait(block=True)
            except ChildProcessError:
                return

    def _outcome(self, first: int, said: report.StartReport) -> StepOutcome:
        if said.error or said.unfit:
            return StepOutcome(said.code, error=said.error, unfit=said.unfit)
        if self._cancelled:
            return StepOutcome(unfit=CANCELLED)
        if first not in self._statuses:
            return StepOutcome(unfit="the first process of the step is gone")
        code = os.waitstatus_to_exitcode(self._statuses[first])
        debug.log("step's process ended", pid=first, status=code)
        return StepOutcome(128 - code, -code) if code < 0 else StepOutcome(code)


def serve(spec: Spec, reply: socket.socket, output: tuple[int, int], emulator: tuple[str, str] = ("", "")) -> NoReturn:
    """The main function of the process."""
    try:
        syscalls.set_name("kanifold-calls")
        parent = os.getppid()
        syscalls.adopt_orphans()
        syscalls.set_dumpable(False)
        step = AnsweredStep(spec, reply, output, emulator)
        syscalls.die_with_parent(signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)
        outcome = step.run()
        with contextlib.suppress(OSError):  # the requester may be gone
            reply.send(outcome.pack())
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(1)


def prepare() -> None:
    """Make what most steps need, so that processes which are forked from this one have it."""
    _filter("", syscalls.landlock_version())
    seccomp.calls(answered_calls.ANSWERED)


def _filter(network: str, landlock: int) -> bytes:
    return answered_filter.program(network=network != "none", scoped=landlock >= SCOPED)


def _children() -> list[int]:
    """Return the children of this process."""
    with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
        return [int(each) for each in file.read().split()]


def _working_directory(view: FileView, table: MetadataTable, process: Process, path: str) -> WorkingDirectory:
    """Return the directory ``path`` of the step, which is made if it is missing. Raises RefusedError."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    done = b""
    try:
        for part in os.fsencode(path).split(b"/"):
            if not part:
                continue
            done += b"/" + part
            try:
                os.close(view.open(process, AT_FDCWD, done, flags).fd)
            except FileNotFoundError:
                directory, name = view.place(process, AT_FDCWD, done)
                os.mkdir(name, 0o755, dir_fd=directory.fd)
                table.set(os.stat(name, dir_fd=directory.fd, follow_symlinks=False), FileMetadata())
                os.close(directory.fd)
        found: FoundFile = view.open(process, AT_FDCWD, done or b"/", flags)
    except OSError as error:
        why = f"cannot change to the working directory {path}: {os.strerror(error.errno or 0)}"
        raise RefusedError(report.NOT_SET_UP, why) from error
    return WorkingDirectory(found.fd, readonly=found.readonly)


def _become(
    spec: Spec, output: tuple[int, int], line: socket.socket, told: report.StartReporter, places: tuple[str, str, str]
) -> NoReturn:
    """Turn this process into the first of the step."""
    try:
        _start(spec, output, line, told, places)
    except RefusedError as refused:
        told.refused(refused.code, str(refused))
    except BaseException as error:
        told.unfit(f"cannot start a step: {error}")
    finally:
        os._exit(report.NOT_SET_UP)


def _start(
    spec: Spec, output: tuple[int, int], line: socket.socket, told: report.StartReporter, places: tuple[str, str, str]
) -> NoReturn:
    place, programs, emulator = places
    for identity in (spec.uid, spec.gid, *spec.groups):  # -1 means "unchanged", which is root (CVE-2024-40635)
        if not 0 <= identity < step_process.NO_ID:
            raise RefusedError(report.NOT_SET_UP, f"{identity} is no user or group id")
    syscalls.die_with_parent()
    os.setsid()
    for each in (
        signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD,
    ):  # fmt: skip
        signal.signal(each, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    stdin = _in_memory(spec.stdin) if spec.stdin else os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for number, fd in enumerate((stdin, *output)):
        os.dup2(fd, number)
    if spec.cgroup:
        cgroup.enter(spec.cgroup)
    os.chdir(f"{place}/cwd")
    version = syscalls.landlock_version()
    code = _filter(spec.network, version)
    close_others(told.fd, line.fileno())
    for name, soft, hard in spec.options.ulimits:
        step_process.set_limit(name, soft, hard)
    syscalls.set_dumpable(True)
    with contextlib.suppress(OSError):
        _volunteer()
    if version:
        rules = [programs, *([emulator] if emulator else [])]
        syscalls.landlock_execute_only(rules, _SCOPES if version >= SCOPED else 0)
    line.send(_GO)
    line.recv(len(_GO))
    listener = syscalls.seccomp_filter(code, _FILTER)
    socket.send_fds(line, [b"listener"], [listener])
    line.close()
    os.close(listener)
    step_process.start_program(step_process.find_program(spec.argv, spec.env), spec)


def _volunteer() -> None:
    """Make this process the first that the OOM killer selects (proc_pid_oom_score_adj(5))."""
    with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
        file.write(b"%d" % min(1000, int(file.read()) + 500))


def _in_memory(data: bytes) -> int:
    fd = os.memfd_create("stdin")
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
