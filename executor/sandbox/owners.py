"""Changes of owner where only one id exists: recorded, not made.

With a single mapped id the kernel refuses every chown to another, and no package could be installed. So a step's filter
hands these calls to a supervisor (seccomp_unotify(2)), a small process in the step's mount namespace but outside of its
pid namespace. It does to the file what chown does besides (copying it up, clearing set-user-id bits), and writes the
owner down: as the extended attribute ``user.kanifold.stat`` of files and directories, in the file ``owners`` beside the
upper directory for symbolic links and the like, which cannot have one. Whoever packs the layer reads both back
(``executor.rootfs.records``).

The supervisor acts with the rights that the step itself has: the same user, in the same user namespace.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import socket
import stat
import struct
from typing import Final, NoReturn

from executor.sandbox import seccomp
from platforms import syscalls

OWNER_XATTR: Final = "user.kanifold.stat"
OWNERS: Final = "owners"
"""Both as ``executor.rootfs`` reads them: ``UID:GID``, and lines of JSON objects with path, uid and gid."""

# linux/seccomp.h: struct seccomp_notif, struct seccomp_notif_resp, and the calls on a listener.
_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")  # id, pid, flags, number, architecture, instruction, arguments
_RESPONSE: Final = struct.Struct("=QqiI")  # id, value, error, flags
_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_STILL_VALID: Final = 0x40082102

_COPIED: Final = "user.overlay.origin"
"""What overlayfs leaves on a file or directory that it has copied up."""

_PATH_MAX: Final = 4096
_PAGE: Final = 4096
_UNCHANGED: Final = -1
_AT_FDCWD: Final = syscalls.AT_FDCWD & 0xFFFFFFFF


def supervise(line: socket.socket, step: int, upper: str, proc: int) -> NoReturn:
    """Answer for the step with the process id ``step`` until its last process has ended.

    ``line`` is where its filter's listener comes from; ``proc`` a descriptor of a /proc that shows the step's processes
    and this one.
    """
    beside = os.open(os.path.dirname(upper), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    _, fds, _, _ = socket.recv_fds(line, 16, 1, socket.MSG_CMSG_CLOEXEC)
    line.close()
    if not fds:  # it has never come that far
        os._exit(0)
    mounts = os.open(f"{step}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    syscalls.setns(mounts, syscalls.CLONE_NEWNS)
    os.close(mounts)
    os.fchdir(proc)
    _Supervisor(fds[0], beside).run()
    os._exit(0)


class _Supervisor:
    """One step's. The working directory is the /proc that shows its processes."""

    def __init__(self, listener: int, beside: int) -> None:
        self.listener = listener
        self.beside = beside
        self.names = seccomp.names(seccomp.OWNING)
        self.root = _identity("self/root")
        self.noted: set[str] = set()

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
            record(self.beside, self.noted, file, *owner)
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


def record(beside: int, noted: set[str], file: int, uid: int, gid: int) -> None:
    """Do chown's work on ``file``, an O_PATH descriptor, but for the owner, which is written down; -1 leaves an id.

    The working directory is a /proc that shows this process. ``beside`` is where the file ``owners`` is,
    and ``noted`` has the paths that are in it: most links are given to root, whose they are, and need no line.
    """
    kind = os.fstat(file).st_mode
    here = f"self/fd/{file}"
    os.chown(here, -1, -1)  # the rest of chown's work: copying up, set-user-id bits, EROFS
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        path = os.readlink(here)
        if path.startswith("/") and (uid > 0 or gid > 0 or path in noted):
            noted.add(path)
            _note(beside, path, max(uid, 0), max(gid, 0))
        return
    try:
        known = os.getxattr(here, OWNER_XATTR).split(b":")
    except OSError:
        known = []
    if uid == _UNCHANGED:
        uid = int(known[0]) if known else 0
    if gid == _UNCHANGED:
        gid = int(known[1]) if known else 0
    if uid or gid:
        try:
            os.setxattr(here, OWNER_XATTR, b"%d:%d" % (uid, gid))
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM):  # of no layer: /proc, a file system in memory
                raise
    elif known:
        os.removexattr(here, OWNER_XATTR)


def claim(upper: str, uid: int, gid: int) -> None:
    """Give what a step has made, which ran as another user than root, to that user.

    What was copied up from a layer below, because the step changed it, keeps its owner: overlayfs has marked it. Not
    looked at is whether the step's user would have been allowed to make it.
    """
    beside = os.open(os.path.dirname(upper), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for directory, directories, files in os.walk(upper):
            for name in (*directories, *files):
                path = f"{directory}/{name}"
                status = os.lstat(path)
                if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                    if not {OWNER_XATTR, _COPIED} & set(os.listxattr(path, follow_symlinks=False)):
                        os.setxattr(path, OWNER_XATTR, b"%d:%d" % (uid, gid), follow_symlinks=False)
                elif not (stat.S_ISCHR(status.st_mode) and status.st_rdev == 0):  # a whiteout has no owner
                    _note(beside, os.path.relpath(path, upper), uid, gid)
    finally:
        os.close(beside)


def _note(beside: int, path: str, uid: int, gid: int) -> None:
    """Write down the owner of what cannot have an extended attribute."""
    line = json.dumps({"path": path.strip("/"), "uid": uid, "gid": gid}) + "\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(OWNERS, flags, 0o644, dir_fd=beside)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


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
