"""The listener of a seccomp filter: receiving the system calls that it hands over, and answering them.

See seccomp_unotify(2) and linux/seccomp.h. The caller of a system call waits until it is answered, or is killed; a
killed caller's id can be another process's by then (``Listener.still``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import struct
from typing import TYPE_CHECKING, Final

import msgspec

from platforms import syscalls

if TYPE_CHECKING:
    from collections.abc import Mapping

# struct seccomp_notif, struct seccomp_notif_resp, struct seccomp_notif_addfd, and the ioctls of a listener.
_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")  # id, pid, flags, number, architecture, instruction, arguments
_RESPONSE: Final = struct.Struct("=QqiI")  # id, value, error, flags
_ADDITION: Final = struct.Struct("=QIIII")  # id, flags, descriptor, the caller's number for it, its flags
_IDENTITY: Final = struct.Struct("=Q")
_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_STILL_VALID: Final = 0x40082102
_ADD: Final = 0x40182103
_SET_FLAGS: Final = 0x40082104
_SYNC_WAKE_UP: Final = 1
_CONTINUE: Final = 1
_ADD_AT: Final = 1
_ADD_AND_SEND: Final = 2
_EMPTY: Final = bytes(_NOTIFICATION.size)
"""What the kernel requires in place of a notification when it is to write one there."""

_PATH_MAX: Final = 4096
_PAGE: Final = 4096
_SHORT_STRING: Final = 256
"""Bytes that are read first of a string; most fit."""


class SystemCall(msgspec.Struct, frozen=True):
    """A system call whose caller waits for the answer."""

    identity: int
    """Its number among the notifications of the listener."""
    pid: int
    """The calling thread, as numbered in this process's pid namespace."""
    architecture: str
    """The system call interface, as named in ``seccomp``."""
    name: str
    arguments: tuple[int, ...]
    """The six argument registers, unsigned."""


class Listener:
    """The listener ``fd``. ``calls`` has the names of the calls that the filter hands over (``seccomp.calls``)."""

    def __init__(self, fd: int, calls: Mapping[tuple[int, int], tuple[str, str]]) -> None:
        self.fd = fd
        self._calls = calls
        self._memory = syscalls.ProcessMemory()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        with contextlib.suppress(OSError):  # before Linux 6.6
            fcntl.ioctl(fd, _SET_FLAGS, _SYNC_WAKE_UP)

    def receive(self) -> SystemCall | None:
        """Wait for the next call. None when no process uses the filter any more."""
        while self._poll.poll()[0][1] & select.POLLIN:
            if (call := self.take()) is not None:
                return call
        return None

    def take(self) -> SystemCall | None:
        """Return the next call, where poll(2) has told that there is one. None if its caller was killed."""
        try:
            found = _NOTIFICATION.unpack(fcntl.ioctl(self.fd, _RECEIVE, _EMPTY))
        except OSError:
            return None
        return SystemCall(found[0], found[1], *self._calls[found[4], found[3]], found[6:])

    # -- answers: nothing happens if the caller was killed meanwhile ---------------------------------------------------

    def answer(self, call: SystemCall, value: int = 0, *, error: int = 0) -> None:
        """Let ``call`` return ``value``, or fail with the errno ``error``."""
        self._send(_RESPONSE.pack(call.identity, value, -error, 0))

    def proceed(self, call: SystemCall) -> None:
        """Let the kernel execute ``call``, with what the caller's memory contains by then."""
        self._send(_RESPONSE.pack(call.identity, 0, 0, _CONTINUE))

    def _send(self, response: bytes) -> None:
        try:  # noqa: SIM105 -- contextlib.suppress takes longer, and every call comes here
            fcntl.ioctl(self.fd, _SEND, response)
        except OSError:
            pass

    def add_descriptor(self, call: SystemCall, fd: int, flags: int = 0) -> None:
        """Let ``call`` return a new descriptor of the caller for what ``fd`` refers to. Of ``flags``, O_CLOEXEC counts.

        Linux 5.14. The kernel adds no O_PATH descriptors. Where it adds none, the call fails with its errno. No signal
        may have a handler or end this process meanwhile: the call would return 0.
        """
        try:
            fcntl.ioctl(self.fd, _ADD, _ADDITION.pack(call.identity, _ADD_AND_SEND, fd, 0, flags & os.O_CLOEXEC))
        except OSError as failed:
            self.answer(call, error=failed.errno or errno.EINVAL)

    def give_descriptor(self, call: SystemCall, fd: int, flags: int = 0) -> int:
        """Give the caller a descriptor for what ``fd`` refers to, without an answer; return its number. Raises
        OSError."""
        addition = bytearray(_ADDITION.pack(call.identity, 0, fd, 0, flags & os.O_CLOEXEC))
        number: int = fcntl.ioctl(self.fd, _ADD, addition)
        return number

    def replace_descriptor(self, call: SystemCall, fd: int, number: int, flags: int = 0) -> None:
        """Let the caller's descriptor ``number`` refer to what ``fd`` refers to, without an answer. Raises OSError."""
        fcntl.ioctl(self.fd, _ADD, _ADDITION.pack(call.identity, _ADD_AT, fd, number, flags & os.O_CLOEXEC))

    # -- the caller and its memory -------------------------------------------------------------------------------------

    def still(self, call: SystemCall) -> None:
        """Raise OSError if the caller has died: its id and descriptors may be another process's by now."""
        fcntl.ioctl(self.fd, _STILL_VALID, _IDENTITY.pack(call.identity))

    def string(self, call: SystemCall, address: int) -> bytes:
        """Return the NUL-terminated string at ``address``, a path: ENAMETOOLONG from 4096 bytes on."""
        found = b""
        while len(found) < _PATH_MAX:
            wanted = _PAGE if found else _SHORT_STRING
            part = self._memory.read(call.pid, address, min(_PAGE - address % _PAGE, wanted))
            text, end, _ = part.partition(b"\0")
            found += text
            if end and len(found) < _PATH_MAX:
                return found
            address += len(part)
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))

    def read(self, call: SystemCall, address: int, size: int) -> bytes:
        """Return ``size`` bytes at ``address``. Raises OSError: EFAULT for an invalid address."""
        found = b""
        while len(found) < size:
            found += self._memory.read(call.pid, address + len(found), min(_PAGE, size - len(found)))
        return found

    def write(self, call: SystemCall, address: int, data: bytes) -> None:
        """Write ``data`` to ``address``, if the caller still lives. Raises OSError: EFAULT for an invalid address."""
        self.still(call)
        self._memory.write(call.pid, address, data)
