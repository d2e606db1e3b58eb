"""Starting steps and waiting for them: the executor's side of the zygote.

``start`` forks the zygote, before the executor has a second thread; the ``Launcher`` that it returns is thread-safe.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING, NoReturn

from msgspec.structs import replace

from executor.sandbox import isolation, network, roots, staging, step_process, zygote
from executor.sandbox import spec as wire
from executor.snapshotter import records
from executor.snapshotter.records import Read
from executor.snapshotter.rootfs import Directory, Overlay
from platforms import debug, syscalls, threads
from platforms.descriptors import keep_only
from platforms.errors import EnvironmentUnfit

if TYPE_CHECKING:
    from concurrent.futures import Future

    from executor.sandbox.spec import Ended, Spec
    from executor.snapshotter.inplace import Before
    from platforms.emulation import Emulation

_ANSWER_LIMIT = 1 << 18
Devices = tuple[tuple[bytes, int, int, str, int, int], ...]
"""As in ``zygote.StepOutcome``."""


class Running:
    """A running step. ``wait`` for its end; ``cancel`` it from any thread."""

    def __init__(self, launcher: Launcher, spec: Spec, reply: socket.socket, before: Before | None) -> None:
        self._launcher = launcher
        self._spec = spec
        self._reply = reply
        self._before = before
        self._cancelled = False

    def cancel(self) -> None:
        """Kill every process of the step. ``wait`` then returns with ``error`` set to ``cancelled``."""
        self._cancelled = True
        with contextlib.suppress(OSError):  # it may have ended
            self._reply.shutdown(socket.SHUT_WR)

    def wait(self) -> Ended:
        """Wait until all processes of the step have ended; its changes are then complete. To be called once.

        Raises EnvironmentUnfit when the host does not allow the step's root file system.
        """
        try:
            data = self._reply.recv(_ANSWER_LIMIT)
        except OSError:
            data = b""
        finally:
            self._launcher._forget(self)
            self._reply.close()
        if not data:
            self._bring_back()
            if not self._cancelled:
                raise self._launcher._death()
        answer = zygote.StepOutcome.unpack(data) if data else zygote.StepOutcome()
        rootfs = self._spec.rootfs
        roots.tidy(rootfs, answer.made, answer.touched)
        if not answer.unfit:
            roots.clear(rootfs)
            self._launcher._record(self._spec, self._before, answer.devices)
        if self._cancelled:
            return wire.Ended(128 + signal.SIGKILL, signal.SIGKILL, error="cancelled")
        if answer.unfit:
            remedy = roots.remedy(rootfs, answer.unfit) or isolation.unfit_remedy()
            raise EnvironmentUnfit("cannot run build steps here", why=answer.unfit, remedy=remedy)
        return wire.Ended(answer.code, answer.signal, answer.oom, answer.error, answer.shared)

    def _bring_back(self) -> None:
        """Bring back the directories that a process which was killed has moved into the step's root."""
        from executor.store import moved_directories

        for mount in self._spec.mounts:
            if isinstance(mount, wire.Bind):
                with contextlib.suppress(OSError):  # then it is lost
                    moved_directories.bring_back_unused(mount.source)


class Launcher:
    """Runs steps, also several at once. Thread-safe."""

    def __init__(self, zygote_pid: int, control: socket.socket, complaint: int, *, recorded: bool = False) -> None:
        """``recorded``: whether the processes that run steps write the records of their root directories."""
        self._all_recorded = recorded
        self._zygote = zygote_pid
        self._control = control
        self._complaint = open(complaint, encoding="utf-8", errors="replace")  # noqa: SIM115 - until stop()
        self._unfit = ""
        self._lock = threading.Lock()
        self._running: set[Running] = set()
        self._prepared: set[bytes] = set()
        self._stopped = False
        self.single = isolation.id_limit() == 1
        """Whether steps have a single id, and owners are recorded."""
        self._recorded: Read = functools.cache(records.read)

    def prepare(self, *, isolated: bool) -> None:
        """Announce a step, with an isolated network or not, so that the zygote prepares for it."""
        packet = zygote.CONNECT if isolated else zygote.PREPARE
        with self._lock:
            prepared = packet in self._prepared
            self._prepared |= {packet, zygote.PREPARE}
        if not prepared:
            with contextlib.suppress(OSError):  # it is gone, which the step will report
                self._control.send(packet)

    def run(self, spec: Spec, stdout: int, stderr: int, cancelled: Future[None]) -> Ended:
        """Run a step to its end. ``stdout`` and ``stderr`` are descriptors that the caller closes.

        ``cancelled`` is done before ``cancel_all`` is called.
        """
        running = self.start(spec, stdout, stderr)
        if cancelled.done():  # it may have started too late for ``cancel_all``
            running.cancel()
        return running.wait()

    def start(self, spec: Spec, stdout: int, stderr: int) -> Running:
        """Start a step; the descriptors may be closed afterwards. Raises EnvironmentUnfit."""
        before = None
        if isinstance(rootfs := spec.rootfs, Directory):
            from executor.snapshotter.inplace import Before, wait_for_clock_tick

            if self.single and not self._all_recorded:  # new files are recorded as those of the step's user
                spec = replace(spec, begun=wait_for_clock_tick())
            if not self._supervised(spec):
                before = Before(rootfs.path, spec.begun)
        packed, fds = wire.pack(spec)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        running = Running(self, spec, ours, before)
        with self._lock:
            if self._stopped:
                running.cancel()
            self._running.add(running)
        request = _in_memory(packed)
        try:
            socket.send_fds(self._control, [zygote.RUN], [theirs.fileno(), request, stdout, stderr, *fds])
        except OSError:  # the zygote is gone: wait() reports the closed reply socket
            pass
        finally:
            theirs.close()
            os.close(request)
        return running

    def cancel_all(self) -> None:
        """Kill all running steps; those started later are not affected."""
        with self._lock:
            running = tuple(self._running)
        for each in running:
            each.cancel()

    def stop(self) -> None:
        """Kill all steps and end the zygote. Afterwards no process and no mount is left."""
        with self._lock:
            self._stopped = True
        self.cancel_all()
        self._control.close()
        self._complaint.close()
        if self._zygote:
            _, status = os.waitpid(self._zygote, 0)
            debug.log("process ended", name="kanifold-steps", pid=self._zygote, status=status)
            self._zygote = 0

    def _forget(self, running: Running) -> None:
        with self._lock:
            self._running.discard(running)

    def _record(self, spec: Spec, before: Before | None, devices: Devices) -> None:
        """Record the ownership that the kernel does not have, unless the step's supervisor has, and ``devices``."""
        match spec.rootfs:
            case Directory(path):
                if before is not None:
                    kept = before.claimed(spec.uid, spec.gid) if self.single else before.carried()
                    made = {each[0]: records.Record(*each[:3], records.DeviceNumber(*each[3:])) for each in devices}
                    records.rewrite(path, tuple(({each.path: each for each in kept} | made).values()))
            case Overlay(lower, upper):
                if not self.single:
                    records.write(upper, tuple(records.carried(upper, records.Stack(lower, self._recorded))))
                elif not self._supervised(spec):
                    from executor.sandbox.inode_records import records_for_user

                    records.write(upper, tuple(records_for_user(upper, lower, spec.uid, spec.gid)))

    def _supervised(self, spec: Spec) -> bool:
        """Whether a supervisor records the owners of the step's files."""
        return self._all_recorded or (self.single and not spec.uid and not spec.gid)

    def _death(self) -> EnvironmentUnfit:
        """Return why the zygote has died."""
        with self._lock:
            self._unfit = self._unfit or self._complaint.read()
        if self._unfit:
            return EnvironmentUnfit("cannot isolate build steps here", why=self._unfit, remedy=isolation.unfit_remedy())
        return EnvironmentUnfit(
            "the process that starts build steps has died",
            why="the kernel may have killed it for want of memory, or somebody else has",
            remedy="look into the kernel's log (dmesg)",
        )


def start(emulation: Emulation | None = None) -> Launcher:
    """Fork the zygote. To be called after ``isolation.enter``, while this process has a single thread.

    With an ``emulation`` whose mode is ``private``, the zygote and all steps run in a user namespace with the emulator
    registered; with ``traced``, each step has a tracer that starts the emulator. The zygote dies with the calling
    thread. Raises EnvironmentUnfit when the host does not allow such processes; other requirements are checked when the
    first step runs.
    """
    threads.check_single("start the process that build steps are forked from")
    private = emulation is not None and emulation.mode == "private"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mapped_read, mapped_write = os.pipe()
    complaint_read, complaint_write = os.pipe()
    pid = 0
    try:
        pid = syscalls.fork(zygote.NAMESPACES | (syscalls.CLONE_NEWUSER if private else 0))
        if pid == 0:
            _be_zygote(theirs, mapped_read, mapped_write, complaint_write, emulation)
        debug.log("process started", name="kanifold-steps", pid=pid, private_binfmt=private)
        if private:
            isolation.map_identity(pid)
        os.write(mapped_write, b"1")
    except OSError as error:
        os.close(complaint_read)
        ours.close()
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        raise EnvironmentUnfit(
            "cannot isolate build steps here", why=str(error), remedy=isolation.unfit_remedy()
        ) from error
    finally:
        theirs.close()
        for fd in (mapped_read, mapped_write, complaint_write):
            os.close(fd)
    return Launcher(pid, ours, complaint_read)


def _be_zygote(
    control: socket.socket, mapped_read: int, mapped_write: int, complaint: int, emulation: Emulation | None
) -> NoReturn:
    """The main function of the zygote. Why the host does not allow steps is written to ``complaint``."""
    try:
        syscalls.die_with_parent()
        syscalls.set_name("kanifold-steps")
        os.setsid()
        debug.enter("kanifold-steps")
        os.close(mapped_write)
        if not os.read(mapped_read, 1):  # the parent could not map ids, or has died
            os._exit(1)
        keep_only(control.fileno(), complaint)
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        # Setting up takes as long as a step, and a cached build runs none.
        packet = control.recv(16, socket.MSG_PEEK)
        if not packet:
            os._exit(0)
        net = network.Network()
        try:
            syscalls.mount("", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
            if packet == zygote.CONNECT:
                net.begin()  # first: it takes longest
            staging.set_up()
            staging.preflight()
            foreign = None
            if emulation is not None and emulation.mode == "private":
                from platforms.emulation import register_private

                register_private([emulation])
            elif emulation is not None and emulation.mode == "traced":
                foreign = step_process.Foreign(emulation.architecture, staging.offer_emulator(emulation.interpreter))
        except OSError as error:
            os.write(complaint, str(error).encode())
            os._exit(1)
        debug.log("ready for steps", network=packet == zygote.CONNECT)
        os.close(complaint)
        zygote.serve(control, net, foreign)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(1)


def _in_memory(data: bytes) -> int:
    """Return a descriptor of an unnamed file with ``data``, positioned at its start."""
    fd = os.memfd_create("kanifold")
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
