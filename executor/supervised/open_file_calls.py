"""Calls on an open file by its name in /proc, ``/proc/self/fd/N``, for a step in a chroot.

That is how programs change a file which they have opened with O_PATH, set an attribute without a race, or give a file
without a name (O_TMPFILE) one. In the step's root there are only files with these names; the supervisor makes the call
on what the descriptor refers to, as the caller. What is not in the step's root is not changed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from executor.supervised import call_arguments, chroot_calls, proc_files
from executor.supervised.callers import AT_FDCWD
from executor.supervised.proc_files import MagicLink
from platforms import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from executor.sandbox.listener import Listener, SystemCall
    from executor.supervised.callers import Callers
    from executor.supervised.proc_files import OwnMounts, ProcFiles

_WORD: Final = 0xFFFFFFFF
_PERMISSIONS: Final = 0o7777
_CAPABILITY: Final = b"security.capability"
_ATTRIBUTES: Final = (b"user.", _CAPABILITY, b"system.posix_acl_")
"""Attributes that a step may have to do with; others are the machine's."""
_OVER_FILES: Final = sum(
    1 << each
    for each in (
        syscalls.CAP_CHOWN, syscalls.CAP_DAC_OVERRIDE, syscalls.CAP_FOWNER, syscalls.CAP_FSETID, syscalls.CAP_SETFCAP,
    )
)  # fmt: skip
_LARGEST: Final = 1 << 16
_NAME: Final = 256
_STREAMS: Final = (stat.S_IFIFO, stat.S_IFSOCK)


class OpenFileCalls:
    """Handlers of these calls. Each returns whether the call was answered; else it is left to the kernel."""

    def __init__(self, listener: Listener, callers: Callers, proc: ProcFiles, own: OwnMounts) -> None:
        self._listener = listener
        self._callers = callers
        self._proc = proc
        self._own = own
        self._held = _OVER_FILES & syscalls.capget()[0]
        self._changes: dict[str, Callable[[SystemCall, bytes], int]] = {
            **dict.fromkeys(_names(chroot_calls.PERMITTING), self._permit),
            **dict.fromkeys(_names(chroot_calls.OWNING), self._own_by),
            **dict.fromkeys(_names(chroot_calls.TRUNCATING), self._truncate),
            "setxattr": self._set_attribute,
            "getxattr": self._get_attribute,
            "listxattr": self._list_attributes,
            "removexattr": self._remove_attribute,
            "linkat": self._link,
        }
        self.handlers = dict.fromkeys(self._changes, self._handle)

    def _handle(self, call: SystemCall) -> bool:
        base, address = AT_FDCWD, call.arguments[0]
        if call.name in _AT_DIRECTORY:
            base, address = call.arguments[0] & _WORD, call.arguments[1]
        path = self._callers.path(call, base, address)
        if path is not None and path.startswith(b"/dev/fd/"):
            path = b"/proc/self" + path[4:]
        if path is None or not path.startswith(b"/proc/"):
            return False
        self._callers.take_ids_of(call)
        with self._opened(call, path[6:].rstrip(b"/")) as fd:
            if fd is None:
                return False
            status = os.fstat(fd)
            if syscalls.mount_id(fd) in (self._own.root, self._own.memory):
                self._check_rights(call)
                with self._in_proc():
                    value = self._changes[call.name](call, b"self/fd/%d" % fd)
            elif stat.S_IFMT(status.st_mode) in _STREAMS and call.name in _KEEPING:
                value = 0  # of a pipe nothing is left
            else:
                raise _error(errno.EPERM)
        self._listener.answer(call, value)
        return True

    @contextlib.contextmanager
    def _opened(self, call: SystemCall, path: bytes) -> Iterator[int | None]:
        """Yield an O_PATH descriptor of what ``path`` below /proc leads to; None if it is no open file, and the call
        changes nothing. Raises OSError."""
        with self._proc.found(call.pid, path) as node:
            self._listener.still(call)  # a number of a process is the caller's
            if not isinstance(node, MagicLink):
                if call.name in _ASKING:
                    yield None
                    return
                raise _error(errno.EPERM)
            fd = proc_files.open_magic(node, os.O_PATH, self._own)
        try:
            yield fd
        finally:
            os.close(fd)

    def _check_rights(self, call: SystemCall) -> None:
        """Check that a caller which is root has not given up a capability that this process has. Raises OSError.

        With another user's ids for files this process has none over files (setfsuid(2)).
        """
        if not self._callers.user and call.name not in _ASKING and self._held & ~self._proc.capabilities(call.pid):
            raise _error(errno.EPERM)

    @contextlib.contextmanager
    def _in_proc(self) -> Iterator[None]:
        """Be in the machine's /proc, for names of this process's own descriptors."""
        os.fchdir(self._proc.proc)
        try:
            yield
        finally:
            os.chdir("/")

    # -- the calls: ``name`` is the file's. Each returns what the call does; raises OSError. ---------------------------

    def _permit(self, call: SystemCall, name: bytes) -> int:
        mode = call.arguments[1 if call.name == "chmod" else 2]
        os.chmod(name, mode & _PERMISSIONS)
        return 0

    def _own_by(self, call: SystemCall, name: bytes) -> int:
        uid, gid = call.arguments[2:4] if call.name == "fchownat" else call.arguments[1:3]
        os.chown(name, *call_arguments.owners(call, uid, gid))
        return 0

    def _truncate(self, call: SystemCall, name: bytes) -> int:
        size = call.arguments[1]
        if call.name == "truncate64":  # a number of 64 bits in two registers, which have to be an even pair on arm
            low, high = call.arguments[2:4] if call.architecture == "arm" else call.arguments[1:3]
            size = low & _WORD | (high & _WORD) << 32
        if size >= 1 << 63:
            raise _error(errno.EINVAL)
        os.truncate(name, size)
        return 0

    def _set_attribute(self, call: SystemCall, name: bytes) -> int:
        attribute, address, size, flags = self._attribute(call), *call.arguments[2:5]
        if size > _LARGEST:
            raise _error(errno.E2BIG)
        value = self._callers.read(call, address, size) if size else b""
        self._callers.take_ids_of(call)
        os.setxattr(name, attribute, value, flags & _WORD)
        return 0

    def _get_attribute(self, call: SystemCall, name: bytes) -> int:
        address, size = call.arguments[2:4]
        return self._give(call, address, size, os.getxattr(name, self._attribute(call)))

    def _list_attributes(self, call: SystemCall, name: bytes) -> int:
        address, size = call.arguments[1:3]
        names = [each for each in map(os.fsencode, os.listxattr(name)) if each.startswith(_ATTRIBUTES)]
        return self._give(call, address, size, b"".join(each + b"\0" for each in names))

    def _remove_attribute(self, call: SystemCall, name: bytes) -> int:
        os.removexattr(name, self._attribute(call))
        return 0

    def _attribute(self, call: SystemCall) -> bytes:
        attribute = self._callers.string(call, call.arguments[1])
        if not 0 < len(attribute) < _NAME:
            raise _error(errno.ERANGE)
        if not attribute.startswith(_ATTRIBUTES):
            raise _error(errno.ENODATA if call.name in _ASKING else errno.EPERM)
        if attribute == _CAPABILITY and call.name not in _ASKING and self._proc.users(call.pid)[1]:
            raise _error(errno.EPERM)  # CAP_SETFCAP does not go with the ids of files
        self._callers.take_ids_of(call)
        return attribute

    def _give(self, call: SystemCall, address: int, size: int, value: bytes) -> int:
        if size:
            if len(value) > size:
                raise _error(errno.ERANGE)
            self._callers.write(call, address, value)
        return len(value)

    def _link(self, call: SystemCall, name: bytes) -> int:
        directory, new = self._callers.directory_of(call, call.arguments[2] & _WORD, call.arguments[3])
        try:
            os.link(name, new, dst_dir_fd=directory, follow_symlinks=True)
        finally:
            os.close(directory)
        return 0


def _names(rows: str) -> list[str]:
    return [row.split()[0] for row in rows.splitlines()]


_KEEPING: Final = frozenset(_names(chroot_calls.PERMITTING + chroot_calls.OWNING))
"""Calls that change who may use a file."""
_ASKING: Final = frozenset({"getxattr", "listxattr"})
_AT_DIRECTORY: Final = frozenset({"fchmodat", "fchmodat2", "fchownat", "linkat"})


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
