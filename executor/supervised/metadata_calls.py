"""Answering the calls that report or change the metadata of files: status, permissions, owners, times, attributes."""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from executor.sandbox import access_lists
from executor.sandbox import status as layouts
from executor.supervised import call_arguments, permissions
from executor.supervised.file_view import AT_FDCWD, FoundFile, failure
from platforms import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

    from executor.sandbox.listener import SystemCall
    from executor.supervised.processes import Process
    from executor.supervised.step_context import StepContext

_WORD: Final = 0xFFFFFFFF
_NOFOLLOW: Final = syscalls.AT_SYMLINK_NOFOLLOW
_EMPTY: Final = syscalls.AT_EMPTY_PATH
_STATX_SYNC: Final = 0x6000
_LOOKING: Final = _STATX_SYNC | _NOFOLLOW | _EMPTY | syscalls.AT_NO_AUTOMOUNT
_AT_EACCESS: Final = 0x200
_UTIME_NOW: Final = (1 << 30) - 1
_UTIME_OMIT: Final = (1 << 30) - 2
_CAPABILITY: Final = b"security.capability"
_ATTRIBUTES: Final = (b"user.", b"system.posix_acl_")
_LARGEST: Final = 1 << 16
_STATFS: Final = struct.Struct("=qq5Q2iqqq32x")
"""``struct statfs`` of 64-bit architectures (asm-generic/statfs.h), and those of 32-bit ones."""
_STATFS_WIDE: Final = struct.Struct("=II5Q2iIII16x")
_STATFS_SHORT: Final = struct.Struct("=II5I2iIII16x")


class MetadataCalls:
    """Handlers of the calls about metadata."""

    def __init__(self, step: StepContext) -> None:
        self.step = step
        self.listener = step.listener
        self.view = step.view
        self.table = step.table
        self.handlers: dict[str, Callable[[SystemCall, Process], int | None]] = {
            "stat": self._stat, "lstat": self._lstat, "fstat": self._fstat, "newfstatat": self._fstatat,
            "stat64": self._stat, "lstat64": self._lstat, "fstat64": self._fstat, "fstatat64": self._fstatat,
            "statx": self._statx, "access": self._access, "faccessat": self._access, "faccessat2": self._access,
            "chmod": self._chmod, "fchmod": self._chmod, "fchmodat": self._chmod, "fchmodat2": self._chmod,
            "chown": self._chown, "lchown": self._chown, "fchown": self._chown, "fchownat": self._chown,
            "chown32": self._chown, "lchown32": self._chown, "fchown32": self._chown,
            "utime": self._utime, "utimes": self._utime, "futimesat": self._utime, "utimensat": self._utime,
            "utimensat_time64": self._utime, "statfs": self._statfs, "statfs64": self._statfs,
            **{f"{kind}{what}xattr": handler for kind in ("", "l", "f") for what, handler in (
                ("set", self._set_attribute), ("get", self._get_attribute), ("list", self._list_attributes),
                ("remove", self._remove_attribute),
            )},
        }  # fmt: skip

    def _find(self, call: SystemCall, process: Process, base: int, address: int, flags: int) -> FoundFile:
        """Return an O_PATH descriptor for a path at ``address``, with the flags of the *at calls."""
        path = self._path(call, address, flags)
        if not path:
            return self._opened(call, process, base)
        return self.view.find(process, base, path, follow=not flags & _NOFOLLOW)

    def _path(self, call: SystemCall, address: int, flags: int) -> bytes:
        """Return the path at ``address``; b"" if the call is about its descriptor (AT_EMPTY_PATH). Raises OSError."""
        path = self.listener.string(call, address) if address else b""
        if not path and not flags & _EMPTY:
            raise failure(errno.ENOENT if address else errno.EFAULT)
        return path

    def _opened(self, call: SystemCall, process: Process, number: int) -> FoundFile:
        """Return an O_PATH descriptor of what the caller has open."""
        number &= _WORD
        if number == AT_FDCWD:
            return FoundFile(os.dup(process.fs.cwd.fd), readonly=process.fs.cwd.readonly)
        return self.step.stood_for(self.view.descriptor(process, number))

    # -- status --------------------------------------------------------------------------------------------------------

    def _tell(self, call: SystemCall, status: os.stat_result, buffer: int) -> int:
        told = self.table.told(status)
        self.listener.write(call, buffer, layouts.pack(told, call.architecture, wide=call.name.endswith("64")))
        return 0

    def _stat(self, call: SystemCall, process: Process) -> int:
        return self._look(call, process, (AT_FDCWD, call.arguments[0], 0), call.arguments[1])

    def _lstat(self, call: SystemCall, process: Process) -> int:
        return self._look(call, process, (AT_FDCWD, call.arguments[0], _NOFOLLOW), call.arguments[1])

    def _fstatat(self, call: SystemCall, process: Process) -> int:
        base, address, buffer, flags = call.arguments[:4]
        if flags & _WORD & ~_LOOKING:
            raise failure(errno.EINVAL)
        return self._look(call, process, (base, address, flags), buffer)

    def _look(self, call: SystemCall, process: Process, place: tuple[int, int, int], buffer: int) -> int:
        """Tell the status of the file at ``place``: a descriptor, the address of a path, and flags."""
        base, address, flags = place
        path = self._path(call, address, flags)
        if not path:
            return self._tell(call, self._status(process, base), buffer)
        found = self.view.find(process, base, path, follow=not flags & _NOFOLLOW)
        try:
            return self._tell(call, found.status, buffer)
        finally:
            os.close(found.fd)

    def _fstat(self, call: SystemCall, process: Process) -> int:
        status = self.step.told_status(self.view.status(process, call.arguments[0]))
        return self._tell(call, status, call.arguments[1])

    def _status(self, process: Process, base: int) -> os.stat_result:
        """Return the status of what the caller has open, or of its working directory, without opening it."""
        if base & _WORD == AT_FDCWD:
            return os.fstat(process.fs.cwd.fd)
        return self.step.told_status(self.view.status(process, base))

    def _statx(self, call: SystemCall, process: Process) -> int:
        base, address, flags, mask, buffer = call.arguments[:5]
        flags &= _WORD
        if flags & ~_LOOKING:
            raise failure(errno.EINVAL)
        found = self._find(call, process, base, address, flags)
        try:
            told = self.table.told(found.status)
            data = syscalls.statx(found.fd, b"", flags & _STATX_SYNC | _EMPTY, mask & _WORD)
            self.listener.write(call, buffer, layouts.patch_statx(data, told))
        finally:
            os.close(found.fd)
        return 0

    def _access(self, call: SystemCall, process: Process) -> int:
        if call.name == "access":
            base, (address, wanted), flags = AT_FDCWD, call.arguments[:2], 0
        else:
            base, address, wanted, flags = call.arguments[:4]
        flags = flags & _WORD if call.name == "faccessat2" else 0
        if flags & ~(_NOFOLLOW | _EMPTY | _AT_EACCESS) or wanted & _WORD & ~7:
            raise failure(errno.EINVAL)
        found = self._find(call, process, base, address, flags)
        try:
            status = found.status
            credentials = process.credentials
            if not flags & _AT_EACCESS:  # the real ids count
                uid, gid = credentials.uids[0], credentials.gids[0]
                credentials = replace(credentials, uids=(uid,) * 4, gids=(gid,) * 4)
            if not permissions.allowed(credentials, self.table.told(status), wanted & 7):
                raise failure(errno.EACCES)
            if wanted & permissions.WRITE and found.readonly:
                raise failure(errno.EROFS)
        finally:
            os.close(found.fd)
        return 0

    def _statfs(self, call: SystemCall, process: Process) -> int:
        found = self.view.find(process, AT_FDCWD, self.listener.string(call, call.arguments[0]), follow=True)
        try:
            data = syscalls.fstatfs(found.fd)
        finally:
            os.close(found.fd)
        wide = call.name == "statfs64"
        if call.architecture in call_arguments.SHORT:
            layout = _STATFS_WIDE if wide else _STATFS_SHORT
            try:
                data = layout.pack(*_STATFS.unpack(data))
            except struct.error:
                raise failure(errno.EOVERFLOW) from None
        self.listener.write(call, call.arguments[2 if wide else 1], data)
        return 0

    # -- permissions, owners, times ------------------------------------------------------------------------------------

    def _changing(self, process: Process, found: FoundFile) -> os.stat_result:
        """Return the status of a file whose metadata the caller may change. Raises OSError."""
        if found.readonly:
            raise failure(errno.EROFS)
        status = found.status
        permissions.check_owner(process.credentials, self.table.told(status))
        return status

    def _chmod(self, call: SystemCall, process: Process) -> int:
        match call.name:
            case "fchmod":
                number, mode = call.arguments[:2]
                found = self._opened(call, process, number)
            case "chmod":
                address, mode = call.arguments[:2]
                found = self._find(call, process, AT_FDCWD, address, 0)
            case _:
                base, address, mode, flags = call.arguments[:4]
                found = self._find(call, process, base, address, flags if call.name == "fchmodat2" else 0)
        try:
            status = self._changing(process, found)
            if stat.S_ISLNK(status.st_mode):
                raise failure(errno.EOPNOTSUPP)
            credentials = process.credentials
            if not credentials.overrides and not credentials.belongs(self.table.of(status).gid):
                mode &= ~stat.S_ISGID
            self.listener.still(call)
            if self.step.is_own_file(status):
                self.table.permit(found.fd, status, mode)
        finally:
            os.close(found.fd)
        return 0

    def _chown(self, call: SystemCall, process: Process) -> int:
        name = call.name.removesuffix("32")
        match name:
            case "fchownat":
                base, address, uid, gid, flags = call.arguments[:5]
                found = self._find(call, process, base, address, flags)
            case "fchown":
                number, uid, gid = call.arguments[:3]
                found = self._opened(call, process, number)
            case _:
                address, uid, gid = call.arguments[:3]
                found = self._find(call, process, AT_FDCWD, address, _NOFOLLOW if name == "lchown" else 0)
        owner = call_arguments.owners(call, uid, gid)
        try:
            if found.readonly:
                raise failure(errno.EROFS)
            status = found.status
            known = self.table.of(status)
            credentials = process.credentials
            if not credentials.privileged and (
                owner[0] not in (-1, known.uid)
                or credentials.uids[3] != known.uid
                or not (owner[1] in (-1, known.gid) or credentials.belongs(owner[1]))
            ):
                raise failure(errno.EPERM)
            self.listener.still(call)
            if self.step.is_own_file(status):
                self.table.own(found.fd, status, *owner)
        finally:
            os.close(found.fd)
        return 0

    def _utime(self, call: SystemCall, process: Process) -> int:
        name = call.name
        base, flags = AT_FDCWD, 0
        match name:
            case "utime" | "utimes":
                address, buffer = call.arguments[:2]
            case "futimesat":
                base, address, buffer = call.arguments[:3]
            case _:
                base, address, buffer, flags = call.arguments[:4]
        if not address and name != "utime":
            flags |= _EMPTY
        times = call_arguments.times(call, buffer, self.listener.read) if buffer else None
        found = self._find(call, process, base, address, flags)
        try:
            if found.readonly:
                raise failure(errno.EROFS)
            status = found.status
            told = self.table.told(status)
            if times is not None or not permissions.allowed(process.credentials, told, permissions.WRITE):
                permissions.check_owner(process.credentials, told)
            self.listener.still(call)
            if self.step.is_own_file(status):
                syscalls.utimensat(b"/proc/self/fd/%d" % found.fd, times)
        finally:
            os.close(found.fd)
        return 0

    # -- extended attributes -------------------------------------------------------------------------------------------

    def _attributed(self, call: SystemCall, process: Process) -> FoundFile:
        if call.name.startswith("f"):
            return self._opened(call, process, call.arguments[0])
        flags = _NOFOLLOW if call.name.startswith("l") and not call.name.startswith("listx") else 0
        return self._find(call, process, AT_FDCWD, call.arguments[0], flags)

    def _name(self, call: SystemCall) -> bytes:
        name = self.listener.string(call, call.arguments[1])
        if not 0 < len(name) < 256:
            raise failure(errno.ERANGE)
        return name

    def _set_attribute(self, call: SystemCall, process: Process) -> int:
        name, address, size, flags = self._name(call), *call.arguments[2:5]
        if size > _LARGEST:
            raise failure(errno.E2BIG)
        value = self.listener.read(call, address, size) if size else b""
        found = self._attributed(call, process)
        try:
            if found.readonly:
                raise failure(errno.EROFS)
            status = found.status
            self.listener.still(call)
            if name == _CAPABILITY:
                self._set_capability(process, found, status, value)
                return 0
            if not name.startswith(_ATTRIBUTES):
                raise failure(errno.EOPNOTSUPP if name.startswith(b"system.") else errno.EPERM)
            if name.startswith(b"system."):
                permissions.check_owner(process.credentials, self.table.told(status))
            else:
                permissions.check(process.credentials, self.table.told(status), permissions.WRITE)
            os.setxattr(b"/proc/self/fd/%d" % found.fd, name, value, flags & _WORD)
            if name == access_lists.ACCESS:  # which sets the permissions, too
                after = os.stat(b"/proc/self/fd/%d" % found.fd)
                self.table.permit(found.fd, after, after.st_mode)
        finally:
            os.close(found.fd)
        return 0

    def _set_capability(self, process: Process, found: FoundFile, status: os.stat_result, value: bytes) -> None:
        if not process.credentials.privileged:
            raise failure(errno.EPERM)
        if len(value) not in (12, 20, 24):  # struct vfs_cap_data, linux/capability.h
            raise failure(errno.EINVAL)
        if stat.S_ISLNK(status.st_mode):
            raise failure(errno.EPERM)
        self.table.touch(found.fd, status)
        self.table.set(status, replace(self.table.of(status), capability=value))

    def _get_attribute(self, call: SystemCall, process: Process) -> int:
        name, address, size = self._name(call), *call.arguments[2:4]
        found = self._attributed(call, process)
        try:
            if name == _CAPABILITY:
                value = self.table.of(found.status).capability
                if not value:
                    raise failure(errno.ENODATA)
            elif name.startswith(_ATTRIBUTES):
                value = os.getxattr(b"/proc/self/fd/%d" % found.fd, name)
                if name == access_lists.ACCESS:
                    value = access_lists.with_owner(value, self.table.told(found.status).mode)
            else:
                raise failure(errno.EOPNOTSUPP if name.startswith(b"system.") else errno.ENODATA)
        finally:
            os.close(found.fd)
        return self._give(call, address, size, value)

    def _give(self, call: SystemCall, address: int, size: int, value: bytes) -> int:
        if size:
            if len(value) > size:
                raise failure(errno.ERANGE)
            if value:
                self.listener.write(call, address, value)
        return len(value)

    def _list_attributes(self, call: SystemCall, process: Process) -> int:
        address, size = call.arguments[1:3]
        found = self._attributed(call, process)
        try:
            names = [os.fsencode(each) for each in os.listxattr(b"/proc/self/fd/%d" % found.fd)]
            kept = [each for each in names if each.startswith(_ATTRIBUTES)]
            if self.table.of(found.status).capability:
                kept.append(_CAPABILITY)
        finally:
            os.close(found.fd)
        return self._give(call, address, size, b"".join(each + b"\0" for each in kept))

    def _remove_attribute(self, call: SystemCall, process: Process) -> int:
        name = self._name(call)
        found = self._attributed(call, process)
        try:
            if found.readonly:
                raise failure(errno.EROFS)
            status = found.status
            self.listener.still(call)
            if name == _CAPABILITY:
                known = self.table.of(status)
                if not known.capability:
                    raise failure(errno.ENODATA)
                if not process.credentials.privileged:
                    raise failure(errno.EPERM)
                self.table.touch(found.fd, status)
                self.table.set(status, replace(known, capability=b""))
            elif name.startswith(_ATTRIBUTES):
                permissions.check_owner(process.credentials, self.table.told(status))
                os.removexattr(b"/proc/self/fd/%d" % found.fd, name)
            else:
                raise failure(errno.EOPNOTSUPP if name.startswith(b"system.") else errno.ENODATA)
        finally:
            os.close(found.fd)
        return 0
