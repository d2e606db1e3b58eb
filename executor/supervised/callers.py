"""What the supervisor of a step in a chroot needs of a caller: its rights, the paths that it means, and its memory."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

import msgspec

from platforms import syscalls

if TYPE_CHECKING:
    from executor.sandbox.listener import Listener, SystemCall

AT_FDCWD: Final = syscalls.AT_FDCWD & 0xFFFFFFFF
PLACES: Final = (b"/proc/", b"/dev/", b"/sys/")
_TOPS: Final = (b"/proc", b"/sys")
_PATH_MAX: Final = 4096
_PAGE: Final = 4096


class Outside(msgspec.Struct, frozen=True):
    """Descriptors of directories outside of the step's root."""

    proc: int
    dev: int
    sys: int


class Callers:
    """The processes whose calls ``listener`` hands over. This process is in their root, and single-threaded."""

    def __init__(self, listener: Listener, outside: Outside) -> None:
        self._listener = listener
        self._proc = outside.proc
        self._ids = (0, 0)

    def take_ids_of(self, call: SystemCall) -> None:
        """Access files with the caller's ids: those of its directory in /proc, whose owner is its effective user also
        when the process cannot be traced (task_dump_owner in fs/proc/base.c of Linux).

        The files in it are root's then. So is the memory of a process that has changed its user and not executed a
        program since; it is no supervisor's to read.
        """
        found = os.stat(b"%d" % call.pid, dir_fd=self._proc)
        self._take_ids(found.st_uid, found.st_gid)

    @property
    def user(self) -> int:
        """The user whose ids are in effect."""
        return self._ids[0]

    def take_own_ids(self) -> None:
        """Access files as root again."""
        self._take_ids(0, 0)

    def _take_ids(self, uid: int, gid: int) -> None:
        if self._ids != (uid, gid):
            syscalls.set_fs_ids(0, 0)
            os.setgroups([] if not uid else [gid])
            syscalls.set_fs_ids(uid, gid)
            self._ids = (uid, gid)

    def path(self, call: SystemCall, base: int, address: int) -> bytes | None:
        """Return the path of the call as an absolute one; None if it cannot be known, or is the descriptor ``base``."""
        try:
            path = self.string(call, address)
        except OSError:  # the kernel reports the error, or cannot read the memory of a process that changed its user
            return None
        if path[:1] != b"/":
            if not path:
                return None
            link = b"%d/cwd" % call.pid if base == AT_FDCWD else b"%d/fd/%d" % (call.pid, base)
            try:
                self.take_ids_of(call)
                start = os.readlink(link, dir_fd=self._proc)
            except OSError:
                return None
            finally:
                self.take_own_ids()
            if start[:1] != b"/":
                return None
            path = start + b"/" + path
        if b"//" in path or b"/." in path:
            plain = os.path.normpath(path).replace(b"//", b"/")
            if plain in _TOPS or plain.startswith(PLACES) or path.startswith(PLACES):
                path = plain
        return path + b"/" if path in _TOPS else path

    def directory_of(self, call: SystemCall, base: int, address: int) -> tuple[int, bytes]:
        """Return an O_PATH descriptor of the directory that the call makes something in, and the name of that.

        It is looked up with the caller's ids, which stay in effect. Raises OSError.
        """
        above, slash, name = (self.path(call, base, address) or b"").rpartition(b"/")
        if name in (b"", b".", b".."):
            raise OSError(errno.EEXIST if name else errno.ENOENT, "")
        self.take_ids_of(call)
        return os.open(above or slash or b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), name

    # -- memory

    def string(self, call: SystemCall, address: int) -> bytes:
        """Return the string at ``address``, such as a path. Raises OSError."""
        try:
            return self._listener.string(call, address)
        except PermissionError:  # another user's
            text, end, _ = self._read_file(call, address, _PATH_MAX).partition(b"\0")
            if not end:
                raise OSError(errno.ENAMETOOLONG, "") from None
            return text

    def read(self, call: SystemCall, address: int, size: int) -> bytes:
        """Return ``size`` bytes at ``address``. Raises OSError."""
        try:
            return self._listener.read(call, address, size)
        except PermissionError:
            return self._read_file(call, address, size)

    def _read_file(self, call: SystemCall, address: int, size: int) -> bytes:
        """Return at most ``size`` bytes of the caller's memory, by its file in /proc; a string may end earlier."""
        memory = self._memory(call, os.O_RDONLY)
        try:
            found = os.pread(memory, min(size, _PAGE - address % _PAGE), address)
            if len(found) < size and b"\0" not in found:
                found += os.pread(memory, size - len(found), address + len(found))
            return found
        finally:
            os.close(memory)

    def write(self, call: SystemCall, address: int, data: bytes) -> None:
        """Write ``data`` to ``address``. Raises OSError."""
        self.take_own_ids()
        try:
            self._listener.write(call, address, data)
        except PermissionError:
            memory = self._memory(call, os.O_WRONLY)
            try:
                self._listener.still(call)
                os.pwrite(memory, data, address)
            finally:
                os.close(memory)

    def _memory(self, call: SystemCall, flags: int) -> int:
        self.take_ids_of(call)
        try:
            return os.open(b"%d/mem" % call.pid, flags | os.O_CLOEXEC, dir_fd=self._proc)
        finally:
            self.take_own_ids()
