"""Answering the calls about sockets of AF_UNIX, whose addresses are paths.

connect(2) and bind(2) of other sockets are left to the kernel, which reads the address from the caller's memory. So no
process of the step may have a socket of AF_UNIX that the kernel would connect or bind to a path: it gets one that is
connected and bound already, a placeholder. connect and bind are executed here on another socket, which then takes the
descriptor's place. A socket that was bound listens at once, so that it cannot be connected; one that is connected gets
a name from the kernel first, so that it cannot be bound.

Sockets for datagrams can neither be connected nor bound. Names in the abstract namespace, which all containers with the
same network share, get a prefix.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from typing import TYPE_CHECKING, Final

from executor.sandbox import access_lists
from executor.supervised import permissions
from executor.supervised.file_metadata import FileMetadata
from executor.supervised.file_view import AT_FDCWD, failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from executor.sandbox.listener import SystemCall
    from executor.supervised.processes import Process
    from executor.supervised.step_context import StepContext

_WORD: Final = 0xFFFFFFFF
_KIND: Final = 0xF
_SOCK_CLOEXEC: Final = 0o2000000
_SOCK_NONBLOCK: Final = 0o4000
_ADDRESS: Final = 110
"""The size of struct sockaddr_un."""
_NAME: Final = 107
_BACKLOG: Final = 4096
_MOST: Final = 4096
_KINDS: Final = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)


class SocketCalls:
    """Handlers of the calls about sockets of AF_UNIX."""

    def __init__(self, step: StepContext) -> None:
        self.step = step
        self.listener = step.listener
        self.view = step.view
        self._prefix = b"\0kanifold-" + os.urandom(8).hex().encode() + b"-"
        self._placeholders: dict[int, int] = {}
        """The kinds of placeholders, by the inode numbers of sockets."""
        self.handlers: dict[str, Callable[[SystemCall, Process], int | None]] = {
            "socket": self._socket, "socketpair": self._socketpair, "connect": self._connect, "bind": self._bind,
        }  # fmt: skip

    def _pair(self, kind: int) -> tuple[socket.socket, socket.socket]:
        """Return two connected sockets that are bound to names that the kernel has chosen."""
        if kind & _KIND not in _KINDS:
            raise failure(errno.EPROTONOSUPPORT if kind & _KIND else errno.EINVAL)
        real = socket.SOCK_SEQPACKET if kind & _KIND == socket.SOCK_DGRAM else kind & _KIND
        pair = socket.socketpair(socket.AF_UNIX, real)
        for each in pair:
            each.bind(b"")
            each.setblocking(not kind & _SOCK_NONBLOCK)
        return pair

    def _socket(self, call: SystemCall, process: Process) -> None:
        del process
        kind = call.arguments[1] & _WORD
        ours, other = self._pair(kind)
        with ours, other:
            if len(self._placeholders) >= _MOST:
                self._placeholders.pop(next(iter(self._placeholders)))
            self._placeholders[os.fstat(ours.fileno()).st_ino] = kind & _KIND
            self.listener.add_descriptor(call, ours.fileno(), os.O_CLOEXEC if kind & _SOCK_CLOEXEC else 0)

    def _socketpair(self, call: SystemCall, process: Process) -> int:
        del process
        family, kind, _, address = (each & _WORD for each in call.arguments[:4])
        address = call.arguments[3]
        if family != socket.AF_UNIX:
            raise failure(errno.EOPNOTSUPP)
        flags = os.O_CLOEXEC if kind & _SOCK_CLOEXEC else 0
        one, two = self._pair(kind)
        with one, two:
            numbers = [self.listener.give_descriptor(call, each.fileno(), flags) for each in (one, two)]
        self.listener.write(call, address, struct.pack("=2i", *numbers))
        return 0

    def _placeholder(self, call: SystemCall, process: Process) -> int | None:
        """Return the kind of the placeholder that the call is about; None for another socket."""
        try:
            status = os.stat(b"/proc/%d/fd/%d" % (process.number, call.arguments[0] & _WORD))
        except FileNotFoundError:
            raise failure(errno.EBADF) from None
        if not stat.S_ISSOCK(status.st_mode):
            raise failure(errno.ENOTSOCK)
        return self._placeholders.get(status.st_ino)

    def _address(self, call: SystemCall) -> bytes:
        """Return the path, or the name with a NUL byte at its start, of an address of AF_UNIX."""
        size = call.arguments[2] & _WORD
        if not 2 <= size <= _ADDRESS:
            raise failure(errno.EINVAL)
        data = self.listener.read(call, call.arguments[1], size)
        if struct.unpack_from("=H", data)[0] != socket.AF_UNIX:
            raise failure(errno.EINVAL)
        path = data[2:]
        if path[:1] == b"\0":
            return (self._prefix + path[1:])[:_NAME]
        return path.partition(b"\0")[0]

    def _connect(self, call: SystemCall, process: Process) -> int | None:
        kind = self._placeholder(call, process)
        if kind is None:
            self._proceed(call)
            return None
        address = self._address(call)
        if not address:
            raise failure(errno.EINVAL)
        found = None
        try:
            if address[:1] != b"\0":
                found = self.view.find(process, AT_FDCWD, address, follow=True)
                status = os.fstat(found.fd)
                if not stat.S_ISSOCK(status.st_mode):
                    raise failure(errno.ECONNREFUSED)
                permissions.check(process.credentials, self.step.table.told(status), permissions.WRITE)
                address = b"/proc/self/fd/%d" % found.fd
            if kind == socket.SOCK_DGRAM:
                raise failure(errno.ECONNREFUSED)
            with socket.socket(socket.AF_UNIX, kind) as made:
                made.setblocking(False)
                made.bind(b"")
                made.connect(address)
                self._replace(call, process, made)
        finally:
            if found is not None:
                os.close(found.fd)
        return 0

    def _proceed(self, call: SystemCall) -> None:
        """Let the kernel connect or bind a socket of another family. A connected and bound one of AF_UNIX fails."""
        size = call.arguments[2] & _WORD
        if size >= 2 and struct.unpack("=H", self.listener.read(call, call.arguments[1], 2))[0] == socket.AF_UNIX:
            raise failure(errno.EISCONN if call.name == "connect" else errno.EINVAL)
        self.listener.proceed(call)

    def _bind(self, call: SystemCall, process: Process) -> int | None:
        kind = self._placeholder(call, process)
        if kind is None:
            self._proceed(call)
            return None
        if kind == socket.SOCK_DGRAM:
            raise failure(errno.EOPNOTSUPP)
        address = self._address(call)
        with socket.socket(socket.AF_UNIX, kind) as made:
            if address[:1] in (b"", b"\0"):
                made.bind(address)
            else:
                self._bind_path(process, made, address)
            made.listen(_BACKLOG)
            self._replace(call, process, made)
        return 0

    def _bind_path(self, process: Process, made: socket.socket, path: bytes) -> None:
        directory, name = self.view.parent(process, AT_FDCWD, path)
        try:
            above = os.fstat(directory.fd)
            if directory.readonly:
                raise failure(errno.EROFS)
            permissions.check(process.credentials, self.step.table.told(above), permissions.WRITE)
            default = access_lists.default_of(b"/proc/self/fd/%d" % directory.fd)
            address = b"/proc/self/fd/%d/%b" % (directory.fd, name)
            if len(address) > _NAME:
                raise failure(errno.ENAMETOOLONG)
            made.bind(address)
            file = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd)
        finally:
            os.close(directory.fd)
        try:
            status = os.fstat(file)
            credentials = process.credentials
            self.step.table.set(status, FileMetadata(credentials.uids[3], credentials.gids[3]))
            self.step.table.permit(file, status, access_lists.permitted(0o777, process.fs.umask, default))
        finally:
            os.close(file)

    def _replace(self, call: SystemCall, process: Process, made: socket.socket) -> None:
        """Put ``made`` in the place of the caller's socket."""
        number = call.arguments[0] & _WORD
        with open(b"/proc/%d/fdinfo/%d" % (process.number, number), "rb") as lines:
            flags = next(int(line.split()[1], 8) for line in lines if line.startswith(b"flags:"))
        made.setblocking(not flags & os.O_NONBLOCK)
        self.listener.replace_descriptor(call, made.fileno(), number, flags)
