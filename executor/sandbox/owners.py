"""Whose files are where only one id exists: recorded, and told to whoever looks.

With a single mapped id the kernel refuses every chown to another, and no package could be installed; and whatever is
copied with its metadata would lose its owner, if the step did not see it. So a step's filter hands the calls that
change or tell owners to a supervisor (seccomp_unotify(2)), a small process in the step's mount namespace but outside of
its pid namespace. To a file whose owner changes it does what chown does besides (copying it up, clearing set-user-id
bits), and remembers the owner (``recorded``). Of a file of which something is recorded it tells that; of any other the
kernel tells what there is to tell, which is most of what anybody asks. Devices, which nobody may make there, are empty
files that are told to be devices.

When the step has ended, the supervisor writes down beside the upper directory what it remembers of the files there,
where whoever reads the layer finds it (``executor.snapshotter.records``).

The supervisor acts with the rights that the step itself has: the same user, in the same user namespace. An argument in
the caller's memory is read once. Where it lets the kernel go on, the kernel may read something else, if the step has
changed it meanwhile: all that comes of it is that the step sees what the kernel sees.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import select
import socket
import stat
import struct
from typing import Final, NoReturn

import msgspec

from executor.sandbox import seccomp, status, watched
from executor.sandbox.recorded import Table
from executor.sandbox.spec import Bind, BindFd, Secret, Spec
from executor.snapshotter import records
from executor.snapshotter.records import Device
from platforms import syscalls

# linux/seccomp.h: struct seccomp_notif, struct seccomp_notif_resp, and the calls on a listener.
_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")  # id, pid, flags, number, architecture, instruction, arguments
_RESPONSE: Final = struct.Struct("=QqiI")  # id, value, error, flags
_IDENTITY: Final = struct.Struct("=Q")
_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_STILL_VALID: Final = 0x40082102
_SET_FLAGS: Final = 0x40082104
_SYNC_WAKE_UP: Final = 1
_CONTINUE: Final = 1

_PATH_MAX: Final = 4096
_PAGE: Final = 4096
_UNCHANGED: Final = -1
_SHORT_STRING: Final = 256
"""Bytes that most paths fit in."""
_WORD: Final = (1 << 32) - 1
_PATH: Final = os.O_PATH | os.O_CLOEXEC
_DESCRIPTOR: Final = re.compile(rb"(?:/proc/self/fd/|/dev/fd/)([0-9]{1,9})|/dev/std(?:in|out|err)")
_STREAMS: Final = {b"/dev/stdin": b"0", b"/dev/stdout": b"1", b"/dev/stderr": b"2"}
_STATX_SYNC: Final = 0x6000
"""The flags of statx(2) that say how fresh its answer is to be."""
_LOOKING_FLAGS: Final = _STATX_SYNC | syscalls.AT_SYMLINK_NOFOLLOW | syscalls.AT_NO_AUTOMOUNT | syscalls.AT_EMPTY_PATH
_AT_FDCWD: Final = syscalls.AT_FDCWD & _WORD
_SHORT_IDS: Final = ("i386", "arm")
"""Where ``chown``, ``lchown`` and ``fchown`` take ids of 16 bits, and others end in ``32``."""


Stacks = tuple[tuple[int, tuple[str, ...]], ...]
"""The device numbers of mounted unions, each with its layers, top first."""


def mounted_stacks(spec: Spec) -> Stacks:
    """What the step sees of other layers than its own."""
    return tuple((os.fstat(each.fd).st_dev, each.layers) for each in spec.mounts if isinstance(each, BindFd))


def supervise(line: socket.socket, spec: Spec, stacks: Stacks, proc: int) -> NoReturn:
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
    seen_as = os.fstat(root).st_dev
    upper, lower = spec.rootfs.upper, spec.rootfs.lower
    table = Table(upper, lower, seen_as)
    for device, layers in ((seen_as, lower), *stacks):
        table.add_layers(device, layers)
    syscalls.setns(mounts, syscalls.CLONE_NEWNS)
    view = syscalls.open_tree(root, "", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH | os.O_CLOEXEC)
    for mount in spec.mounts:
        if isinstance(mount, Bind | Secret):
            _own_mount(table, root, mount)
    for fd in (mounts, root):
        os.close(fd)
    os.fchdir(proc)
    _Supervisor(listener, table).run()
    syscalls.setns(own, syscalls.CLONE_NEWNS)
    records.write(upper, tuple(table.left(upper, view)))
    os._exit(0)


def _own_mount(table: Table, root: int, mount: Bind | Secret) -> None:
    owner = (mount.uid, mount.gid) if isinstance(mount, Secret) else mount.owner
    if any(owner):
        resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
        file = syscalls.openat2(root, mount.target, _PATH, resolve=resolve)
        table.own(file, *owner)
        os.close(file)


class _Call(msgspec.Struct, frozen=True):
    """A call that waits for its answer."""

    identity: int
    pid: int
    architecture: str
    name: str
    arguments: list[int]


class _Supervisor:
    """One step's. The working directory is the /proc that shows its processes."""

    def __init__(self, listener: int, table: Table) -> None:
        self.listener = listener
        self.table = table
        self.calls = seccomp.calls(watched.ALL)
        self.handlers = {
            name: handler
            for rows, handler in (
                (watched.OWNING, self.own),
                (watched.LOOKING, self.look),
                (watched.MAKING, self.make),
                (watched.MOVING, self.move),
                (watched.ENTERING, self.enter),
            )
            for name in (row.split()[0] for row in rows.splitlines())
        }
        self.root = _identity("self/root")
        self.entered = False
        """Whether a process has changed its root directory, or may have."""
        self.memory = syscalls.ProcessMemory()

    def run(self) -> None:
        with contextlib.suppress(OSError):  # before Linux 6.6
            fcntl.ioctl(self.listener, _SET_FLAGS, _SYNC_WAKE_UP)
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
        call = _Call(identity, pid, *self.calls[architecture, number], arguments)
        error = flags = 0
        try:
            if self.handlers[call.name](call):
                flags = _CONTINUE
        except OSError as failed:
            error = failed.errno or errno.EINVAL
        try:
            fcntl.ioctl(self.listener, _SEND, _RESPONSE.pack(identity, 0, -error, flags))
        except OSError:
            return

    # -- the calls: True when the kernel is to go on, OSError with the errno that the call is to fail with ------------

    def own(self, call: _Call) -> bool:
        """chown(2) and its kin."""
        base, path, follow = _AT_FDCWD, b"", True
        name, arguments = call.name, call.arguments
        if name == "fchownat":
            base, address, uid, gid, flags = arguments[:5]
            if flags & _WORD & ~(syscalls.AT_SYMLINK_NOFOLLOW | syscalls.AT_EMPTY_PATH):
                raise OSError(errno.EINVAL, "")
            path = self.string(call, address)
            follow = not flags & syscalls.AT_SYMLINK_NOFOLLOW
            if not path and not flags & syscalls.AT_EMPTY_PATH:
                raise OSError(errno.ENOENT, "")
        elif name.startswith("fchown"):
            base, uid, gid = arguments[:3]
        else:
            address, uid, gid = arguments[:3]
            path = self.string(call, address)
            follow = not name.startswith("lchown")
            if not path:
                raise OSError(errno.ENOENT, "")
        short = call.architecture in _SHORT_IDS and name in ("chown", "lchown", "fchown")
        owner = tuple(_id(each, 16 if short else 32) for each in (uid, gid))
        file = self.open(call, base, path, follow)
        try:
            self.still(call)
            change(self.table, file, *owner)
        finally:
            os.close(file)
        return False

    def look(self, call: _Call) -> bool:
        """stat(2) and its kin. Whatever fails here, the kernel knows better why."""
        try:
            return not self.told(call)
        except OSError:
            return True

    def told(self, call: _Call) -> bool:
        """Answer ``call`` if it is about a file of which something is recorded. Raises OSError."""
        name, arguments = call.name, call.arguments
        base, flags, path = _AT_FDCWD, 0, b""
        if name in ("statx", "newfstatat", "fstatat64"):
            base, address, buffer, flags = arguments[:4]
            if name == "statx":
                flags, buffer = arguments[2], arguments[4]
            if address:
                path = self.string(call, address)
            if flags & _WORD & ~_LOOKING_FLAGS or (not path and not flags & syscalls.AT_EMPTY_PATH):
                return False
        elif name.startswith("fstat"):
            base, buffer = arguments[:2]
        else:
            address, buffer = arguments[:2]
            path = self.string(call, address)
            if not path:
                return False
        follow = not path or not (flags & syscalls.AT_SYMLINK_NOFOLLOW or name.startswith("lstat"))
        where = self.where(call, base, path)
        if not self.table.concerns(os.stat(where, follow_symlinks=follow)):
            return False
        file = os.open(where, _PATH if follow else _PATH | os.O_NOFOLLOW)
        try:
            return self.tell(call, file, buffer)
        finally:
            os.close(file)

    def tell(self, call: _Call, file: int, buffer: int) -> bool:
        """Write what is recorded of ``file`` to the caller's ``buffer``; False when nothing is."""
        found = os.fstat(file)
        known = self.table.seen(file, found)
        if known is None:
            return False
        told = status.Status(found, known.uid, known.gid, known.device)
        if call.name == "statx":
            flags, mask = call.arguments[2] & _STATX_SYNC, call.arguments[3] & _WORD
            data = status.amended(syscalls.statx(file, b"", flags | syscalls.AT_EMPTY_PATH, mask), told)
        else:
            data = status.packed(told, call.architecture, wide=call.name.endswith("64"))
        memory = os.open(f"{call.pid}/mem", os.O_WRONLY | os.O_CLOEXEC)
        try:
            self.still(call)  # so the memory is that of the process that called
            os.pwrite(memory, data, buffer)
        except (OSError, OverflowError) as error:  # a place that no process has
            raise OSError(errno.EFAULT, "") from error
        finally:
            os.close(memory)
        return True

    def make(self, call: _Call) -> bool:
        """mknod(2) of a device: an empty file that stands for it."""
        base, (address, mode, number) = _AT_FDCWD, call.arguments[:3]
        if call.name == "mknodat":
            base, address, mode, number = call.arguments[:4]
        letter = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}.get(stat.S_IFMT(mode & _WORD))
        if letter is None:
            return True
        number &= _WORD
        major, minor = number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00
        if letter == "c" and (major, minor) == (0, 0):  # by which overlayfs marks deletions
            raise OSError(errno.EPERM, "")
        path, slash, name = self.string(call, address).rpartition(b"/")
        if name in (b"", b".", b".."):  # nothing that could be made: the kernel says why
            return True
        directory = self.open(call, base, path or slash or b".", follow=True)
        try:
            umask = _umask(call.pid)
            self.still(call)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(name, flags, 0o600, dir_fd=directory)
        finally:
            os.close(directory)
        try:
            os.fchmod(file, stat.S_IMODE(mode & _WORD) & ~umask)
            self.table.make(file, Device(letter, major, minor))
        finally:
            os.close(file)
        return False

    def move(self, call: _Call) -> bool:
        """rename(2) and its kin: the group stays that the old directory has handed down, whatever the new one would."""
        from_, old, to, new = (_AT_FDCWD, call.arguments[0], _AT_FDCWD, call.arguments[1])
        if call.name != "rename":
            from_, old, to, new = call.arguments[:4]
        if self.table.hands_down:
            try:
                file = self.open(call, from_, self.string(call, old), follow=False)
                try:
                    above, slash, _ = self.string(call, new).rstrip(b"/").rpartition(b"/")
                    directory = self.open(call, to, above or slash or b".", follow=True)
                    try:
                        self.still(call)
                        self.table.keep(file, directory)
                    finally:
                        os.close(directory)
                finally:
                    os.close(file)
            except OSError:  # so will the kernel's fail, and say why
                pass
        return True

    def enter(self, call: _Call) -> bool:
        """chroot(2): from now on it has to be asked where a process has its root."""
        del call
        self.entered = True
        return True

    # -- what the caller means ----------------------------------------------------------------------------------------

    def still(self, call: _Call) -> None:
        """Raise OSError if the caller has died: its number, and its descriptors, may be another's by now."""
        fcntl.ioctl(self.listener, _STILL_VALID, _IDENTITY.pack(call.identity))

    def where(self, call: _Call, base: int, path: bytes) -> bytes:
        """A path by which this process finds what ``path`` is to the caller; b"" is ``base`` itself.

        The root directory is made that of the caller, which may have chrooted: links lead to where they lead it.
        """
        if self.entered and (wanted := _identity(f"{call.pid}/root")) != self.root:
            os.chroot(f"{call.pid}/root")  # the working directory stays where it is
            self.root = wanted
        if path[:1] == b"/":
            # By its own /proc, this process cannot find out who "self" is. Only descriptors: nothing may follow.
            opened = None if self.entered else _DESCRIPTOR.fullmatch(path)
            return b"%d/fd/%b" % (call.pid, _STREAMS.get(path) or opened[1]) if opened else path
        base &= _WORD
        place = b"%d/cwd" % call.pid if base == _AT_FDCWD else b"%d/fd/%d" % (call.pid, base)
        return place + b"/" + path if path else place

    def open(self, call: _Call, base: int, path: bytes, follow: bool) -> int:
        """An O_PATH descriptor of what the call is about."""
        where = self.where(call, base, path)
        if path[:1] != b"/" and not os.path.exists(where[: len(where) - len(path) - 1] if path else where):
            raise OSError(errno.EBADF, "")
        return os.open(where, _PATH if follow or not path else _PATH | os.O_NOFOLLOW)

    def string(self, call: _Call, address: int) -> bytes:
        """The string at ``address`` of the caller's memory, without its NUL."""
        found = b""
        while len(found) < _PATH_MAX:
            wanted = _PAGE if found else _SHORT_STRING
            part = self.memory.read(call.pid, address, min(_PAGE - address % _PAGE, wanted))
            text, end, _ = part.partition(b"\0")
            found += text
            if end:
                return found
            address += len(part)
        raise OSError(errno.ENAMETOOLONG, "")


def change(table: Table, file: int, uid: int, gid: int) -> None:
    """Do chown's work on ``file``, an O_PATH descriptor, but for the owner, which ``table`` gets; -1 leaves an id.

    The working directory is a /proc that shows this process.
    """
    was = os.fstat(file)
    os.chown(f"self/fd/{file}", -1, -1)  # the rest of chown's work: copying up, set-user-id bits, EROFS
    table.give(file, was, uid, gid)


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _id(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return _UNCHANGED if value == (1 << bits) - 1 else value


def _umask(pid: int) -> int:
    with open(f"{pid}/status", "rb") as file:
        return next((int(line.split()[1], 8) for line in file if line.startswith(b"Umask:")), 0)
