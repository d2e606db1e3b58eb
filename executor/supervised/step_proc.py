"""The files of /proc for a step whose path calls are answered: those of its own processes, and the machine's.

They are the kernel's. Its directories can be given to the step: no call that takes a path is left to the kernel, so
that a descriptor of a directory leads nowhere by itself.
"""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING, Final

from executor.supervised.processes import DOCKER_CAPABILITIES
from platforms import syscalls
from platforms.paths import below

if TYPE_CHECKING:
    from executor.supervised.processes import Process, Processes

_PATH: Final = os.O_PATH | os.O_CLOEXEC
_MACHINE: Final = frozenset(
    b"""cmdline cpuinfo crypto devices diskstats filesystems loadavg meminfo misc partitions stat swaps sys uptime
    version vmstat""".split()
)
_HIDDEN: Final = frozenset(b"ns map_files attr mem pagemap syscall stack auxv clear_refs".split())
_WRITABLE: Final = frozenset(b"comm oom_score_adj oom_adj coredump_filter timerslack_ns".split())
_MOUNTSTATS: Final = b"device overlay mounted on / with fstype overlay\n"
_MAGIC: Final = frozenset(b"exe cwd root".split())


class StepProc:
    """The /proc of a step. ``place``: a directory for the list of its processes; ``mounts``: the files about
    mounts, mounts and mountinfo."""

    def __init__(self, processes: Processes, place: str, mounts: tuple[bytes, bytes]) -> None:
        self._processes = processes
        self._place = os.fsencode(place)
        self._made_up = dict(zip((b"mounts", b"mountinfo"), mounts, strict=True)) | {b"mountstats": _MOUNTSTATS}
        self.device = os.stat("/proc/self").st_dev
        self.root = -1
        """A descriptor of the step's root directory."""

    def shown(self, host: bytes) -> bytes | None:
        """Return the step's path of ``host``, if it is a file of /proc."""
        if host == self._place:
            return b"/proc"
        if host.startswith(b"/proc/"):
            number = host.split(b"/")[2]
            return host if number in _MACHINE or (number.isdigit() and self._known(number)) else None
        return None

    def writable(self, fd: int) -> bool:
        """Whether a step may write to the file of /proc that the descriptor ``fd`` of this process is."""
        return os.path.basename(os.readlink(b"/proc/self/fd/%d" % fd)) in _WRITABLE

    def _known(self, number: bytes) -> bool:
        return int(number) in self._processes.threads

    def text(self, process: Process, part: tuple[bytes, ...]) -> bytes | None:
        """Return the text of the link ``part`` as a step reads it; None for what is none, or not made up."""
        match part:
            case (b"self",):
                return b"%d" % process.leader
            case (b"thread-self",):
                return b"%d/task/%d" % (process.leader, process.number)
            case (b"mounts" | b"net",):
                return b"self/" + part[0]
            case (number, *_, b"exe") if number.isdigit() and self._known(number):
                return self._processes.threads[int(number)].program
            case (number, *_, b"root") if number.isdigit() and self._known(number):
                return b"/"
        return None

    def followed(self, process: Process, part: tuple[bytes, ...]) -> int | None:
        """Return an O_PATH descriptor of what the magic link ``part`` leads to; None if it is none. Raises OSError."""
        match part:
            case (number, *_, b"fd" | b"map_files", name) if number.isdigit() and name.isdigit():
                self._check(number)
                return os.open(b"/proc/%b/fd/%b" % (number, name), _PATH)
            case (number, *_, b"cwd") if number.isdigit():
                self._check(number)
                return os.dup(self._processes.threads[int(number)].fs.cwd.fd)
            case (number, *_, b"root") if number.isdigit():
                self._check(number)
                return os.dup(self.root)
        return None

    def _check(self, number: bytes) -> None:
        if not self._known(number):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def find(self, part: tuple[bytes, ...]) -> int:
        """Return a descriptor of the file ``part``, whose last component may be a link. Raises OSError."""
        first = part[0]
        if first in (b"self", b"thread-self", b"mounts", b"net") and len(part) == 1:
            return os.open(b"/proc/" + first, _PATH | os.O_NOFOLLOW)
        if first.isdigit():
            self._check(first)
            if part[-1] in self._made_up:
                return self._in_memory(part[-1], self._made_up[part[-1]])
            if part[1:] == (b"status",) or (part[1:2] == (b"task",) and part[3:] == (b"status",)):
                return self._status(part)
            if _HIDDEN.intersection(part[1:]):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        elif first not in _MACHINE:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        top = os.open("/proc", _PATH | os.O_DIRECTORY)
        try:
            flags = _PATH | os.O_NOFOLLOW
            return syscalls.openat2(top, os.fsdecode(b"/".join(part)), flags, resolve=syscalls.BENEATH)
        finally:
            os.close(top)

    def _in_memory(self, name: bytes, data: bytes) -> int:
        fd = os.memfd_create(os.fsdecode(name))
        os.write(fd, data)
        return fd

    def _status(self, part: tuple[bytes, ...]) -> int:
        """Return the status of a thread with the credentials that it believes to have (proc_pid_status(5))."""
        thread = self._processes.threads.get(int(part[2] if len(part) > 2 else part[0]))
        if thread is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with open(b"/proc/" + b"/".join(part), "rb") as file:
            lines = file.read().splitlines(keepends=True)
        known = thread.credentials
        held = b"%016x" % (DOCKER_CAPABILITIES if known.privileged else 0)
        made = {
            b"Umask:": b"%04o" % thread.fs.umask, b"TracerPid:": b"0",
            b"Uid:": b"\t".join(b"%d" % each for each in known.uids),
            b"Gid:": b"\t".join(b"%d" % each for each in known.gids),
            b"Groups:": b" ".join(b"%d" % each for each in known.groups) + b" ",
            b"CapInh:": b"0" * 16, b"CapPrm:": held, b"CapEff:": held, b"CapAmb:": b"0" * 16,
            b"CapBnd:": b"%016x" % DOCKER_CAPABILITIES,
        }  # fmt: skip
        for index, line in enumerate(lines):
            if (name := line.partition(b"\t")[0]) in made:
                lines[index] = b"%b\t%b\n" % (name, made[name])
        return self._in_memory(b"status", b"".join(lines))

    def _in_place(self, name: bytes) -> str:
        return below(os.fsdecode(self._place), os.fsdecode(name))

    def list(self) -> None:
        """Update the names in the directory that the step sees as /proc."""
        wanted = {b"%d" % each for each in self._processes.leaders()} | _MACHINE | {b"self", b"mounts", b"thread-self"}
        there = set(os.listdir(self._place))
        for name in there - wanted:
            shutil.rmtree(self._in_place(name), ignore_errors=True)
        for name in wanted - there:
            path = self._in_place(name)
            if name.isdigit() or name == b"sys":
                os.mkdir(path, 0o555)
            elif name in (b"self", b"thread-self", b"mounts"):
                os.symlink(b"self/mounts", path)
            else:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o444))
