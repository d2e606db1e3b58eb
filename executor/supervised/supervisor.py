"""The supervisor of a step in a chroot: opens for it what is outside of its root (seccomp_unotify(2)).

That is files of /proc and /sys, terminals, the step's own standard streams by their names in /dev, secrets, and devices
where none can be made. Every other call is executed by the kernel, which resolves its path in the step's root, whatever
the step has made of its memory meanwhile: leaving a call to the kernel grants nothing.

The supervisor is in the same chroot, but keeps CAP_SYS_CHROOT, so the step may not trace it. It runs before any name of
the image is resolved in it; everything it needs is loaded.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat
import struct
from typing import TYPE_CHECKING, Final

from executor.sandbox import access_lists, notified_calls, seccomp, status
from executor.sandbox.listener import Listener, SystemCall
from executor.snapshotter.apply import HARMLESS
from executor.snapshotter.records import DeviceNumber
from executor.supervised import chroot_calls, proc_files
from executor.supervised.answered_calls import ACCESSING, NAMING, OPENING, READING
from executor.supervised.callers import AT_FDCWD, PLACES, Callers, Outside
from executor.supervised.directories import DirectoryLists
from executor.supervised.open_file_calls import OpenFileCalls
from executor.supervised.proc_files import File, MadeUp, MagicLink, ProcFiles, ProcLink
from executor.supervised.signals import StepSignals
from platforms import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

    from executor.supervised.step_children import StepChildren
    from executor.supervised.step_files import Answered

_WORD: Final = (1 << 32) - 1
_AT_SYMLINK_NOFOLLOW: Final = syscalls.AT_SYMLINK_NOFOLLOW
_PATH: Final = os.O_PATH | os.O_CLOEXEC
_OPEN_HOW: Final = struct.Struct("=QQQ")  # flags, mode, resolve
_NAME_SIZE: Final = 65
"""Bytes of each member of ``struct utsname`` (uname(2))."""
_STREAMS: Final = {b"/dev/stdin": b"self/fd/0", b"/dev/stdout": b"self/fd/1", b"/dev/stderr": b"self/fd/2"}
_LINKS: Final = 8
"""How many links in /proc are followed."""
_CREATING: Final = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
_TIOCGPTN: Final = 0x40045430 if os.uname().machine == "ppc64le" else 0x80045430


class Supervisor:
    """The supervisor of one step, whose host name is ``hostname``. This process is in the step's root."""

    def __init__(self, listener: int, outside: Outside, proc: ProcFiles, answered: Answered, hostname: str) -> None:
        self._listener = Listener(
            listener, seccomp.calls(chroot_calls.NOTIFIED + chroot_calls.SIGNALLING + chroot_calls.FORKING)
        )
        self._outside = outside
        self._proc = proc
        self._own = proc_files.own_mounts()
        self._callers = Callers(self._listener, outside)
        self._signals = StepSignals(proc)
        self._answered = answered
        self._lists = DirectoryLists(answered.proc)
        self._hostname = hostname
        self._handlers: dict[str, Callable[[SystemCall], bool]] = {
            name: handler
            for rows, handler in (
                (OPENING, self._open),
                (READING, self._read_link),
                (ACCESSING, self._access),
                (NAMING, self._name),
                (chroot_calls.LIMITING, self._limit),
                (notified_calls.LOOKING, self._look),
                (notified_calls.MAKING, self._make),
                (chroot_calls.SIGNALLING, self._signal),
                (chroot_calls.FORKING, self._fork),
            )
            for name in (row.split()[0] for row in rows.splitlines())
        }
        self._handlers |= OpenFileCalls(self._listener, self._callers, proc, self._own).handlers

    def run(self, children: StepChildren) -> None:
        """Serve calls, and reap ``children``, until no process of the step is left."""
        poll = select.poll()
        for fd in (self._listener.fd, children.fd):
            poll.register(fd, select.POLLIN)
        while children.reap():
            for fd, event in poll.poll():
                if fd == children.fd:
                    continue
                if not event & select.POLLIN:  # no process has the filter any more
                    poll.unregister(fd)
                elif (call := self._listener.take()) is not None:
                    self._serve(call)

    def _serve(self, call: SystemCall) -> None:
        try:
            if not self._handlers[call.name](call):
                self._listener.proceed(call)
        except OSError as failed:
            self._listener.answer(call, error=failed.errno or errno.EINVAL)
        except (ValueError, OverflowError, struct.error):  # a number that does not fit
            self._listener.answer(call, error=errno.EINVAL)
        finally:
            self._callers.take_own_ids()

    # -- handlers: return True if the call was answered, False to leave it to the kernel; raise OSError for its errno --

    def _open(self, call: SystemCall) -> bool:
        arguments = call.arguments
        match call.name:
            case "open":
                base, address, flags = AT_FDCWD, arguments[0], arguments[1]
            case "creat":
                base, address, flags = AT_FDCWD, arguments[0], _CREATING
            case "openat":
                base, address, flags = arguments[0] & _WORD, arguments[1], arguments[2]
            case _:
                base, address = arguments[0] & _WORD, arguments[1]
                flags, _, resolve = _OPEN_HOW.unpack(self._callers.read(call, arguments[2], _OPEN_HOW.size))
                if flags & os.O_PATH or resolve:
                    return False
        path = self._callers.path(call, base, address)
        if path is None:
            return False
        known = path if path.startswith(PLACES) else self._linked(path, follow=not flags & os.O_NOFOLLOW)
        if known is None:
            return False
        fd = self._opened(call, known, flags & _WORD)
        if fd < 0:
            return False
        try:
            self._listener.add_descriptor(call, fd, flags & _WORD)
        finally:
            os.close(fd)
        return True

    def _read_link(self, call: SystemCall) -> bool:
        arguments = call.arguments
        base, (address, buffer, size) = AT_FDCWD, arguments[:3]
        if call.name == "readlinkat":
            base, address, buffer, size = arguments[0] & _WORD, *arguments[1:4]
        path = self._callers.path(call, base, address)
        if path is None or not path.startswith(PLACES):
            return False
        text = self._text(call, path)
        if text is None:
            return False
        size &= _WORD
        if not 0 < size < 1 << 31:
            raise OSError(errno.EINVAL, "")
        self._callers.write(call, buffer, text[:size])
        self._listener.answer(call, min(len(text), size))
        return True

    def _access(self, call: SystemCall) -> bool:
        arguments = call.arguments
        base, (address, wanted) = AT_FDCWD, arguments[:2]
        if call.name != "access":
            base, address, wanted = arguments[0] & _WORD, *arguments[1:3]
        path = self._callers.path(call, base, address)
        if path is None or not path.startswith(PLACES):
            return False
        fd = self._placed(call, path, follow=True)
        if fd < 0:
            return False
        try:
            self._callers.take_ids_of(call)
            if not os.access(b"self/fd/%d" % fd, wanted & 7, dir_fd=self._outside.proc, effective_ids=True):
                raise OSError(errno.EACCES, "")
        finally:
            os.close(fd)
        self._listener.answer(call)
        return True

    def _look(self, call: SystemCall) -> bool:
        name, arguments = call.name, call.arguments
        base, flags, (address, buffer) = AT_FDCWD, 0, arguments[:2]
        if name in ("statx", "newfstatat", "fstatat64"):
            base, address, buffer, flags = arguments[0] & _WORD, *arguments[1:4]
            if name == "statx":
                flags, buffer = arguments[2], arguments[4]
        follow = not (flags & _AT_SYMLINK_NOFOLLOW or name.startswith("lstat"))
        path = self._callers.path(call, base, address)
        if path is None:
            return False
        looked_up = self._placed(call, path, follow=follow) if path.startswith(PLACES) else -1
        fd = self._secret(path, follow=follow) if looked_up < 0 else looked_up
        if fd < 0:
            return False
        try:
            found = os.fstat(fd)
            told = status.FileStatus(found, found.st_uid, found.st_gid, None)
            if name == "statx":
                data = syscalls.statx(fd, b"", syscalls.AT_EMPTY_PATH, arguments[3] & _WORD)
            else:
                data = status.pack(told, call.architecture, wide=name.endswith("64"))
        finally:
            os.close(fd)
        self._callers.write(call, buffer, data)
        self._listener.answer(call)
        return True

    def _name(self, call: SystemCall) -> bool:
        found = os.uname()
        domain = _read_text(self._outside.proc, "sys/kernel/domainname")
        parts = (found.sysname, self._hostname, found.release, found.version, found.machine, domain)
        data = b"".join(os.fsencode(each)[: _NAME_SIZE - 1].ljust(_NAME_SIZE, b"\0") for each in parts)
        self._callers.write(call, call.arguments[0], data)
        self._listener.answer(call)
        return True

    def _limit(self, call: SystemCall) -> bool:
        """Let a process limit itself. Landlock does not keep it from limiting others of the same user."""
        if call.arguments[0] & _WORD not in (call.pid, self._proc.process(call.pid)):
            raise OSError(errno.EPERM, "")
        return False

    def _make(self, call: SystemCall) -> bool:
        """Make a device. All but those that every container has are empty files, which are recorded as devices."""
        base, (address, mode, number) = AT_FDCWD, call.arguments[:3]
        if call.name == "mknodat":
            base, address, mode, number = call.arguments[0] & _WORD, *call.arguments[1:4]
        mode, number = mode & _WORD, number & _WORD
        major, minor = number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00
        if stat.S_ISCHR(mode) and not number:  # a whiteout of overlayfs, which takes no capability
            return False
        if self._proc.users(call.pid)[1]:
            raise OSError(errno.EPERM, "")
        directory, name = self._callers.directory_of(call, base, address)
        try:
            readable = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
            try:
                default = access_lists.default_of(readable)
            finally:
                os.close(readable)
            permissions = access_lists.permitted(stat.S_IMODE(mode), self._proc.umask(call.pid), default)
            self._listener.still(call)
            if stat.S_ISCHR(mode) and (major, minor) in HARMLESS:
                os.mknod(name, stat.S_IFCHR | 0o600, os.makedev(major, minor), dir_fd=directory)
            else:
                file = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=directory)
                self._answered.devices.add(file, DeviceNumber("c" if stat.S_ISCHR(mode) else "b", major, minor))
                os.close(file)
            os.chmod(name, permissions, dir_fd=directory)
        finally:
            os.close(directory)
        self._listener.answer(call)
        return True

    def _signal(self, call: SystemCall) -> bool:
        if not self._signals.handle(call):
            return False
        self._listener.answer(call)
        return True

    def _fork(self, call: SystemCall) -> bool:
        """Let a process be made, as long as this one lives."""
        del call
        return False

    # -- paths

    def _linked(self, path: bytes, *, follow: bool) -> bytes | None:
        """Return the name of the file that links lead to from ``path``, if that is one that stands for another."""
        try:
            found = os.stat(path, follow_symlinks=follow)
        except (OSError, ValueError):
            return None
        if found.st_ino in self._answered.secrets and self._is_ours(found):
            return b"secret/%d" % found.st_ino
        name = self._answered.names.get(found.st_ino)
        return name if name is not None and self._is_ours(found) else None

    def _is_ours(self, found: os.stat_result) -> bool:
        return found.st_dev == os.fstat(self._answered.proc).st_dev

    def _secret(self, path: bytes, *, follow: bool) -> int:
        """Return a new descriptor of the secret that ``path`` is; -1 if it is none."""
        if not self._answered.secrets:
            return -1
        known = self._linked(path, follow=follow)
        if known is None or not known.startswith(b"secret/"):
            return -1
        return os.dup(self._answered.secrets[int(known[7:])])

    def _opened(self, call: SystemCall, path: bytes, flags: int) -> int:
        """Return a descriptor of the file that ``path`` stands for; -1 if it is one of the root. Raises OSError."""
        self._callers.take_ids_of(call)
        flags &= ~os.O_CLOEXEC
        if path.startswith(b"secret/"):
            held = self._answered.secrets[int(path[7:])]
            if flags & os.O_ACCMODE != os.O_RDONLY:
                raise OSError(errno.EROFS, "")
            return os.open(b"self/fd/%d" % held, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._outside.proc)
        if path.startswith(b"/sys/"):
            return self._open_sys(path[5:], flags)
        if path.startswith(b"/dev/"):
            return self._open_dev(call, path, flags)
        return self._open_proc(call, path[6:], flags, _LINKS)

    def _open_proc(self, call: SystemCall, path: bytes, flags: int, links: int) -> int:
        with self._proc.found(call.pid, path.rstrip(b"/")) as node:
            self._listener.still(call)  # a number of a process is the caller's
            match node:
                case File():
                    return proc_files.open_file(node, flags)
                case MagicLink():
                    if flags & os.O_NOFOLLOW and not node.rest:
                        raise OSError(errno.ELOOP, "")
                    return proc_files.open_magic(node, flags, self._own)
                case ProcLink(text):
                    if flags & os.O_NOFOLLOW or not links:
                        raise OSError(errno.ELOOP, "")
                    return self._open_proc(call, text, flags, links - 1)
                case MadeUp(name):
                    return _only_read(self._answered.proc, b"self/" + name, flags)
                case _:
                    if flags & os.O_ACCMODE != os.O_RDONLY:
                        raise OSError(errno.EISDIR, "")
                    self._callers.take_own_ids()
                    place = path.rstrip(b"/")
                    first, slash, rest = place.partition(b"/")
                    own = b"%d" % self._proc.process(call.pid)
                    if first in (b"self", own):
                        self._lists.add(b"self" + slash + rest, node)  # for lstat(2), which the kernel executes
                        place = own + slash + rest
                    return self._lists.opened(place, node)

    def _open_sys(self, path: bytes, flags: int) -> int:
        fd = self._in_sys(path)
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                return -1
            if flags & os.O_ACCMODE != os.O_RDONLY:
                raise OSError(errno.EROFS, "")
            return os.open(b"self/fd/%d" % fd, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._outside.proc)
        finally:
            os.close(fd)

    def _in_sys(self, path: bytes, flags: int = 0) -> int:
        """Return an O_PATH descriptor of ``path`` in /sys, unless it is hidden from steps. Raises OSError."""
        fd = syscalls.openat2(self._outside.sys, os.fsdecode(path) or ".", _PATH | flags, resolve=syscalls.BENEATH)
        shown = os.readlink(b"self/fd/%d" % fd, dir_fd=self._outside.proc)  # also of what is not in this root
        if any(shown == each or shown.startswith(each + b"/") for each in self._answered.hidden):
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return fd

    def _open_dev(self, call: SystemCall, path: bytes, flags: int) -> int:
        if path in _STREAMS:
            return self._open_proc(call, _STREAMS[path], flags, _LINKS)
        if path == b"/dev/fd" or path.startswith(b"/dev/fd/"):
            return self._open_proc(call, b"self" + path[4:], flags, _LINKS)
        if path in (b"/dev/ptmx", b"/dev/pts/ptmx"):
            return self._open_terminal(flags)
        if path.startswith(b"/dev/pts/") and path[9:].isdigit():
            return self._open_end(path[5:], flags)
        if path in self._answered.names.values():
            return os.open(path[5:], flags & ~(os.O_CREAT | os.O_EXCL) | os.O_CLOEXEC, dir_fd=self._outside.dev)
        return -1

    def _open_terminal(self, flags: int) -> int:
        """Open a new terminal and mark its other end as the step's.

        The mark is the sticky bit of the file in /dev/pts: when the number is used again, the kernel makes a new file.
        """
        kept = flags & (os.O_ACCMODE | os.O_NONBLOCK) | os.O_NOCTTY | os.O_CLOEXEC
        fd = os.open("pts/ptmx", kept, dir_fd=self._outside.dev)
        (number,) = struct.unpack("=I", fcntl.ioctl(fd, _TIOCGPTN, bytes(4)))
        name = f"pts/{number}"
        mode = os.stat(name, dir_fd=self._outside.dev).st_mode
        os.chmod(name, stat.S_IMODE(mode) | stat.S_ISVTX, dir_fd=self._outside.dev)
        return fd

    def _open_end(self, path: bytes, flags: int) -> int:
        """Open the other end of one of the step's terminals. Others of the container are not there for it."""
        fd = os.open(path, _PATH | os.O_NOFOLLOW, dir_fd=self._outside.dev)
        try:
            if not os.fstat(fd).st_mode & stat.S_ISVTX:
                raise OSError(errno.ENOENT, "")
            kept = flags & (os.O_ACCMODE | os.O_NONBLOCK) | os.O_NOCTTY | os.O_CLOEXEC
            return os.open(b"self/fd/%d" % fd, kept, dir_fd=self._outside.proc)
        finally:
            os.close(fd)

    def _text(self, call: SystemCall, path: bytes) -> bytes | None:
        """Return the text of the link ``path``; None if it is one of the root."""
        self._callers.take_ids_of(call)
        if path.startswith(b"/dev/fd/"):
            path = b"/proc/self" + path[4:]
        if path.startswith(b"/sys/"):
            fd = self._in_sys(path[5:], os.O_NOFOLLOW)
            try:
                return os.readlink(b"", dir_fd=fd)
            finally:
                os.close(fd)
        if not path.startswith(b"/proc/"):
            return None
        with self._proc.found(call.pid, path[6:].rstrip(b"/")) as node:
            self._listener.still(call)
            match node:
                case ProcLink(text):
                    return text
                case MagicLink():
                    return proc_files.read_magic(node, self._own)
                case _:
                    raise OSError(errno.EINVAL, "")

    def _placed(self, call: SystemCall, path: bytes, *, follow: bool) -> int:
        """Return an O_PATH descriptor of what ``path`` stands for; -1 if it is a file of the root. Raises OSError."""
        self._callers.take_ids_of(call)
        if path.startswith(b"/sys/"):
            return self._in_sys(path[5:])
        if path.startswith(b"/dev/"):
            if path in _STREAMS:
                path = b"/proc/" + _STREAMS[path]
            elif path == b"/dev/fd" or path.startswith(b"/dev/fd/"):
                path = b"/proc/self" + path[4:]
            elif path in self._answered.names.values():
                return os.open(path[5:].replace(b"ptmx", b"pts/ptmx"), _PATH, dir_fd=self._outside.dev)
            elif path.startswith(b"/dev/pts/") and path[9:].isdigit():
                return os.open(path[5:], _PATH | os.O_NOFOLLOW, dir_fd=self._outside.dev)
            else:
                return -1
        return self._placed_proc(call, path[6:].rstrip(b"/"), follow, _LINKS)

    def _placed_proc(self, call: SystemCall, path: bytes, follow: bool, links: int) -> int:
        if not path:
            return os.open(".", _PATH, dir_fd=self._outside.proc)
        with self._proc.found(call.pid, path) as node:
            self._listener.still(call)
            final = _PATH if follow else _PATH | os.O_NOFOLLOW
            match node:
                case MadeUp(name):
                    return os.open(b"self/" + name, final, dir_fd=self._answered.proc)
                case ProcLink(text):
                    if links and follow:
                        return self._placed_proc(call, text, follow, links - 1)
                    return os.open(b"self", final, dir_fd=self._outside.proc)
                case MagicLink():
                    if node.rest:
                        return proc_files.open_magic(node, final, self._own)
                    if follow and node.name in (b"exe", b"cwd", b"root"):
                        proc_files.read_magic(node, self._own)
                    return os.open(node.name, final, dir_fd=node.at)
                case _:
                    return os.open(node.name, final, dir_fd=node.at)


def _only_read(at: int, name: bytes, flags: int) -> int:
    if flags & os.O_ACCMODE != os.O_RDONLY:
        raise OSError(errno.EACCES, "")
    return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)


def _read_text(at: int, name: str) -> str:
    with contextlib.suppress(OSError), open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)) as file:
        return file.read().strip()
    return "(none)"
