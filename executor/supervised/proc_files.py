"""What a step finds in /proc: its own processes, made-up mounts, and what the kernel tells of the machine.

A step without namespaces has no /proc of its own, and the one of its container shows the executor. So its supervisor
opens the files of /proc for it. Never a directory: from a descriptor of one, ``..`` leads out of any chroot.
Directories are told as names (``ProcDirectory``), which the supervisor shows in one of the step's own.

A process belongs to the step if it descends from its supervisor. The kernel checks the caller's right to each file, as
the supervisor takes the caller's ids meanwhile (``caller``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

import msgspec

from platforms import syscalls

_PATH: Final = os.O_PATH | os.O_CLOEXEC
_KEPT_FLAGS: Final = ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
"""The flags of open(2) that matter for a file that exists and is no link."""

PROCESS_FILES: Final = frozenset(
    b"""auxv cgroup clear_refs cmdline comm coredump_filter cpuset environ gid_map io limits loginuid maps mem
    numa_maps oom_adj oom_score oom_score_adj pagemap personality projid_map sched schedstat sessionid setgroups smaps
    smaps_rollup stack stat statm status syscall timers timerslack_ns uid_map wchan""".split()
)
_WRITABLE: Final = frozenset(b"clear_refs comm coredump_filter mem oom_adj oom_score_adj timerslack_ns".split())
MAGIC_LINKS: Final = (b"cwd", b"exe", b"root")
MACHINE_FILES: Final = frozenset(
    b"""buddyinfo cmdline cpuinfo crypto devices diskstats filesystems loadavg meminfo misc modules partitions stat
    swaps uptime version vmstat zoneinfo""".split()
)
"""What the kernel tells of the machine, of that which containers are not kept from."""
_TREES: Final = (b"sys",)
_MADE_UP: Final = (b"mounts", b"mountinfo", b"mountstats")


class OwnMounts(msgspec.Struct, frozen=True):
    """The numbers of the mounts (statx(2), STATX_MNT_ID) whose files are the step's own.

    The text of a link does not tell: the kernel shows what is outside of a root as if it were below it (d_path).
    """

    root: int
    """That of its root."""
    memory: int
    """That of files in memory (memfd_create(2)), which are written to unless they are sealed."""


def own_mounts() -> OwnMounts:
    """Return those of a step whose root this process has."""
    root, memory = os.open("/", _PATH | os.O_DIRECTORY), os.memfd_create("mount")
    found = OwnMounts(syscalls.mount_id(root), syscalls.mount_id(memory))
    os.close(root)
    os.close(memory)
    return found


class File(msgspec.Struct, frozen=True):
    """A file of the kernel's /proc: ``name`` in the directory ``at``."""

    at: int
    name: bytes
    writable: bool = False


class ProcLink(msgspec.Struct, frozen=True):
    """A link with a ``text`` that is a path of the step."""

    text: bytes


class MagicLink(msgspec.Struct, frozen=True):
    """A link to a file that a process has open, is in, or executes; and the path ``rest`` from there."""

    at: int
    name: bytes
    rest: bytes = b""


class MadeUp(msgspec.Struct, frozen=True):
    """A file ``name`` with content that the kernel has not made."""

    name: bytes


class ProcDirectory(msgspec.Struct, frozen=True):
    """A directory with ``files`` and ``directories``, which is ``name`` in the kernel's directory ``at``."""

    at: int
    name: bytes
    files: tuple[bytes, ...] = ()
    directories: tuple[bytes, ...] = ()


Node = File | ProcLink | MagicLink | MadeUp | ProcDirectory


class ProcFiles:
    """The files of /proc for one step. ``proc`` is a descriptor of the kernel's; ``supervisor`` is an ancestor of the
    step's processes and of no others."""

    def __init__(self, proc: int, supervisor: int) -> None:
        self.proc = proc
        self._supervisor = supervisor

    @contextmanager
    def found(self, thread: int, path: bytes) -> Iterator[Node]:
        """Yield what the caller's ``thread`` finds at ``path``, which begins after "/proc/". Raises OSError."""
        first, _, rest = path.partition(b"/")
        if not first:
            yield self._top()
        elif first == b"self" and not rest:
            yield ProcLink(b"%d" % self.process(thread))
        elif first == b"thread-self" and not rest:
            yield ProcLink(b"%d/task/%d" % (self.process(thread), thread))
        elif first == b"mounts" and not rest:
            yield ProcLink(b"self/mounts")
        elif first == b"net":
            yield self._tree(b"%d/net" % thread, rest)
        elif first in _TREES:
            yield self._tree(first, rest)
        elif first in MACHINE_FILES and not rest:
            yield File(self.proc, first)
        elif first in (b"self", b"thread-self") or first.isdigit():
            number = int(first) if first.isdigit() else thread
            with self._process(number, known=number == thread) as at:
                yield self._of_process(at, rest, number)
        else:
            _missing()

    def process(self, thread: int) -> int:
        """Return the process of ``thread``."""
        return int(self._status(thread, b"Tgid:"))

    def users(self, thread: int) -> tuple[int, int, int]:
        """Return the real, effective and saved user of ``thread``."""
        real, effective, saved, _ = map(int, self._line(thread, b"Uid:"))
        return real, effective, saved

    def group(self, number: int) -> int:
        """Return the process group of the process ``number``; 0 if it has ended."""
        with contextlib.suppress(OSError):
            return _stat(self.proc, b"%d/stat" % number)[2]
        return 0

    def process_of_pidfd(self, thread: int, pidfd: int) -> int:
        """Return the process that a descriptor of ``thread`` is of (pidfd_open(2)). Raises OSError."""
        path = b"%d/fdinfo/%d" % (thread, pidfd)
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc), "rb") as file:
            number = next((int(line.split()[1]) for line in file if line.startswith(b"Pid:")), 0)
        if number <= 0:
            raise OSError(errno.ESRCH if number else errno.EBADF, "")
        return number

    def belongs(self, number: int) -> bool:
        """Whether the process ``number`` is the step's."""
        with contextlib.suppress(OSError), self._process(number, known=False):
            return True
        return False

    def capabilities(self, thread: int) -> int:
        """Return the effective capabilities of ``thread``, as a mask."""
        return int(self._status(thread, b"CapEff:"), 16)

    def umask(self, thread: int) -> int:
        """Return the umask of ``thread``."""
        return int(self._status(thread, b"Umask:"), 8)

    def _status(self, thread: int, field: bytes) -> bytes:
        return self._line(thread, field)[0]

    def _line(self, thread: int, field: bytes) -> list[bytes]:
        """Return the words of a ``field`` (proc_pid_status(5))."""
        with open(os.open(b"%d/status" % thread, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc), "rb") as file:
            for line in file:
                if line.startswith(field):
                    return line.split()[1:]
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))  # it is about to end

    @contextmanager
    def _process(self, number: int, *, known: bool) -> Iterator[int]:
        """Yield a descriptor of the directory of the process ``number``, which stays that one's.

        ``known``: whether it is known to be the step's.
        """
        try:
            at = os.open(b"%d" % number, _PATH | os.O_DIRECTORY, dir_fd=self.proc)
        except FileNotFoundError:
            _missing()
        try:
            if not known and not self._belongs(at):
                _missing()
            yield at
        finally:
            os.close(at)

    def _belongs(self, at: int) -> bool:
        """Whether the process of the directory ``at`` descends from the supervisor.

        Numbers of processes are used again. So the chain of parents is read twice: while a child is alive and has the
        same parent as before, the parent's number was that parent's all the time.
        """
        chain = self._ancestors(at)
        return bool(chain) and chain[-1] == self._supervisor and chain == self._ancestors(at)

    def _ancestors(self, at: int) -> list[int]:
        """Return the process of the directory ``at`` and its ancestors, up to the supervisor; [] if that is none."""
        try:
            found = [*_stat(at, b"stat")[:2]]
            while found[-1] != self._supervisor:
                if found[-1] <= 1:
                    return []
                found.append(_stat(self.proc, b"%d/stat" % found[-1])[1])
        except (OSError, ValueError):  # it has ended
            return []
        return found

    def processes(self) -> list[int]:
        """Return the step's processes."""
        found = []
        for name in _numbers(self.proc, b"."):
            if name.isdigit():
                with contextlib.suppress(OSError), self._process(int(name), known=False):
                    found.append(int(name))
        return found

    # -- what is where

    def _top(self) -> ProcDirectory:
        numbers = [b"%d" % each for each in self.processes()]
        files = (*MACHINE_FILES, b"mounts")
        return ProcDirectory(self.proc, b".", files, (*numbers, b"self", b"thread-self", b"net", *_TREES))

    def _tree(self, top: bytes, rest: bytes) -> Node:
        """Return a file or directory of the kernel's settings or network, for reading."""
        name = top + b"/" + rest if rest else top
        fd = syscalls.openat2(self.proc, os.fsdecode(name), _PATH, resolve=syscalls.CONFINED)
        try:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                return File(self.proc, name)
        finally:
            os.close(fd)
        listed = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.proc)
        try:
            with os.scandir(listed) as entries:
                kinds = [(os.fsencode(each.name), each.is_dir(follow_symlinks=False)) for each in entries]
        finally:
            os.close(listed)
        files = tuple(each for each, is_directory in kinds if not is_directory)
        return ProcDirectory(self.proc, name, files, tuple(each for each, is_directory in kinds if is_directory))

    def _of_process(self, at: int, path: bytes, number: int) -> Node:
        """Return what is at ``path`` in the directory ``at`` of a process or thread."""
        first, _, rest = path.partition(b"/")
        if not first:
            links = (*MAGIC_LINKS, *_MADE_UP)
            return ProcDirectory(at, b".", (*PROCESS_FILES, *links), (b"fd", b"fdinfo", b"net", b"task"))
        if first in PROCESS_FILES and not rest:
            return File(at, first, writable=first in _WRITABLE)
        if first in _MADE_UP and not rest:
            return MadeUp(first)
        if first in MAGIC_LINKS:
            return MagicLink(at, first, rest)
        if first == b"net":
            return self._tree(b"%d/net" % number, rest)
        if first in (b"fd", b"fdinfo"):
            return self._descriptor(at, first, rest)
        if first == b"task":
            return self._thread(at, rest)
        return _missing()

    def _descriptor(self, at: int, kind: bytes, path: bytes) -> Node:
        number, _, rest = path.partition(b"/")
        if not number:
            return ProcDirectory(at, kind, _with_own(_numbers(at, kind)))
        if not number.isdigit():
            _missing()
        return File(at, kind + b"/" + number) if kind == b"fdinfo" else MagicLink(at, kind + b"/" + number, rest)

    def _thread(self, at: int, path: bytes) -> Node:
        number, _, rest = path.partition(b"/")
        if not number:
            return ProcDirectory(at, b"task", (), _numbers(at, b"task"))
        name, _, more = rest.partition(b"/")
        if not number.isdigit() or more:
            _missing()
        place = b"task/" + number
        if not name:
            return ProcDirectory(at, place, tuple(PROCESS_FILES))
        if name not in PROCESS_FILES:
            _missing()
        return File(at, place + b"/" + name, writable=name in _WRITABLE)


def open_file(node: File, flags: int) -> int:
    """Open ``node`` as open(2) with ``flags`` would. Raises OSError."""
    if flags & os.O_ACCMODE != os.O_RDONLY and not node.writable:
        _refused()
    if flags & os.O_DIRECTORY:
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    fd = os.open(node.name, flags & _KEPT_FLAGS | os.O_CLOEXEC, dir_fd=node.at)
    if stat.S_ISDIR(os.fstat(fd).st_mode):  # from which a step could leave its root
        os.close(fd)
        _missing()
    return fd


def open_magic(node: MagicLink, flags: int, own: OwnMounts) -> int:
    """Open what ``node`` leads to, in the root of the step, which has to be this process's. Raises OSError.

    What a process has open can come from outside, such as a file of /proc or /sys that its supervisor has opened for
    it: then a device, a pipe or, for reading, a file. Never a directory.
    """
    flags = flags & _KEPT_FLAGS | os.O_CLOEXEC
    truncating, flags = flags & os.O_TRUNC, flags & ~os.O_TRUNC  # which would be done before what is open is known
    base = _base(node, own)
    try:  # without waiting for the other end of a pipe
        name, at = (node.rest, base) if node.rest else (node.name, node.at)
        fd = os.open(name, flags | os.O_NONBLOCK, dir_fd=at)
    finally:
        if base >= 0:
            os.close(base)
    try:
        mode, mount = os.fstat(fd).st_mode, syscalls.mount_id(fd)
        if mount != own.root:
            writing = flags & os.O_ACCMODE != os.O_RDONLY
            foreign = stat.S_ISREG(mode) and mount != own.memory
            if stat.S_ISDIR(mode) or node.name in MAGIC_LINKS or (foreign and writing):
                _refused()
        if truncating and stat.S_ISREG(mode):
            os.ftruncate(fd, 0)
        if not flags & os.O_PATH:
            os.set_blocking(fd, not flags & os.O_NONBLOCK)
    except OSError:
        os.close(fd)
        raise
    return fd


def read_magic(node: MagicLink, own: OwnMounts) -> bytes:
    """Return the text of ``node``. Raises OSError."""
    if not node.rest:
        if node.name in MAGIC_LINKS:
            os.close(_inside(node, own))
        return os.readlink(node.name, dir_fd=node.at)
    base = _base(node, own)
    try:
        return os.readlink(node.rest, dir_fd=base)
    finally:
        os.close(base)


def _base(node: MagicLink, own: OwnMounts) -> int:
    """Return an O_PATH descriptor of the directory that the rest of ``node`` begins in; -1 if there is none."""
    return _inside(node, own) if node.rest else -1


def _inside(node: MagicLink, own: OwnMounts) -> int:
    """Return an O_PATH descriptor of what ``node`` leads to without its rest, which has to be in the step's root."""
    fd = os.open(node.name, _PATH | (os.O_DIRECTORY if node.rest else 0), dir_fd=node.at)
    if syscalls.mount_id(fd) != own.root:
        os.close(fd)
        _refused()
    return fd


def _stat(at: int, name: bytes) -> tuple[int, int, int]:
    """Return the number of a process, of its parent and of its group (proc_pid_stat(5))."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
    try:
        text = os.read(fd, 4096)
    finally:
        os.close(fd)
    number, _, rest = text.partition(b" (")
    parent, group = rest.rpartition(b")")[2].split()[1:3]
    return int(number), int(parent), int(group)


def _numbers(at: int, name: bytes) -> tuple[bytes, ...]:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
    try:
        return tuple(os.fsencode(each) for each in os.listdir(fd))
    finally:
        os.close(fd)


def _with_own(numbers: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return ``numbers`` with the one that a descriptor of the directory will have."""
    return *numbers, next(
        each for each in (b"%d" % number for number in range(len(numbers) + 1)) if each not in numbers
    )


def _missing() -> NoReturn:
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _refused() -> NoReturn:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
