"""Linux system calls that Python lacks, one typed function for each.

Every function raises ``OSError`` with the errno and the path that it was called with, and does nothing else: no
retries. Names and constants are the kernel's; see the manual page of the same name (sections 2 and 7). What the
standard library has (``os.memfd_create``, ``os.pidfd_open``, ``signal.pidfd_send_signal``) is not repeated.

Importing this module is cheap and works on any system; ``ctypes`` is loaded by the first call.
"""

from __future__ import annotations

import errno
import functools
import os
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

# -- clone, unshare, setns: linux/sched.h ----------------------------------------------------------------------------

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

# -- mounts: linux/mount.h, linux/fcntl.h ----------------------------------------------------------------------------

MS_NOSUID: Final = 2
MS_RDONLY: Final = 1
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18

MNT_DETACH: Final = 2

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_NO_AUTOMOUNT: Final = 0x800
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000

OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x04
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
FSOPEN_CLOEXEC: Final = 1
FSMOUNT_CLOEXEC: Final = 1
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_CMD_CREATE: Final = 6

MOUNT_ATTR_RDONLY: Final = 0x01
MOUNT_ATTR_NOSUID: Final = 0x02
MOUNT_ATTR_NODEV: Final = 0x04
MOUNT_ATTR_NOEXEC: Final = 0x08

# -- openat2: linux/openat2.h ----------------------------------------------------------------------------------------

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10
BENEATH: Final = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
"""Paths may go through links, but not out of the directory: EXDEV."""
CONFINED: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
"""Paths may not go out of the directory, and not through links: ELOOP."""
IN_ROOT: Final = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
"""Paths are resolved as if the directory were the root, through links too, but not through those of /proc."""

STATX_BASIC_STATS: Final = 0x07FF
STATX_BTIME: Final = 0x0800
STATX_MNT_ID: Final = 0x1000
STATX_SIZE: Final = 256


CLOSE_RANGE_CLOEXEC: Final = 4

# -- prctl and capabilities: linux/prctl.h, linux/capability.h -------------------------------------------------------

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_KEEPCAPS: Final = 8
PR_SET_NAME: Final = 15
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
PR_SET_PTRACER: Final = 0x59616D61
PR_SET_PTRACER_ANY: Final = -1


CAP_CHOWN: Final = 0
CAP_DAC_OVERRIDE: Final = 1
CAP_FOWNER: Final = 3
CAP_FSETID: Final = 4
CAP_KILL: Final = 5
CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
CAP_SETPCAP: Final = 8
CAP_NET_BIND_SERVICE: Final = 10
CAP_NET_RAW: Final = 13
CAP_SYS_CHROOT: Final = 18
CAP_SYS_PTRACE: Final = 19
CAP_SYS_ADMIN: Final = 21
CAP_MKNOD: Final = 27
CAP_AUDIT_WRITE: Final = 29
CAP_SETFCAP: Final = 31
CAP_LAST: Final = 63
"""Higher than any capability of a kernel; dropping them ends at the first number that the kernel rejects."""

# -- seccomp: linux/seccomp.h ----------------------------------------------------------------------------------------

SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 1 << 3
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: Final = 1 << 5
"""Linux 5.19. A call that the supervisor has received is interrupted by signals that kill only."""

# -- tracing: linux/ptrace.h, linux/elf.h, linux/wait.h --------------------------------------------------------------

PTRACE_CONT: Final = 7
PTRACE_SYSCALL: Final = 24
PTRACE_GETEVENTMSG: Final = 0x4201
PTRACE_GETREGSET: Final = 0x4204
PTRACE_SETREGSET: Final = 0x4205
PTRACE_SEIZE: Final = 0x4206
PTRACE_LISTEN: Final = 0x4208

PTRACE_O_TRACESYSGOOD: Final = 0x01
PTRACE_O_TRACEFORK: Final = 0x02
PTRACE_O_TRACEVFORK: Final = 0x04
PTRACE_O_TRACECLONE: Final = 0x08
PTRACE_O_TRACEEXEC: Final = 0x10
PTRACE_O_TRACESECCOMP: Final = 0x80
PTRACE_O_EXITKILL: Final = 0x100000

PTRACE_EVENT_FORK: Final = 1
PTRACE_EVENT_VFORK: Final = 2
PTRACE_EVENT_CLONE: Final = 3
PTRACE_EVENT_EXEC: Final = 4
PTRACE_EVENT_SECCOMP: Final = 7
PTRACE_EVENT_STOP: Final = 128

NT_PRSTATUS: Final = 1
NT_ARM_SYSTEM_CALL: Final = 0x404
WALL: Final = 0x40000000
"""The option of wait(2) for children of any kind (__WALL)."""


# Calls added since Linux 5.1 have the same number on every architecture; older ones without a wrapper in every C
# library are listed by machine (os.uname()).
_FICLONE: Final = 0x40049409
_NR_OPEN_TREE: Final = 428
_NR_MOVE_MOUNT: Final = 429
_NR_FSOPEN: Final = 430
_NR_FSCONFIG: Final = 431
_NR_FSMOUNT: Final = 432
_NR_CLOSE_RANGE: Final = 436
_NR_OPENAT2: Final = 437
_NR_PIDFD_GETFD: Final = 438
_NR_MOUNT_SETATTR: Final = 442
_NR_LANDLOCK_CREATE_RULESET: Final = 444
_NR_LANDLOCK_ADD_RULE: Final = 445
_NR_LANDLOCK_RESTRICT_SELF: Final = 446

_GENERIC: Final = {"clone": 220, "seccomp": 277}
_NUMBERS: Final = {
    "x86_64": {"clone": 56, "seccomp": 317},
    "aarch64": _GENERIC,
    "riscv64": _GENERIC,
    "loongarch64": _GENERIC,
    "ppc64le": {"clone": 120, "seccomp": 358},
    "s390x": {"clone": 120, "seccomp": 348},
    "i686": {"clone": 120, "seccomp": 354},
    "armv7l": {"clone": 120, "seccomp": 383},
}

_loaded: Any = None


def _libc() -> Any:
    """Return the C library. ``PyDLL``, not ``CDLL``: the calls are short, and ``clone`` must not release the GIL."""
    global _loaded  # noqa: PLW0603
    if _loaded is None:
        import ctypes

        loaded = ctypes.PyDLL(None, use_errno=True)
        loaded.syscall.restype = ctypes.c_long
        _loaded = loaded, ctypes
    return _loaded


def _call(function: str, path: str, *args: int | bytes | bytearray | None) -> int:
    """Call ``function`` of the C library; integers are passed as long, bytes as pointers."""
    libc, ctypes = _libc()
    if (call := getattr(libc, function, None)) is None:
        raise OSError(errno.ENOSYS, f"{function}: {os.strerror(errno.ENOSYS)}", path or None)
    result = call(*(_argument(ctypes, each) for each in args))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}", path or None)
    return int(result)


def _syscall(name: str, number: int, path: str, *args: int | bytes | bytearray | None) -> int:
    libc, ctypes = _libc()
    result = libc.syscall(ctypes.c_long(number), *(_argument(ctypes, each) for each in args))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}", path or None)
    return int(result)


def _argument(ctypes: Any, value: int | bytes | bytearray | None) -> Any:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, int):
        return ctypes.c_long(value)
    if isinstance(value, bytearray):
        return (ctypes.c_char * len(value)).from_buffer(value)
    if 0 in value:  # the string would end there
        raise OSError(errno.EINVAL, "embedded null byte")
    return value


def _number(name: str) -> int:
    machine = os.uname().machine
    machine = {"i386": "i686", "i586": "i686", "armv6l": "armv7l", "armv8l": "armv7l"}.get(machine, machine)
    if machine == "x86_64" and struct.calcsize("P") == 4:
        machine = "i686"  # a 32-bit Python on a 64-bit kernel
    if machine == "aarch64" and struct.calcsize("P") == 4:
        machine = "armv7l"
    try:
        return _NUMBERS[machine][name]
    except KeyError:
        raise OSError(errno.ENOSYS, f"{name}: system call number unknown on {machine}") from None


# -- namespaces ------------------------------------------------------------------------------------------------------


def unshare(flags: int) -> None:
    """Move this process into new namespaces (``CLONE_NEW*``)."""
    _call("unshare", "", flags)


def setns(fd: int, flags: int = 0) -> None:
    """Move this process into the namespace of ``fd``, a descriptor of ``/proc/PID/ns/*`` or a pidfd."""
    _call("setns", "", fd, flags)


def fork(flags: int) -> int:
    """Fork into new namespaces (``CLONE_NEW*``); returns 0 in the child, its process id in the parent.

    Unlike with ``unshare``, the caller stays where it is, and the child is process 1 of a ``CLONE_NEWPID`` namespace.
    Python's at-fork handlers do not run: only a process with a single thread may call this (checked with the kernel's
    count).
    """
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("forking into namespaces needs a process with a single thread")
    signal_on_exit = 17  # SIGCHLD, on every architecture listed above
    first, second = flags | signal_on_exit, 0
    if os.uname().machine == "s390x":
        first, second = second, first
    return _syscall("clone", _number("clone"), "", first, second, 0, 0, 0)


# -- mounts ----------------------------------------------------------------------------------------------------------


def mount(source: str, target: str, fstype: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2). ``options`` is limited to a page (4,095 bytes)."""
    _call(
        "mount",
        target,
        os.fsencode(source),
        os.fsencode(target),
        fstype.encode() if fstype else None,
        flags,
        os.fsencode(options) if options else None,
    )


def umount(target: str, flags: int = 0) -> None:
    """umount2(2), with ``MNT_DETACH`` …"""
    _call("umount2", target, os.fsencode(target), flags)


def pivot_root(new_root: str, put_old: str) -> None:
    """Make ``new_root`` the root and move the old one to ``put_old``; both may be ``"."``."""
    _call("pivot_root", new_root, os.fsencode(new_root), os.fsencode(put_old))


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """Return an O_PATH descriptor of the mount at ``path``; a detached copy with ``OPEN_TREE_CLONE``. Linux 5.2."""
    return _syscall("open_tree", _NR_OPEN_TREE, path, dirfd, os.fsencode(path), flags)


def move_mount(from_fd: int, from_path: str, to_fd: int, to_path: str, flags: int) -> None:
    """Attach the mount at (``from_fd``, ``from_path``) to (``to_fd``, ``to_path``). Linux 5.2."""
    _syscall("move_mount", _NR_MOVE_MOUNT, to_path, from_fd, os.fsencode(from_path), to_fd, os.fsencode(to_path), flags)


def fsopen(fstype: str, flags: int = FSOPEN_CLOEXEC) -> int:
    """Return a descriptor to configure a new mount of ``fstype``. Linux 5.2. Reading it returns the kernel's
    messages."""
    return _syscall("fsopen", _NR_FSOPEN, fstype, fstype.encode(), flags)


def fsconfig(fd: int, command: int, key: str | None = None, value: str | None = None, aux: int = 0) -> None:
    """Set a parameter of the file system of an ``fsopen`` descriptor, or create it."""
    _syscall(
        "fsconfig",
        _NR_FSCONFIG,
        value or key or "",
        fd,
        command,
        key.encode() if key is not None else None,
        os.fsencode(value) if value is not None else None,
        aux,
    )


def fsmount(fd: int, attributes: int = 0, flags: int = FSMOUNT_CLOEXEC) -> int:
    """Return a detached mount of an ``fsopen`` file system with ``MOUNT_ATTR_*`` attributes; move_mount attaches it."""
    return _syscall("fsmount", _NR_FSMOUNT, "", fd, flags, attributes)


def mount_setattr(dirfd: int, path: str, flags: int, *, add: int = 0, clear: int = 0) -> None:
    """Set and clear ``MOUNT_ATTR_*`` attributes of a mount, recursively with ``AT_RECURSIVE``. Linux 5.12."""
    attributes = bytearray(struct.pack("=4Q", add, clear, 0, 0))
    _syscall("mount_setattr", _NR_MOUNT_SETATTR, path, dirfd, os.fsencode(path), flags, attributes, len(attributes))


# -- files -----------------------------------------------------------------------------------------------------------


_OPEN_HOW: Final = struct.Struct("=3Q")
"""``struct open_how``: flags, mode, resolve."""
_OPENAT2_TRIES: Final = 1000
"""Maximum number of attempts: ``..`` fails with EAGAIN while anything is mounted or renamed (openat2(2))."""


def openat2(dirfd: int, path: str | bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open ``path`` relative to ``dirfd`` with ``RESOLVE_*`` flags; O_CLOEXEC is always added. Linux 5.6.

    On another system no link is followed, whatever ``resolve`` allows, and ``path`` must be below ``dirfd``.
    """
    if sys.platform != "linux":
        return _open_by_components(dirfd, os.fsdecode(path), flags | os.O_CLOEXEC, mode)
    name = path if isinstance(path, bytes) else os.fsencode(path)
    if 0 in name:  # the string would end there
        raise OSError(errno.EINVAL, "embedded null byte")
    call, last_errno = _openat2()
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_OPENAT2_TRIES):
        fd: int = call(_NR_OPENAT2, dirfd, name, how, _OPEN_HOW.size)
        if fd >= 0:
            return fd
        number = last_errno()
        if number != errno.EAGAIN:
            break
    raise OSError(number, f"openat2: {os.strerror(number)}", os.fsdecode(path) or None)


@functools.cache
def _openat2() -> tuple[Any, Any]:
    """Return syscall(2) with the types of openat2's arguments, and what tells its errno."""
    libc, ctypes = _libc()
    call = libc["syscall"]
    call.restype = ctypes.c_long
    call.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
    return call, ctypes.get_errno


def _open_by_components(dirfd: int, path: str, flags: int, mode: int) -> int:
    *above, last = [each for each in path.split("/") if each not in ("", ".")] or ["."]
    if path.startswith("/") or ".." in (*above, last):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    opened = dirfd
    try:
        for each in above:
            below = os.open(each, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=opened)
            if opened != dirfd:
                os.close(opened)
            opened = below
        return os.open(last, flags | os.O_NOFOLLOW, mode, dir_fd=opened)
    finally:
        if opened != dirfd:
            os.close(opened)


def renameat2(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int = 0) -> None:
    """Rename ``old`` in the directory ``old_dir`` to ``new`` in ``new_dir``, with the flags of renameat2(2)."""
    _call("renameat2", os.fsdecode(old), old_dir, old, new_dir, new, flags)


def statx(dirfd: int, path: bytes, flags: int = 0, mask: int = STATX_BASIC_STATS) -> bytes:
    """Return the ``struct statx`` of ``path`` (linux/stat.h), 256 bytes."""
    buffer = bytearray(STATX_SIZE)
    _call("statx", os.fsdecode(path), dirfd, path, flags, mask, buffer)
    return bytes(buffer)


def birth(fd: int) -> int:
    """Return the creation time of the inode of ``fd`` in nanoseconds since the epoch; 0 when the file system has
    none."""
    found = statx(fd, b"", AT_EMPTY_PATH, STATX_BTIME)
    mask, seconds, nanoseconds = struct.unpack_from("=I76xqI", found)
    return int(seconds) * 1_000_000_000 + int(nanoseconds) if mask & STATX_BTIME else 0


def mount_id(fd: int) -> int:
    """The number of the mount that ``fd`` was opened in, as mountinfo shows it. Linux 5.8."""
    (number,) = struct.unpack_from("=Q", statx(fd, b"", AT_EMPTY_PATH, STATX_MNT_ID), 144)
    return int(number)


class ProcessMemory:
    """Reads and writes the memory of other processes (process_vm_readv(2)) by a buffer that is allocated once. For one
    thread."""

    def __init__(self, size: int = 4096) -> None:
        libc, ctypes = _libc()
        self._buffer = ctypes.create_string_buffer(size)
        self._ours = (ctypes.c_size_t * 2)(ctypes.addressof(self._buffer), size)
        self._theirs = (ctypes.c_size_t * 2)()
        self._view = memoryview(self._buffer).cast("B")
        self._read = libc.process_vm_readv
        self._write = libc.process_vm_writev
        self._errno = ctypes.get_errno

    def read(self, pid: int, address: int, size: int) -> bytes:
        """Return ``size`` bytes at ``address``, or fewer; at most the size given at construction."""
        return bytes(self._view[: self._copy(self._read, pid, address, size)])

    def write(self, pid: int, address: int, data: bytes) -> None:
        """Write all of ``data`` to ``address``. Raises OSError: EFAULT where it is not writable; a part may have
        been."""
        for start in range(0, len(data), len(self._view)):
            part = data[start : start + len(self._view)]
            self._view[: len(part)] = part
            if self._copy(self._write, pid, address + start, len(part)) < len(part):
                raise OSError(errno.EFAULT, f"process_vm_writev: {os.strerror(errno.EFAULT)}")

    def _copy(self, function: Any, pid: int, address: int, size: int) -> int:
        """Return how many bytes were copied: at least one."""
        self._ours[1] = self._theirs[1] = size
        self._theirs[0] = address
        count: int = function(pid, self._ours, 1, self._theirs, 1, 0)
        if count <= 0:
            number = self._errno() if count else errno.EFAULT
            raise OSError(number, f"{function.__name__}: {os.strerror(number)}")
        return count


def share_content(source: int, target: int) -> bool:
    """Make the empty file ``target`` share the blocks of ``source``; False where that is not supported.

    Blocks are copied on write (ioctl_ficlonerange(2): btrfs, XFS, bcachefs).
    """
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def file_system_type(path: str) -> int:
    """Return the magic number of the file system of ``path`` (statfs(2), linux/magic.h)."""
    buffer = bytearray(256)
    _call("statfs", path, os.fsencode(path), buffer)
    return int(struct.unpack_from("=I", buffer)[0])  # the lower half on 64-bit architectures, which are little-endian


def fstatfs(fd: int) -> bytes:
    """Return the ``struct statfs`` of the file system of ``fd`` (statfs(2)), as this machine's kernel has it."""
    buffer = bytearray(120)
    _call("fstatfs", "", fd, buffer)
    return bytes(buffer)


def utimensat(path: bytes, times: bytes | None) -> None:
    """Set the times of ``path``: two struct timespec, or None for the present (utimensat(2))."""
    _call("utimensat", os.fsdecode(path), AT_FDCWD, path, times if times is None else bytearray(times), 0)


def syncfs(fd: int) -> None:
    """Write the file system of ``fd`` to its disk; raises on a write error (Linux 5.8)."""
    _, ctypes = _libc()
    # CDLL, which releases the GIL: this may take seconds.
    if ctypes.CDLL(None, use_errno=True).syncfs(ctypes.c_int(fd)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"syncfs: {os.strerror(number)}")


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """Close the descriptors ``first`` to ``last``, or mark them ``CLOSE_RANGE_CLOEXEC``. Linux 5.9, 5.11."""
    try:
        _syscall("close_range", _NR_CLOSE_RANGE, "", first, last, flags)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL):
            raise
        for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
            if first <= fd <= last:
                try:
                    if flags & CLOSE_RANGE_CLOEXEC:
                        os.set_inheritable(fd, False)
                    else:
                        os.close(fd)
                except OSError:  # the descriptor of the directory listing
                    pass


# -- this process ----------------------------------------------------------------------------------------------------


def prctl(option: int, a: int | bytes = 0, b: int = 0, c: int = 0, d: int = 0) -> int:
    """prctl(2)."""
    return _call("prctl", "", option, a, b, c, d)


def signal_descriptor(numbers: Sequence[int]) -> int:
    """Return a descriptor that signals of these ``numbers``, which must be blocked, are read from (signalfd(2)).

    Each is a structure of 128 bytes that begins with its number, 32 bits.
    """
    mask = sum(1 << (number - 1) for number in numbers)
    return _call("signalfd", "", -1, bytearray(struct.pack("=Q", mask).ljust(128, b"\0")), os.O_CLOEXEC | os.O_NONBLOCK)


def die_with_parent(signal: int = 9) -> None:
    """Request ``signal`` when the *thread* that forked this process ends. Cleared by setuid and by privileged exec."""
    prctl(PR_SET_PDEATHSIG, signal)


def set_dumpable(dumpable: bool) -> None:
    """Set whether other processes of this user may trace this one and read its ``/proc/PID``."""
    prctl(PR_SET_DUMPABLE, int(dumpable))


def adopt_orphans() -> None:
    """Become the parent of descendants of this process whose own parents end (PR_SET_CHILD_SUBREAPER)."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def no_new_privileges() -> None:
    """Let no program that this process executes gain privileges by its set-user-id bits or file capabilities."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def set_fs_ids(uid: int, gid: int) -> None:
    """Access files as ``uid`` and ``gid`` from now on (setfsuid(2)); not as root, without root's capabilities."""
    _call("setfsgid", "", gid)
    _call("setfsuid", "", uid)


def allow_tracers(allowed: bool) -> None:
    """Set whether any process of this user may trace this one, where only its ancestors may otherwise (Yama)."""
    try:
        prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY if allowed else 0)
    except OSError as error:
        if error.errno != errno.EINVAL:  # without Yama
            raise


def set_name(name: str) -> None:
    """Set this thread's name as ``ps`` shows it; cut to 15 bytes."""
    prctl(PR_SET_NAME, name.encode()[:15])


def bounded(capability: int) -> bool:
    """Whether ``capability`` is in this process's bounding set; False for numbers that the kernel does not know."""
    try:
        return bool(prctl(PR_CAPBSET_READ, capability))
    except OSError:
        return False


def drop_bounding(capability: int) -> None:
    """Remove ``capability`` from this process's bounding set."""
    prctl(PR_CAPBSET_DROP, capability)


def clear_ambient() -> None:
    """Empty the ambient set."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)


_CAPABILITY_VERSION_3: Final = 0x20080522


def capget() -> tuple[int, int, int]:
    """Return this process's effective, permitted and inheritable capabilities as bit masks."""
    header = bytearray(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    data = bytearray(24)
    _call("capget", "", header, data)
    low_e, low_p, low_i, high_e, high_p, high_i = struct.unpack("=6I", data)
    return low_e | high_e << 32, low_p | high_p << 32, low_i | high_i << 32


def opens_all() -> bool:
    """Whether this process opens files whatever their permissions are: CAP_DAC_OVERRIDE, or root elsewhere."""
    if sys.platform != "linux":
        return os.geteuid() == 0
    return bool(capget()[0] & 1 << CAP_DAC_OVERRIDE)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set this process's capabilities, given as bit masks."""
    header = bytearray(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    masks = (effective, permitted, inheritable)
    low, high = [each & 0xFFFFFFFF for each in masks], [each >> 32 for each in masks]
    _call("capset", "", header, bytearray(struct.pack("=6I", *low, *high)))


def sethostname(name: str) -> None:
    """Set the host name of this UTS namespace."""
    data = name.encode()
    _call("sethostname", name, data, len(data))


# -- seccomp ---------------------------------------------------------------------------------------------------------


def seccomp_filter(program: bytes, flags: int = 0) -> int:
    """Install a filter: ``program`` is an array of ``struct sock_filter`` (8 bytes each, at most 4,096 of them).

    Returns the listener's descriptor with ``SECCOMP_FILTER_FLAG_NEW_LISTENER``, else 0. Requires CAP_SYS_ADMIN or
    no_new_privs (prctl(2)).
    """
    _, ctypes = _libc()
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: an unsigned short and, after padding, a pointer.
    head = bytearray(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    return _syscall("seccomp", _number("seccomp"), "", SECCOMP_SET_MODE_FILTER, flags, head)


# -- Landlock: linux/landlock.h --------------------------------------------------------------------------------------

LANDLOCK_CREATE_RULESET_VERSION: Final = 1
LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET: Final = 1 << 0
LANDLOCK_SCOPE_SIGNAL: Final = 1 << 1
_LANDLOCK_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights to files there are, by the ABI version; not more since."""
_LANDLOCK_ACCESS_FS_EXECUTE: Final = 1 << 0
_LANDLOCK_ACCESS_FS_READ_FILE: Final = 1 << 2
_LANDLOCK_ACCESS_FS_MAKE_BLOCK: Final = 1 << 11
_LANDLOCK_ACCESS_FS_REFER: Final = 1 << 13
_LANDLOCK_RULE_PATH_BENEATH: Final = 1


def landlock_version() -> int:
    """Return the Landlock ABI version of this kernel; 0 when it is missing or disabled."""
    try:
        number = _NR_LANDLOCK_CREATE_RULESET
        return _syscall("landlock_create_ruleset", number, "", None, 0, LANDLOCK_CREATE_RULESET_VERSION)
    except OSError:
        return 0


def landlock_scope(scopes: int) -> None:
    """Restrict this process and its children to a new domain (``LANDLOCK_SCOPE_*``): ABI version 6, Linux 6.12.

    Requires CAP_SYS_ADMIN or no_new_privileges().
    """
    ruleset = _landlock_ruleset(0, 0, scopes)
    try:
        _syscall("landlock_restrict_self", _NR_LANDLOCK_RESTRICT_SELF, "", ruleset, 0)
    finally:
        os.close(ruleset)


def landlock_domain(scopes: int = 0) -> None:
    """Restrict this process and its children to a new domain in which no file is forbidden: ABI version 2, Linux 5.19.

    They cannot trace processes outside of it, nor read what only tracing processes may (ptrace(2), Landlock). Requires
    what ``landlock_scope`` does. Unlike a domain of ``scopes`` (ABI version 6) alone, one in which files are restricted
    further can be inside of it: there, moving files to other directories is permitted only if it is in every domain.
    """
    _restrict_below_root(_LANDLOCK_ACCESS_FS_MAKE_BLOCK | _LANDLOCK_ACCESS_FS_REFER, scopes)


def landlock_confine(scopes: int) -> None:
    """Restrict this process and its children to files below its root directory, and to ``scopes``.

    Files outside of it cannot be opened by a path, whatever descriptor that begins with. ABI version 2; 6 for scopes.
    """
    known = _LANDLOCK_RIGHTS.get(landlock_version(), max(_LANDLOCK_RIGHTS.values()))
    _restrict_below_root((1 << known) - 1, scopes)


def _restrict_below_root(rights: int, scopes: int) -> None:
    """Enter a domain in which ``rights`` to files are granted below the root directory only."""
    ruleset = _landlock_ruleset(rights, 0, scopes) if scopes else _landlock_ruleset(rights)
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        below = bytearray(struct.pack("=Qi", rights, root))
        _syscall("landlock_add_rule", _NR_LANDLOCK_ADD_RULE, "", ruleset, _LANDLOCK_RULE_PATH_BENEATH, below, 0)
        _syscall("landlock_restrict_self", _NR_LANDLOCK_RESTRICT_SELF, "", ruleset, 0)
    finally:
        os.close(root)
        os.close(ruleset)


def landlock_execute_only(places: Sequence[str], scopes: int) -> None:
    """Restrict this process and its children to a domain in which they can open and execute what is at and below
    ``places``, and no other path; with ``scopes`` as well (``landlock_scope``). Raises OSError without Landlock.

    Descriptors that were opened outside of the domain are not affected. Requires what ``landlock_scope`` does.
    """
    version = landlock_version()
    handled = (1 << _LANDLOCK_RIGHTS.get(version, max(_LANDLOCK_RIGHTS.values()))) - 1
    rights = _LANDLOCK_ACCESS_FS_EXECUTE | _LANDLOCK_ACCESS_FS_READ_FILE
    ruleset = _landlock_ruleset(handled, 0, scopes) if scopes else _landlock_ruleset(handled)
    try:
        for place in places:
            top = os.open(place, os.O_PATH | os.O_CLOEXEC)
            below = bytearray(struct.pack("=Qi", rights, top))
            _syscall("landlock_add_rule", _NR_LANDLOCK_ADD_RULE, "", ruleset, _LANDLOCK_RULE_PATH_BENEATH, below, 0)
            os.close(top)
        _syscall("landlock_restrict_self", _NR_LANDLOCK_RESTRICT_SELF, "", ruleset, 0)
    finally:
        os.close(ruleset)


def _landlock_ruleset(*fields: int) -> int:
    """Return a ruleset for the first ``fields`` of struct landlock_ruleset_attr (linux/landlock.h)."""
    attributes = bytearray(struct.pack(f"={len(fields)}Q", *fields))
    return _syscall("landlock_create_ruleset", _NR_LANDLOCK_CREATE_RULESET, "", attributes, len(attributes), 0)


# -- descriptors of other processes ----------------------------------------------------------------------------------


def pidfd_getfd(pidfd: int, number: int) -> int:
    """Return a copy of the descriptor ``number`` of the process of ``pidfd``; requires the right to trace it. Linux
    5.6."""
    return _syscall("pidfd_getfd", _NR_PIDFD_GETFD, "", pidfd, number, 0)


def filter_tap(fd: int, program: bytes) -> None:
    """Attach ``program`` (as in ``seccomp_filter``) to ``fd``, the end of a tap interface: only packets that it accepts
    are read.

    TUNATTACHFILTER, linux/if_tun.h.
    """
    import fcntl

    _, ctypes = _libc()
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    write = 0x80000000 if os.uname().machine == "ppc64le" else 0x40000000  # _IOC_WRITE, asm/ioctl.h
    fcntl.ioctl(fd, write | len(head) << 16 | ord("T") << 8 | 213, head)


# -- tracing ---------------------------------------------------------------------------------------------------------


def ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> None:
    """ptrace(2), for requests that return nothing. ESRCH if the thread is not stopped, or has been killed."""
    _ptrace(request, pid, address, data)


def _ptrace(request: int, pid: int, address: int, data: Any) -> None:
    call, ctypes = _typed_ptrace()
    if call(request, pid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace: {os.strerror(number)}")


@functools.cache
def _typed_ptrace() -> tuple[Any, Any]:
    """Return ptrace(2) with the types of its arguments, and the module of these."""
    libc, ctypes = _libc()
    call = libc["ptrace"]
    call.restype = ctypes.c_long
    call.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    return call, ctypes


def ptrace_message(pid: int) -> int:
    """Return the message of the event that ``pid`` is stopped for (PTRACE_GETEVENTMSG)."""
    _, ctypes = _libc()
    message = ctypes.c_ulong()
    _ptrace(PTRACE_GETEVENTMSG, pid, 0, ctypes.byref(message))
    return int(message.value)


def ptrace_registers(request: int, pid: int, kind: int, data: bytearray) -> int:
    """Read registers of ``pid`` into ``data``, or write them (PTRACE_GETREGSET, PTRACE_SETREGSET); return their size.

    ``kind`` is a set of registers (``NT_*``).
    """
    _, ctypes = _libc()
    content = (ctypes.c_char * len(data)).from_buffer(data)
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(content), len(data))
    _ptrace(request, pid, kind, vector)
    return int(vector[1])


def setfsuid(uid: int) -> None:
    """Set the user id for access to files, without a sign of failure (setfsuid(2))."""
    _libc()[0].setfsuid(uid)


def setfsgid(gid: int) -> None:
    """As ``setfsuid``, for the group id."""
    _libc()[0].setfsgid(gid)
