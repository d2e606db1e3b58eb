"""Answering the calls that open, make, move and remove files.

As everywhere, arguments in the caller's memory are read once, and the file that was found is the one that is acted
upon, by a descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from typing import TYPE_CHECKING, Final

import msgspec

from executor.sandbox import access_lists
from executor.snapshotter.records import DeviceNumber
from executor.supervised import permissions
from executor.supervised.file_metadata import FileMetadata
from executor.supervised.file_view import AT_FDCWD, FoundFile, failure
from platforms import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

    from executor.sandbox.listener import SystemCall
    from executor.supervised.processes import Process
    from executor.supervised.step_context import StepContext

_PATH: Final = os.O_PATH | os.O_CLOEXEC
_O_TMPFILE: Final = os.O_TMPFILE & ~os.O_DIRECTORY
_HOW: Final = struct.Struct("=3Q")
_PERMISSIONS: Final = 0o7777
_WORD: Final = 0xFFFFFFFF
_KEPT: Final = ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC)
AT_REMOVEDIR: Final = 0x200
AT_SYMLINK_FOLLOW: Final = 0x400
_RENAME_WHITEOUT: Final = 4
_KINDS: Final = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}
DEVICES: Final = {
    ("c", 1, 3): "null", ("c", 1, 5): "zero", ("c", 1, 7): "full", ("c", 1, 8): "random", ("c", 1, 9): "urandom",
    ("c", 5, 0): "tty", ("c", 5, 2): "ptmx",
}  # fmt: skip
"""The devices of a step's /dev."""
TERMINALS: Final = 136
"""The major number of the ends of terminals in /dev/pts."""


class Opening(msgspec.Struct, frozen=True):
    """What open(2) and its variants are asked for."""

    base: int
    path: bytes
    flags: int
    mode: int


class PathCalls:
    """Handlers of the calls about names."""

    def __init__(self, step: StepContext) -> None:
        self.step = step
        self.listener = step.listener
        self.view = step.view
        self.table = step.table
        self.has_pipes = False
        """Whether the step has made a pipe with a name, or opened one. Opening and closing it would wake its other
        end."""
        self.handlers: dict[str, Callable[[SystemCall, Process], int | None]] = {
            "open": self._open, "openat": self._open, "openat2": self._open, "creat": self._open,
            "readlink": self._readlink, "readlinkat": self._readlink,
            "mkdir": self._mkdir, "mkdirat": self._mkdir, "mknod": self._mknod, "mknodat": self._mknod,
            "symlink": self._symlink, "symlinkat": self._symlink, "link": self._link, "linkat": self._link,
            "rmdir": self._remove, "unlink": self._remove, "unlinkat": self._remove,
            "rename": self._rename, "renameat": self._rename, "renameat2": self._rename,
            "truncate": self._truncate, "truncate64": self._truncate,
        }  # fmt: skip

    # -- opening -------------------------------------------------------------------------------------------------------

    def _open(self, call: SystemCall, process: Process) -> int | None:
        base, mode = AT_FDCWD, 0
        match call.name:
            case "open":
                address, flags, mode = call.arguments[:3]
            case "openat":
                base, address, flags, mode = call.arguments[:4]
            case "creat":
                address, mode = call.arguments[:2]
                flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
            case _:
                base, address, how, size = call.arguments[:4]
                if size < _HOW.size:
                    raise failure(errno.EINVAL)
                flags, mode, resolve = _HOW.unpack(self.listener.read(call, how, _HOW.size))
                if resolve & ~syscalls.RESOLVE_NO_MAGICLINKS:
                    raise failure(errno.ENOSYS)
        flags &= _WORD
        path = self.listener.string(call, address)
        opening = Opening(base, path, flags, mode)
        if flags & os.O_PATH:
            fd = self._open_path(process, opening)
        elif flags & _O_TMPFILE:
            fd = self._unnamed(process, opening)
        else:
            opened = self._opened(call, process, opening)
            if opened is None:
                return None
            fd = opened
        try:
            self.listener.add_descriptor(call, fd, flags)
        finally:
            os.close(fd)
        return None

    def _opened(self, call: SystemCall, process: Process, opening: Opening) -> int | None:
        """Return a descriptor for open(2); None if it will be added later. Raises OSError."""
        base, path, flags = opening.base, opening.path, opening.flags
        if self.has_pipes and not flags & (os.O_NONBLOCK | os.O_EXCL) and self._is_pipe(process, opening):
            return self._awaited(call, process, opening)
        if flags & os.O_CREAT and (flags & os.O_EXCL or path.endswith(b"/")):
            if not flags & os.O_EXCL:
                raise failure(errno.EISDIR)
            return self._created(call, process, self.view.parent(process, base, path), opening)
        try:
            found = self.view.open(process, base, path, flags & _KEPT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return self._awaited(call, process, opening)
            if error.errno != errno.ENOENT or not flags & os.O_CREAT:
                raise
            try:
                return self._created(call, process, self.view.parent(process, base, path), opening)
            except FileExistsError:
                if flags & os.O_NOFOLLOW:
                    raise failure(errno.ELOOP) from None
                return self._created(call, process, self.view.place(process, base, path), opening)
        fd = found.fd
        try:
            status = os.fstat(fd)
            kind = stat.S_IFMT(status.st_mode)
            known = self.table.of(status)
            if flags & os.O_TRUNC and found.readonly:  # which O_RDONLY does not keep the kernel from
                raise failure(errno.EROFS)
            if not process.credentials.overrides and (kind != stat.S_IFIFO or self.step.is_own_file(status)):
                permissions.check_open(process.credentials, self.table.told(status), flags)
            if known.device is not None and kind == stat.S_IFREG:
                device = self._device(known.device, status, flags)
                os.close(fd)
                fd = device
            elif kind == stat.S_IFDIR and flags & os.O_CREAT:
                raise failure(errno.EISDIR)
            elif kind == stat.S_IFIFO and not flags & os.O_NONBLOCK:
                return self._awaited(call, process, opening)
            elif flags & os.O_TRUNC and kind == stat.S_IFREG:  # which sets the time of an empty file, too
                truncated = os.open(
                    b"/proc/self/fd/%d" % fd,
                    flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW) | os.O_NONBLOCK | os.O_CLOEXEC,
                )
                os.close(fd)
                fd = truncated
            if not flags & os.O_NONBLOCK:
                fcntl.fcntl(fd, fcntl.F_SETFL, flags & _KEPT & ~os.O_CLOEXEC)
            done, fd = fd, -1
            return done
        finally:
            if fd >= 0:
                os.close(fd)

    def _device(self, device: DeviceNumber, status: os.stat_result, flags: int) -> int:
        """Open the device that a file of the step's /dev stands for; others cannot be opened, as on a nodev mount."""
        if (status.st_dev, status.st_ino) not in self.step.devices:
            raise failure(errno.EACCES)
        flags = flags & _KEPT & ~os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        name = DEVICES.get((device.letter, device.major, device.minor))
        if name == "ptmx":
            return self.step.terminals.opened(flags)
        if name is not None:
            return os.open(f"/dev/{name}", flags)
        if device.letter == "c" and device.major == TERMINALS:
            return self.step.terminals.other_end(device.minor, flags)
        raise failure(errno.EPERM if device.letter == "b" else errno.ENXIO)

    def _is_pipe(self, process: Process, opening: Opening) -> bool:
        try:
            found = self.view.find(process, opening.base, opening.path, follow=not opening.flags & os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            status = found.status
            return stat.S_ISFIFO(status.st_mode) and self.step.is_own_file(status)
        finally:
            os.close(found.fd)

    def _awaited(self, call: SystemCall, process: Process, opening: Opening) -> int | None:
        """Open a pipe when it has another end: in a process of its own, as that may take any time."""
        flags = opening.flags
        self.has_pipes = True
        found = self.view.find(process, opening.base, opening.path, follow=not flags & os.O_NOFOLLOW)
        try:
            status = found.status
            if not stat.S_ISFIFO(status.st_mode) or flags & os.O_NONBLOCK:
                raise failure(errno.ENXIO)
            if not process.credentials.overrides and self.step.is_own_file(status):
                permissions.check_open(process.credentials, self.table.told(status), flags)
            self.step.wait_for_pipe(call, found.fd, flags)
            return None
        finally:
            os.close(found.fd)

    def _created(self, call: SystemCall, process: Process, place: tuple[FoundFile, bytes], opening: Opening) -> int:
        directory, name = place
        try:
            above = self._writable(process, directory)
            permitted, listed = self._permitted(process, directory, opening.mode & _PERMISSIONS)
            self.listener.still(call)
            flags = (
                opening.flags & ~(os.O_TRUNC | os.O_NONBLOCK) | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            )
            fd = os.open(name, flags, permitted | 0o600, dir_fd=directory.fd)
        finally:
            os.close(directory.fd)
        try:
            status = os.fstat(fd)
            if listed:
                os.fchmod(fd, status.st_mode & _PERMISSIONS | 0o600)
            self._new(process, above, status, permitted, 0o600)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _unnamed(self, process: Process, opening: Opening) -> int:
        """Make a file without a name (O_TMPFILE)."""
        flags = opening.flags
        directory = self.view.open(process, opening.base, opening.path, _PATH | os.O_DIRECTORY)
        try:
            above = self._writable(process, directory)
            permitted, listed = self._permitted(process, directory, opening.mode & _PERMISSIONS)
            fd = os.open(b"/proc/self/fd/%d" % directory.fd, flags & ~os.O_NOFOLLOW | os.O_CLOEXEC, permitted | 0o600)
        finally:
            os.close(directory.fd)
        status = os.fstat(fd)
        if listed:
            os.fchmod(fd, status.st_mode & _PERMISSIONS | 0o600)
        self._new(process, above, status, permitted, 0o600)
        return fd

    def _open_path(self, process: Process, opening: Opening) -> int:
        """Return a descriptor in place of an O_PATH descriptor, which the kernel does not hand over: of the file,
        open for reading. Raises OSError: EOPNOTSUPP for what cannot be opened without effect."""
        flags = opening.flags
        found = self.view.find(process, opening.base, opening.path, follow=not flags & os.O_NOFOLLOW)
        try:
            mode = found.status.st_mode
            if flags & os.O_DIRECTORY and not stat.S_ISDIR(mode):
                raise failure(errno.ENOTDIR)
            if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
                return os.open(b"/proc/self/fd/%d" % found.fd, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            return self.step.stand_in(found.fd)
        finally:
            os.close(found.fd)

    def _writable(self, process: Process, directory: FoundFile) -> os.stat_result:
        """Return the status of a directory in which the caller may make and remove names. Raises OSError."""
        if directory.readonly:
            raise failure(errno.EROFS)
        status = directory.status
        if self.view.is_covered(status):
            raise failure(errno.EACCES)
        if not process.credentials.overrides:
            permissions.check(process.credentials, self.table.told(status), permissions.WRITE | permissions.EXECUTE)
        return status

    def _permitted(self, process: Process, directory: FoundFile, mode: int) -> tuple[int, bool]:
        """Return the permissions of what is made in ``directory``, and whether that has a default access control list.

        The kernel applies the list to the new file, and so may take permissions that this process needs."""
        default = access_lists.default_of(b"/proc/self/fd/%d" % directory.fd)
        return access_lists.permitted(mode, process.fs.umask, default), bool(default)

    def _new(
        self, process: Process, above: os.stat_result, status: os.stat_result, permitted: int, needed: int
    ) -> None:
        """Note the owner and the permissions of a new file with ``status`` in the directory ``above``."""
        credentials = process.credentials
        gid = self.table.handed(above)
        if stat.S_ISDIR(status.st_mode):
            permitted |= status.st_mode & stat.S_ISGID
        gid = credentials.gids[3] if gid is None else gid
        own = permitted if permitted & needed != needed else None
        self.table.set(status, FileMetadata(credentials.uids[3], gid, own))

    # -- links ---------------------------------------------------------------------------------------------------------

    def _readlink(self, call: SystemCall, process: Process) -> int:
        base, rest = (
            (call.arguments[0], call.arguments[1:]) if call.name == "readlinkat" else (AT_FDCWD, call.arguments)
        )
        address, buffer, size = rest[:3]
        path = self.listener.string(call, address)
        text = self.step.link_text(call, process, base, path)[: size & 0x7FFFFFFF]
        if not size & 0x7FFFFFFF:
            raise failure(errno.EINVAL)
        self.listener.write(call, buffer, text)
        return len(text)

    # -- making --------------------------------------------------------------------------------------------------------

    def _mkdir(self, call: SystemCall, process: Process) -> int:
        base, rest = (call.arguments[0], call.arguments[1:]) if call.name == "mkdirat" else (AT_FDCWD, call.arguments)
        path, mode = self.listener.string(call, rest[0]), rest[1] & 0o1777
        directory, name = self.view.parent(process, base, path)
        try:
            if name in (b".", b".."):
                raise failure(errno.EEXIST)
            above = self._making(process, directory, name)
            permitted, listed = self._permitted(process, directory, mode)
            self.listener.still(call)
            os.mkdir(name, permitted | 0o700, dir_fd=directory.fd)
            status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
            if listed:
                _keep_usable(directory, name, status, 0o700)
        finally:
            os.close(directory.fd)
        self._new(process, above, status, permitted, 0o700)
        return 0

    def _making(self, process: Process, directory: FoundFile, name: bytes) -> os.stat_result:
        """As ``_writable``; EEXIST comes before other errors, as programs such as mkdir -p expect."""
        try:
            return self._writable(process, directory)
        except OSError:
            try:
                os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
            except OSError:
                pass
            else:
                raise failure(errno.EEXIST) from None
            raise

    def _mknod(self, call: SystemCall, process: Process) -> int:
        base, rest = (call.arguments[0], call.arguments[1:]) if call.name == "mknodat" else (AT_FDCWD, call.arguments)
        address, mode, number = rest[:3]
        mode &= _WORD
        number &= _WORD
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        letter = _KINDS.get(kind)
        major, minor = number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00
        if letter is not None and (
            not process.credentials.privileged or (letter, major, minor) == ("c", 0, 0)  # a whiteout of overlayfs
        ):
            raise failure(errno.EPERM)
        directory, name = self.view.parent(process, base, self.listener.string(call, address))
        try:
            if name in (b".", b".."):
                raise failure(errno.EEXIST)
            above = self._making(process, directory, name)
            permitted, listed = self._permitted(process, directory, mode & _PERMISSIONS)
            self.listener.still(call)
            self.has_pipes = self.has_pipes or kind == stat.S_IFIFO
            real = kind if kind in (stat.S_IFIFO, stat.S_IFSOCK) else stat.S_IFREG
            os.mknod(name, real | permitted | 0o600, dir_fd=directory.fd)
            status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
            if listed:
                _keep_usable(directory, name, status, 0o600)
        finally:
            os.close(directory.fd)
        self._new(process, above, status, permitted, 0o600)
        if letter is not None:
            known = self.table.of(status)
            device = DeviceNumber(letter, major, minor)
            self.table.set(status, FileMetadata(known.uid, known.gid, known.permissions, device))
        return 0

    def _symlink(self, call: SystemCall, process: Process) -> int:
        target, base, address = call.arguments[:3]
        if call.name == "symlink":
            base, address = AT_FDCWD, call.arguments[1]
        text = self.listener.string(call, target)
        if not text:
            raise failure(errno.ENOENT)
        directory, name = self.view.parent(process, base, self.listener.string(call, address))
        try:
            if name in (b".", b".."):
                raise failure(errno.EEXIST)
            above = self._making(process, directory, name)
            self.listener.still(call)
            os.symlink(text, name, dir_fd=directory.fd)
            status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        finally:
            os.close(directory.fd)
        self._new(process, above, status, 0o777, 0)
        return 0

    def _link(self, call: SystemCall, process: Process) -> int:
        if call.name == "link":
            old_base, old, new_base, new, flags = AT_FDCWD, call.arguments[0], AT_FDCWD, call.arguments[1], 0
        else:
            old_base, old, new_base, new, flags = call.arguments[:5]
        path = self.listener.string(call, old)
        if path or not flags & syscalls.AT_EMPTY_PATH:
            found = self.view.find(process, old_base, path, follow=bool(flags & AT_SYMLINK_FOLLOW))
        else:
            found = FoundFile(self.view.descriptor(process, old_base), readonly=False)
        try:
            if stat.S_ISDIR(found.status.st_mode):
                raise failure(errno.EPERM)
            directory, name = self.view.parent(process, new_base, self.listener.string(call, new))
            try:
                if name in (b".", b".."):
                    raise failure(errno.EEXIST)
                self._making(process, directory, name)
                self._same_mount(found, directory)
                self.listener.still(call)
                os.link(b"/proc/self/fd/%d" % found.fd, name, dst_dir_fd=directory.fd, follow_symlinks=True)
            finally:
                os.close(directory.fd)
        finally:
            os.close(found.fd)
        return 0

    # -- removing and moving -------------------------------------------------------------------------------------------

    def _remove(self, call: SystemCall, process: Process) -> int:
        base, address, flags = AT_FDCWD, call.arguments[0], 0
        if call.name == "unlinkat":
            base, address, flags = call.arguments[:3]
        is_directory = call.name == "rmdir" or bool(flags & AT_REMOVEDIR)
        path = self.listener.string(call, address)
        if not path.strip(b"/") and path:
            raise failure(errno.EBUSY)
        directory, name = self.view.parent(process, base, path)
        try:
            if name in (b".", b".."):
                raise failure((errno.EINVAL if name == b"." else errno.ENOTEMPTY) if is_directory else errno.EISDIR)
            self._removable(process, directory, name)
            self.listener.still(call)
            if is_directory:
                os.rmdir(name, dir_fd=directory.fd)
            else:
                os.unlink(name, dir_fd=directory.fd)
        finally:
            os.close(directory.fd)
        return 0

    def _removable(self, process: Process, directory: FoundFile, name: bytes) -> None:
        """Check that the caller may remove ``name``. Raises OSError."""
        status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        above = self._writable(process, directory)
        if self.view.is_covered(status):
            raise failure(errno.EBUSY)
        if not process.credentials.overrides:
            permissions.check_sticky(process.credentials, self.table.told(above), self.table.told(status))

    def _rename(self, call: SystemCall, process: Process) -> int:
        old_base, old, new_base, new, flags = AT_FDCWD, call.arguments[0], AT_FDCWD, call.arguments[1], 0
        if call.name != "rename":
            old_base, old, new_base, new = call.arguments[:4]
        if call.name == "renameat2":
            flags = call.arguments[4] & _WORD
        if flags & _RENAME_WHITEOUT:
            raise failure(errno.EINVAL)
        old_path, new_path = self.listener.string(call, old), self.listener.string(call, new)
        from_, old_name = self.view.parent(process, old_base, old_path)
        try:
            to, new_name = self.view.parent(process, new_base, new_path)
            try:
                if {old_name, new_name} & {b".", b".."}:
                    raise failure(errno.EBUSY)
                self._removable(process, from_, old_name)
                try:
                    self._removable(process, to, new_name)
                except FileNotFoundError:
                    self._writable(process, to)
                if not os.path.samestat(from_.status, to.status):
                    self._same_mount(from_, to)
                self.listener.still(call)
                syscalls.renameat2(from_.fd, old_name, to.fd, new_name, flags)
            finally:
                os.close(to.fd)
        finally:
            os.close(from_.fd)
        return 0

    def _same_mount(self, one: FoundFile, other: FoundFile) -> None:
        """Check that two open files are in the same mount. Raises OSError (EXDEV).

        On the disk they can be in one file system: a link to a file of a read-only mount could be written to, and one
        to a file of a cache would let later steps change the layer that it is in.
        """
        if self.view.mount_of(one.fd) is not self.view.mount_of(other.fd):
            raise failure(errno.EXDEV)

    def _truncate(self, call: SystemCall, process: Process) -> int:
        length = call.arguments[1]
        if call.name == "truncate64":
            low, high = call.arguments[1:3] if call.architecture == "i386" else call.arguments[2:4]
            length = low & _WORD | (high & _WORD) << 32
        found = self.view.find(process, AT_FDCWD, self.listener.string(call, call.arguments[0]), follow=True)
        try:
            if found.readonly:
                raise failure(errno.EROFS)
            status = found.status
            if stat.S_ISDIR(status.st_mode):
                raise failure(errno.EISDIR)
            if not process.credentials.overrides:
                permissions.check(process.credentials, self.table.told(status), permissions.WRITE)
            os.truncate(b"/proc/self/fd/%d" % found.fd, length)
        finally:
            os.close(found.fd)
        return 0


def _keep_usable(directory: FoundFile, name: bytes, status: os.stat_result, needed: int) -> None:
    """Give back the permissions that this process needs to what it has made in a directory with a default list."""
    if status.st_mode & needed == needed:
        return
    file = os.open(name, _PATH | os.O_NOFOLLOW, dir_fd=directory.fd)
    try:
        os.chmod(b"/proc/self/fd/%d" % file, status.st_mode & _PERMISSIONS | needed)
    finally:
        os.close(file)
