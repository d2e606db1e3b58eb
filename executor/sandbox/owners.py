"""Changes of owner where only one id exists: recorded, not made.

With a single mapped id the kernel refuses every chown to another, and no package could be installed. So a step's filter
hands these calls to a supervisor (seccomp_unotify(2)), a small process in the step's mount namespace but outside of its
pid namespace. It does to the file what chown does besides (copying it up, clearing set-user-id bits), and remembers the
owner (``recorded``). When the step has ended, it writes down beside the upper directory what it remembers of the files
there, where whoever reads the layer finds it (``executor.rootfs.records``).

The supervisor acts with the rights that the step itself has: the same user, in the same user namespace.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from typing import Final, NoReturn

from executor.rootfs import records
from executor.sandbox import seccomp
from executor.sandbox.recorded import Table
from executor.sandbox.spec import Spec
from platforms import syscalls

# linux/seccomp.h: struct seccomp_notif, struct seccomp_notif_resp, and the calls on a listener.
_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")  # id, pid, flags, number, architecture, instruction, arguments
_RESPONSE: Final = struct.Struct("=QqiI")  # id, value, error, flags
_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_STILL_VALID: Final = 0x40082102

_PATH_MAX: Final = 4096
_PAGE: Final = 4096
_UNCHANGED: Final = -1
_AT_FDCWD: Final = syscalls.AT_FDCWD & 0xFFFFFFFF


def supervise(line: socket.socket, spec: Spec, proc: int) -> NoReturn:
    """Answer for the step ``spec`` until its last process has ended; then record what it leaves.

    ``line`` is where the step sends its filter's listener, its root directory and its mount namespace; ``proc`` a
    descriptor of a /proc that shows the step's processes and this one. The exit status is 0 when the records are
    complete.
    """
    _, fds, _, _ = socket.recv_fds(line, 16, 3, socket.MSG_CMSG_CLOEXEC)
    line.close()
    if not fds:  # it has never come that far
        os._exit(0)
    listener, root, mounts = fds
    own = os.open("self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    table = Table(spec.layers)
    table.add_layers(os.fstat(root).st_dev, spec.layers)
    syscalls.setns(mounts, syscalls.CLONE_NEWNS)
    view = syscalls.open_tree(root, "", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH | os.O_CLOEXEC)
    for fd in (mounts, root):
        os.close(fd)
    os.fchdir(proc)
    _Supervisor(listener, table).run()
    syscalls.setns(own, syscalls.CLONE_NEWNS)
    records.write(spec.upper, tuple(table.left(spec.upper, view)))
    os._exit(0)


class _Supervisor:
    """One step's. The working directory is the /proc that shows its processes."""

    def __init__(self, listener: int, table: Table) -> None:
        self.listener = listener
        self.table = table
        self.names = seccomp.names(seccomp.OWNING)
        self.root = _identity("self/root")

    def run(self) -> None:
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        while True:
            for _, event in poll.poll():
                if not event & select.POLLIN:  # nobody is left who could call
                    return
                self.serve()

    def serve(self) -> None:
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self.listener, _RECEIVE, buffer)
        except OSError:  # killed while it was calling
            return
        identity, pid, _, number, architecture, _, *arguments = _NOTIFICATION.unpack(buffer)
        error = 0
        try:
            self.handle(identity, pid, architecture, self.names[architecture, number], arguments)
        except OSError as failed:
            error = failed.errno or errno.EINVAL
        try:
            fcntl.ioctl(self.listener, _SEND, _RESPONSE.pack(identity, 0, -error, 0))
        except OSError:
            return

    def handle(self, identity: int, pid: int, architecture: int, name: str, arguments: list[int]) -> None:
        """Do ``name``'s work. Raises OSError with the errno that the call is to fail with."""
        base, path, follow = _AT_FDCWD, b"", True
        if name == "fchownat":
            base, address, uid, gid, flags = arguments[:5]
            path = _string(pid, address)
            follow = not flags & syscalls.AT_SYMLINK_NOFOLLOW
            if not path and not flags & syscalls.AT_EMPTY_PATH:
                raise OSError(errno.ENOENT, "")
        elif name.startswith("fchown"):
            base, uid, gid = arguments[:3]
        else:
            address, uid, gid = arguments[:3]
            path = _string(pid, address)
            follow = not name.startswith("lchown")
            if not path:
                raise OSError(errno.ENOENT, "")
        short = architecture in seccomp.SHORT_IDS and name in ("chown", "lchown", "fchown")
        owner = tuple(_id(each, 16 if short else 32) for each in (uid, gid))
        self.enter_root_of(pid)
        file = self.open(pid, base & 0xFFFFFFFF, path, follow)
        try:
            # The process may have died, and its number have gone to another, since it called.
            fcntl.ioctl(self.listener, _STILL_VALID, struct.pack("=Q", identity))
            change(self.table, file, *owner)
        finally:
            os.close(file)

    def enter_root_of(self, pid: int) -> None:
        """Look at paths as the process does, which may have chrooted."""
        wanted = _identity(f"{pid}/root")
        if wanted != self.root:
            os.chroot(f"{pid}/root")  # the working directory stays where it is
            self.root = wanted

    def open(self, pid: int, base: int, path: bytes, follow: bool) -> int:
        """An O_PATH descriptor of what the call is about."""
        flags = os.O_PATH | os.O_CLOEXEC
        place = f"{pid}/cwd" if base == _AT_FDCWD else f"{pid}/fd/{base}"
        try:
            start = os.open(place, flags)
        except FileNotFoundError:
            raise OSError(errno.EBADF, "") from None
        if not path:
            return start
        try:
            return os.open(path, flags if follow else flags | os.O_NOFOLLOW, dir_fd=start)
        finally:
            os.close(start)


def change(table: Table, file: int, uid: int, gid: int) -> None:
    """Do chown's work on ``file``, an O_PATH descriptor, but for the owner, which ``table`` gets; -1 leaves an id.

    The working directory is a /proc that shows this process.
    """
    was = os.fstat(file)
    os.chown(f"self/fd/{file}", -1, -1)  # the rest of chown's work: copying up, set-user-id bits, EROFS
    table.give(file, was, uid, gid)


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _id(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return _UNCHANGED if value == (1 << bits) - 1 else value


def _string(pid: int, address: int) -> bytes:
    """The string at ``address`` of the process's memory, without its NUL."""
    found = b""
    try:
        memory = os.open(f"{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise OSError(errno.ESRCH, "") from None
    try:
        while len(found) < _PATH_MAX:
            part = os.pread(memory, _PAGE - address % _PAGE, address)
            text, end, _ = part.partition(b"\0")
            found += text
            if end:
                return found
            if not part:
                break
            address += len(part)
    except OSError:
        raise OSError(errno.EFAULT, "") from None
    finally:
        os.close(memory)
    raise OSError(errno.ENAMETOOLONG, "")
