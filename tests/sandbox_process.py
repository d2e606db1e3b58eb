"""A process that has entered an isolation mode and runs steps for the tests, as a given user.

The test process itself stays where it is, as entering a mode cannot be undone. They communicate over a socket.
"""

from __future__ import annotations

import contextlib

# What runs below as another user must be loaded before: that user may not be able to read this checkout or Python.
import ctypes
import os
import pickle
import pwd
import shutil
import socket
import stat
import struct
import subprocess
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from ordinary_user import User

import executor.sandbox.zygote
import executor.supervised.supervised_runner
import platforms.emulation
from executor.sandbox import Ended, Isolation, IsolationMode, Launcher, Running, Spec, enter, start
from executor.sandbox.isolation import SUPERVISED_MODES
from executor.sandbox.roots import written
from executor.snapshotter.rootfs import Directory, Overlay
from executor.step_options import StepOptions
from platforms import syscalls
from platforms.emulation import Emulation, EmulationMode
from platforms.errors import KanifoldError

BUSYBOX = Path("/bin/busybox")
QEMU = Path("/usr/bin/qemu-aarch64-static")
ARM64 = Emulation(EmulationMode.PRIVATE, "arm64", str(QEMU))
APPLETS = """
    awk cat chmod chown cp cpio cut date dd echo env false find grep head hostname id ifconfig ip kill ln ls md5sum
    mkdir mknod mount mv nc printf ps readlink rm sed seq sh sleep sort stat su sync tail tar test touch true umount
    unshare wc
"""

Node = str | bytes | tuple[str, ...] | None
"""What ``plant`` makes: text is a file, bytes a program, ``None`` a directory; for the others see there."""


@dataclass(frozen=True)
class Done:
    """The result of a step."""

    ended: Ended
    out: str
    err: str
    diff: dict[str, str]
    """The upper directory afterwards: path to ``d 755``, ``f 644``, ``l TEXT``, ``c 0:0`` …"""
    left: tuple[str, ...]
    """What is left in the work directory."""
    root_mtime: int
    """The mtime of the upper directory itself, in ns."""


class SandboxProcess:
    """Runs steps in one mode. ``pid`` is the process that holds the launcher, as an executor does."""

    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid = pid
        self._line = line
        self.isolation: Isolation = self._ask("isolation")
        self.busybox: str = self._ask("busybox")

    def _ask(self, name: str, *arguments: Any) -> Any:
        _send(self._line, (name, arguments))
        answer = _receive(self._line)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def plant(self, nodes: Mapping[str, Node]) -> str:
        """Make a directory with these files (owned by root as seen by steps)."""
        path: str = self._ask("plant", dict(nodes))
        return path

    def run(self, *argv: str, **spec: Any) -> Done:
        """Run a program, or with one argument a shell command, on busybox (or ``layers``)."""
        done: Done = self.run_all([self.spec(*argv, **spec)])[0]
        return done

    def spec(self, *argv: str, **spec: Any) -> Spec:
        """The step that ``run`` would run; upper and work are filled in later."""
        command = ("/bin/sh", "-c", argv[0]) if len(argv) == 1 and " " in argv[0] else argv
        given = {"layers": (self.busybox,), "upper": "", "work": ""} | spec
        rootfs = Overlay(given.pop("layers"), given.pop("upper"), given.pop("work"))
        options = StepOptions(**{name: given.pop(name) for name in ("hosts", "shm_size", "ulimits") if name in given})
        return Spec(**{"rootfs": rootfs, "env": ("PATH=/bin",), "argv": command, "options": options} | given)

    def run_all(self, specs: list[Spec]) -> list[Done]:
        """Run all at once."""
        done: list[Done] = self._ask("run_all", specs)
        return done

    def run_until(self, spec: Spec, marker: str, then: str) -> Done:
        """Run a step; when it has written ``marker``, do ``then``: ``cancel`` or ``cancel_all``."""
        done: Done = self._ask("run_until", spec, marker, then)
        return done

    def begin(self, spec: Spec, marker: str) -> None:
        """Run a step until it has written ``marker``, and leave it running."""
        self._ask("begin", spec, marker)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``function`` in the process, with its ``Inside`` as first argument, and return the result."""
        return self._ask("call", function, *arguments)

    def close(self) -> None:
        self._line.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


@contextlib.contextmanager
def opened(
    user: User | None, emulation: Emulation | None = None, world: Callable[[], None] = lambda: None, mode: str = ""
) -> Iterator[SandboxProcess]:
    """Start a sandbox process as ``user`` (None: who runs the tests); the process calls ``world`` first.

    ``mode``: of isolation; "" for the first that works.
    """
    base = Path(tempfile.mkdtemp(prefix="kanifold-tests."))
    ours, theirs = socket.socketpair()
    if user is not None:
        os.chown(base, user.uid, user.gid)
    base.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            world()
            if user is not None and os.geteuid() != user.uid:
                os.setgroups([])
                os.setresgid(user.gid, user.gid, user.gid)
                os.setresuid(user.uid, user.uid, user.uid)
                syscalls.set_dumpable(True)  # as a login session is; cleared by the change of user
                os.environ["HOME"] = str(base)
            _live(theirs, base, emulation, mode)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    theirs.close()
    sandbox = None
    try:
        sandbox = SandboxProcess(pid, ours)
        yield sandbox
    finally:
        if sandbox is None:
            ours.close()
            os.waitpid(pid, 0)
        else:
            sandbox.close()
        shutil.rmtree(base, ignore_errors=True)


def _live(line: socket.socket, base: Path, emulation: Emulation | None, mode: str) -> None:
    inside = Inside(base, emulation, mode)
    while True:
        try:
            name, arguments = _receive(line)
        except EOFError:
            inside.leave()
            os._exit(0)
        try:
            answer = getattr(inside, name)(*arguments)
        except KanifoldError as error:
            answer = AssertionError(f"{type(error).__name__}: {error}")
        except Exception as error:
            answer = AssertionError("".join(traceback.format_exception(error)))
        _send(line, answer)


def _launcher(mode: IsolationMode, emulation: Emulation | None) -> Launcher:
    match mode:
        case IsolationMode.ANSWERED:
            return executor.supervised.supervised_runner.start_answered(emulation)
        case IsolationMode.CHROOT:
            if emulation is not None:
                return executor.supervised.supervised_runner.start_chroot(emulation)
            return executor.supervised.supervised_runner.start()
    return start(emulation)


class Inside:
    """The part in the sandbox process."""

    def __init__(self, base: Path, emulation: Emulation | None, mode: str = "") -> None:
        self.base = base
        self.entered = enter(mode)
        self.launcher = _launcher(self.entered.mode, emulation)
        self._count = 0
        self._before: dict[str, dict[str, str]] = {}
        """What was in directories before steps that write to them in place."""
        self._kept: list[tuple[Running, int]] = []

    def leave(self) -> None:
        self.launcher.stop()
        for path in (each for each in self.base.rglob("*") if stat.S_ISDIR(each.lstat().st_mode)):
            path.chmod(0o700)
        shutil.rmtree(self.base, ignore_errors=True)

    def isolation(self) -> Isolation:
        return self.entered

    def busybox(self) -> str:
        nodes: dict[str, Node] = {f"bin/{name}": ("->", "busybox") for name in APPLETS.split()}
        return self.plant({**nodes, "bin/busybox": BUSYBOX.read_bytes(), "tmp": ("d", "1777")})

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self, *arguments)

    def fresh(self, name: str) -> Path:
        """A new directory ``name``, beside which there is nothing."""
        self._count += 1
        path = self.base / str(self._count) / name
        path.mkdir(parents=True)
        return path

    def writable(self, rootfs: Overlay) -> Overlay | Directory:
        """``rootfs`` with directories to write to; in a chroot a directory with copies of all files."""
        if self.entered.mode in SUPERVISED_MODES:
            return Directory(str(self._copied(rootfs.lower)))
        return replace(rootfs, upper=str(self.fresh("upper")), work=str(self.fresh("work")))

    def _copied(self, layers: tuple[str, ...]) -> Path:
        path = self.fresh("upper")
        for each in reversed(layers):
            subprocess.run(["cp", "-a", "--remove-destination", f"{each}/.", path], check=True)
            for found in list(path.rglob("*")):
                status = found.lstat()
                if stat.S_ISCHR(status.st_mode) and not status.st_rdev:
                    found.unlink()  # a whiteout, in the tests of nothing else
        path.chmod(0o755)
        return path

    def plant(self, nodes: Mapping[str, Node]) -> str:
        root = self.fresh("layer")
        for name, node in nodes.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            match node:
                case None:
                    path.mkdir(exist_ok=True)
                case str():
                    path.write_text(node)
                case bytes():
                    path.write_bytes(node)
                    path.chmod(0o755)
                case ("->", text):
                    path.symlink_to(text)
                case ("d", mode):
                    path.mkdir(exist_ok=True)
                    path.chmod(int(mode, 8))
                case ("x", mode, source):
                    shutil.copyfile(source, path)
                    path.chmod(int(mode, 8))
                case ("c", major, minor):
                    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(int(major), int(minor)))
                case ("p",):
                    os.mkfifo(path)
                case _:
                    raise ValueError(node)
        return str(root)

    def run_all(self, specs: list[Spec]) -> list[Done]:
        started = [self._start(spec) for spec in specs]
        return [self._finish(*each) for each in started]

    def run_until(self, spec: Spec, marker: str, then: str) -> Done:
        upper, running, out, err = self._start(spec)
        seen = b""
        while marker.encode() not in seen:
            seen += os.read(out, 4096) or _fail(f"ended without {marker}: {seen!r}")
        if then == "cancel":
            running.cancel()
        else:
            self.launcher.cancel_all()
        return self._finish(upper, running, out, err)

    def begin(self, spec: Spec, marker: str) -> None:
        _, running, out, _ = self._start(spec)
        seen = b""
        while marker.encode() not in seen:
            seen += os.read(out, 4096) or _fail(f"ended without {marker}: {seen!r}")
        self._kept.append((running, out))

    def _start(self, spec: Spec) -> tuple[Spec, Running, int, int]:
        if isinstance(spec.rootfs, Overlay) and not spec.rootfs.upper:
            spec = replace(spec, rootfs=self.writable(spec.rootfs))
            os.utime(written(spec.rootfs), ns=(10**18, 10**18))
        if isinstance(spec.rootfs, Directory):
            self._before[spec.rootfs.path] = listing(spec.rootfs.path)
        out, out_write = os.pipe()
        err, err_write = os.pipe()
        try:
            return spec, self.launcher.start(spec, out_write, err_write), out, err
        finally:
            os.close(out_write)
            os.close(err_write)

    def _finish(self, spec: Spec, running: Running, out: int, err: int) -> Done:
        texts = ["", ""]

        def collect(index: int, fd: int) -> None:
            with open(fd, encoding="utf-8", errors="replace") as stream:
                texts[index] = stream.read()

        threads = [threading.Thread(target=collect, args=each) for each in enumerate((out, err))]
        for thread in threads:
            thread.start()
        try:
            ended = running.wait()
        finally:
            for thread in threads:
                thread.join()
        rootfs = spec.rootfs
        work = rootfs.work if isinstance(rootfs, Overlay) else f"{os.path.dirname(rootfs.path)}/aside"
        left = tuple(sorted(os.listdir(work))) if os.path.exists(work) else ()
        upper = written(rootfs)
        return Done(ended, texts[0], texts[1], self._changes(upper), left, os.stat(upper).st_mtime_ns)

    def _changes(self, upper: str) -> dict[str, str]:
        """What has changed in the directory ``upper``, as in that of an overlay."""
        before, after = self._before.pop(upper, {}), listing(upper)
        gone = {
            path: "c 0:0"
            for path in before.keys() - after.keys()
            if os.path.dirname(path) not in before.keys() - after.keys()
        }
        return {path: what for path, what in after.items() if before.get(path) != what} | gone


def listing(root: str) -> dict[str, str]:
    """Return every path below ``root`` with its kind and mode."""
    found = {}
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = f"{directory}/{name}"
            status = os.lstat(path)
            kind = stat.filemode(status.st_mode)[0].replace("-", "f")
            detail = f"{stat.S_IMODE(status.st_mode):o}"
            if kind == "l":
                detail = os.readlink(path)
            elif kind in "cb":
                detail = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
            found[os.path.relpath(path, root)] = f"{kind} {detail}"
    return found


def _fail(message: str) -> bytes:
    raise AssertionError(message)


def _send(line: socket.socket, message: object) -> None:
    data = pickle.dumps(message)
    line.sendall(struct.pack("=Q", len(data)) + data)


def _receive(line: socket.socket) -> Any:
    (size,) = struct.unpack("=Q", _exactly(line, 8))
    return pickle.loads(_exactly(line, size))


def _exactly(line: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = line.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return bytes(data)


__all__ = [
    "ARM64",
    "BUSYBOX",
    "QEMU",
    "Done",
    "Inside",
    "SandboxProcess",
    "ctypes",
    "executor",
    "listing",
    "opened",
    "platforms",
    "pwd",
]
