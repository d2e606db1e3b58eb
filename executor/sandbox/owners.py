"""A supervisor that records file ownership where only one id exists, and reports it to the step.

With a single mapped id the kernel refuses every chown to another id, so no package could be installed, and files copied
with their metadata would lose their owner. So the step's seccomp filter hands the system calls that change or report
ownership to a supervisor (seccomp_unotify(2)), a small process in the step's mount namespace but outside of its pid
namespace. For a chown it does the rest of the kernel's work (copying the file up, clearing set-user-id bits) and
records the owner (``inode_records``). For a stat of a file with a record it returns the recorded values; all others are
left to the kernel. Devices, which cannot be made there, are empty files that are reported as devices.

When the step has ended, the supervisor writes the records beside the upper directory, from where they are read with the
layer (``executor.snapshotter.records``).

The supervisor has the rights of the step: the same user, in the same user namespace. But no Landlock domain keeps it
from other processes, so where the step's /proc shows some, it follows no link to their files (``_Supervisor.open``). An
argument in the caller's memory is read once. Where a call is continued by the kernel, the step may have changed its
memory meanwhile; the only effect is that the step sees what the kernel reports.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from typing import Final, NoReturn

from executor.sandbox import access_lists, notified_calls, roots, seccomp, staging, status
from executor.sandbox.inode_records import InodeRecords
from executor.sandbox.inplace_records import InodeRecordsInPlace
from executor.sandbox.listener import Listener, SystemCall
from executor.sandbox.spec import Bind, BindFd, SecretFile, Spec
from executor.snapshotter import records
from executor.snapshotter.records import DeviceNumber
from executor.snapshotter.rootfs import Overlay
from platforms import process_numbers, syscalls
from platforms.descriptors import receive_fds

_UNCHANGED: Final = -1
_WORD: Final = (1 << 32) - 1
_PATH: Final = os.O_PATH | os.O_CLOEXEC
_DESCRIPTOR: Final = re.compile(rb"(?:/proc/self/fd/|/dev/fd/)([0-9]{1,9})|/dev/std(?:in|out|err)")
_STREAMS: Final = {b"/dev/stdin": b"0", b"/dev/stdout": b"1", b"/dev/stderr": b"2"}
_STATX_SYNC: Final = 0x6000
"""The flags of statx(2) about synchronisation with a remote file system."""
_LOOKING_FLAGS: Final = _STATX_SYNC | syscalls.AT_SYMLINK_NOFOLLOW | syscalls.AT_NO_AUTOMOUNT | syscalls.AT_EMPTY_PATH
_AT_FDCWD: Final = syscalls.AT_FDCWD & _WORD
_SHORT_IDS: Final = ("i386", "arm")
"""Architectures where ``chown``, ``lchown`` and ``fchown`` take 16-bit ids, and variants end in ``32``."""


Stacks = tuple[tuple[int, tuple[str, ...]], ...]
"""For each mounted overlay, its device number and its layers, top first."""


def mounted_stacks(spec: Spec) -> Stacks:
    """Return the overlays that are mounted in the step besides its root."""
    return tuple((os.fstat(each.fd).st_dev, each.layers) for each in spec.mounts if isinstance(each, BindFd))


def supervise(line: socket.socket, spec: Spec, stacks: Stacks, proc: int) -> NoReturn:
    """Handle the notifications of the step ``spec`` until its last process has ended; then write the records.

    ``line``: the socket on which the step sends its filter's listener, its root directory and its mount namespace.
    ``proc``: a descriptor of a /proc that shows the step's processes and this one. The exit status is 0 when the
    records are complete, ENAMETOOLONG when there is a path that is too long for one.
    """
    _, fds = receive_fds(line, 16, 3)
    line.close()
    if not fds:  # the step did not get that far
        os._exit(0)
    listener, root, mounts = fds
    own = os.open("self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    sees_others = staging.shows_outer_processes()
    seen_as = os.fstat(root).st_dev
    written = roots.written(spec.rootfs)
    if isinstance(spec.rootfs, Overlay):
        table, own_layers, keep = InodeRecords(written, spec.rootfs.lower, seen_as), spec.rootfs.lower, records.write
    else:
        table, own_layers, keep = InodeRecordsInPlace(written, seen_as, spec.begun), (written,), records.rewrite
    for device, layers in ((seen_as, own_layers), *stacks):
        table.add_layers(device, layers)
    syscalls.setns(mounts, syscalls.CLONE_NEWNS)
    view = syscalls.open_tree(root, "", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH | os.O_CLOEXEC)
    for mount in spec.mounts:
        if isinstance(mount, Bind | SecretFile):
            _own_mount(table, root, mount)
    for fd in (mounts, root):
        os.close(fd)
    os.fchdir(proc)
    _Supervisor(listener, table, sees_others).run()
    syscalls.setns(own, syscalls.CLONE_NEWNS)
    try:
        keep(written, tuple(table.left(written, view)))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        os._exit(errno.ENAMETOOLONG)
    os._exit(0)


def _own_mount(table: InodeRecords, root: int, mount: Bind | SecretFile) -> None:
    owner = (mount.uid, mount.gid) if isinstance(mount, SecretFile) else mount.owner
    if any(owner):
        resolve = syscalls.IN_ROOT
        file = syscalls.openat2(root, mount.target, _PATH, resolve=resolve)
        table.own(file, *owner)
        os.close(file)


class _Supervisor:
    """The supervisor of one step. The working directory is a /proc that shows its processes."""

    def __init__(self, listener: int, table: InodeRecords, sees_others: bool) -> None:
        self.listener = Listener(listener, seccomp.calls(notified_calls.ALL))
        self.table = table
        self.sees_others = sees_others
        """Whether the step's /proc shows processes that are not its own."""
        self.handlers = {
            name: handler
            for rows, handler in (
                (notified_calls.OWNING, self.own),
                (notified_calls.LOOKING, self.look),
                (notified_calls.MAKING, self.make),
                (notified_calls.MOVING, self.move),
                (notified_calls.ENTERING, self.enter),
            )
            for name in (row.split()[0] for row in rows.splitlines())
        }
        self.foreign = process_numbers.differ_in(None)
        """Whether the working directory has other numbers for processes than notifications have."""
        self.root = _identity("self/root")
        self.entered = False
        """Whether a process has changed its root directory."""
        self.process = 0
        """The caller's directory in the working directory."""

    def run(self) -> None:
        """Serve calls until no process uses the filter any more."""
        while (call := self.listener.receive()) is not None:
            try:
                self.process = process_numbers.number_in(None, call.pid) if self.foreign else call.pid
                if self.handlers[call.name](call):
                    self.listener.proceed(call)
                    continue
                error = 0
            except OSError as failed:
                error = failed.errno or errno.EINVAL
            self.listener.answer(call, error=error)

    # -- handlers: return True to continue the call in the kernel, raise OSError for its errno -------------------------

    def own(self, call: SystemCall) -> bool:
        """Handle chown(2) and its variants."""
        base, path, follow = _AT_FDCWD, b"", True
        name, arguments = call.name, call.arguments
        if name == "fchownat":
            base, address, uid, gid, flags = arguments[:5]
            if flags & _WORD & ~(syscalls.AT_SYMLINK_NOFOLLOW | syscalls.AT_EMPTY_PATH):
                raise OSError(errno.EINVAL, "")
            path = self.listener.string(call, address)
            follow = not flags & syscalls.AT_SYMLINK_NOFOLLOW
            if not path and not flags & syscalls.AT_EMPTY_PATH:
                raise OSError(errno.ENOENT, "")
        elif name.startswith("fchown"):
            base, uid, gid = arguments[:3]
        else:
            address, uid, gid = arguments[:3]
            path = self.listener.string(call, address)
            follow = not name.startswith("lchown")
            if not path:
                raise OSError(errno.ENOENT, "")
        short = call.architecture in _SHORT_IDS and name in ("chown", "lchown", "fchown")
        owner = tuple(_id(each, 16 if short else 32) for each in (uid, gid))
        file = self.open(call, base, path, follow)
        try:
            self.listener.still(call)
            change(self.table, file, *owner)
        finally:
            os.close(file)
        return False

    def look(self, call: SystemCall) -> bool:
        """Handle stat(2) and its variants. On any error the kernel continues the call and reports it."""
        try:
            return not self.answer_recorded(call)
        except OSError:
            return True

    def answer_recorded(self, call: SystemCall) -> bool:
        """Answer ``call`` if there is a record of its file. Raises OSError."""
        name, arguments = call.name, call.arguments
        base, flags, path = _AT_FDCWD, 0, b""
        if name in ("statx", "newfstatat", "fstatat64"):
            base, address, buffer, flags = arguments[:4]
            if name == "statx":
                flags, buffer = arguments[2], arguments[4]
            if address:
                path = self.listener.string(call, address)
            if flags & _WORD & ~_LOOKING_FLAGS or (not path and not flags & syscalls.AT_EMPTY_PATH):
                return False
        elif name.startswith("fstat"):
            base, buffer = arguments[:2]
        else:
            address, buffer = arguments[:2]
            path = self.listener.string(call, address)
            if not path:
                return False
        follow = not path or not (flags & syscalls.AT_SYMLINK_NOFOLLOW or name.startswith("lstat"))
        if not self.table.concerns(os.stat(_joined(*self.where(call, base, path)), follow_symlinks=follow)):
            return False
        file = self.open(call, base, path, follow)
        try:
            return self.write_status(call, file, buffer)
        finally:
            os.close(file)

    def write_status(self, call: SystemCall, file: int, buffer: int) -> bool:
        """Write the recorded status of ``file`` to ``buffer`` in the caller; False if there is no record."""
        found = os.fstat(file)
        known = self.table.seen(file, found)
        if known is None:
            return False
        told = status.FileStatus(found, known.uid, known.gid, known.device)
        if call.name == "statx":
            flags, mask = call.arguments[2] & _STATX_SYNC, call.arguments[3] & _WORD
            data = status.patch_statx(syscalls.statx(file, b"", flags | syscalls.AT_EMPTY_PATH, mask), told)
        else:
            data = status.pack(told, call.architecture, wide=call.name.endswith("64"))
        self.listener.write(call, buffer, data)
        return True

    def make(self, call: SystemCall) -> bool:
        """Handle mknod(2) of a device: make an empty file and record the device."""
        base, (address, mode, number) = _AT_FDCWD, call.arguments[:3]
        if call.name == "mknodat":
            base, address, mode, number = call.arguments[:4]
        letter = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}.get(stat.S_IFMT(mode & _WORD))
        if letter is None:
            return True
        number &= _WORD
        major, minor = number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00
        if letter == "c" and (major, minor) == (0, 0):  # a whiteout of overlayfs
            raise OSError(errno.EPERM, "")
        path, slash, name = self.listener.string(call, address).rpartition(b"/")
        if name in (b"", b".", b".."):  # the kernel reports the error
            return True
        directory = self.open(call, base, path or slash or b".", follow=True)
        try:
            umask = _umask(self.process)
            self.listener.still(call)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(name, flags, 0o600, dir_fd=directory)
            default = access_lists.default_of(b"self/fd/%d" % directory)
        finally:
            os.close(directory)
        try:
            os.fchmod(file, access_lists.permitted(stat.S_IMODE(mode & _WORD), umask, default))
            self.table.make(file, DeviceNumber(letter, major, minor))
        finally:
            os.close(file)
        return False

    def move(self, call: SystemCall) -> bool:
        """Handle rename(2) and its variants: record a group that was inherited from the old directory."""
        from_, old, to, new = (_AT_FDCWD, call.arguments[0], _AT_FDCWD, call.arguments[1])
        if call.name != "rename":
            from_, old, to, new = call.arguments[:4]
        if self.table.hands_down:
            try:
                file = self.open(call, from_, self.listener.string(call, old), follow=False)
                try:
                    above, slash, _ = self.listener.string(call, new).rstrip(b"/").rpartition(b"/")
                    directory = self.open(call, to, above or slash or b".", follow=True)
                    try:
                        self.listener.still(call)
                        self.table.keep(file, directory)
                    finally:
                        os.close(directory)
                finally:
                    os.close(file)
            except OSError:  # the kernel reports the error
                pass
        return True

    def enter(self, call: SystemCall) -> bool:
        """Handle chroot(2): from now on the root directory of each caller is looked up."""
        del call
        self.entered = True
        return True

    # -- the caller's paths and memory --------------------------------------------------------------------------------

    def where(self, call: SystemCall, base: int, path: bytes) -> tuple[bytes, bytes]:
        """Return from where this process reaches ``path`` as the caller would: a link of /proc, and a path from there.

        Either can be b"": there is no link for an absolute path, and no path for ``base`` itself, which is path b"", or
        another descriptor. The root directory is set to the caller's, which may have called chroot, so that absolute
        links are resolved there.
        """
        if self.entered and (wanted := _identity(f"{self.process}/root")) != self.root:
            os.chroot(f"{self.process}/root")  # the working directory is unchanged
            self.root = wanted
        if path[:1] == b"/":
            # In the caller's /proc "self" is not this process. Only descriptors, with nothing after them.
            opened = None if self.entered else _DESCRIPTOR.fullmatch(path)
            return (b"%d/fd/%b" % (self.process, _STREAMS.get(path) or opened[1]), b"") if opened else (b"", path)
        base &= _WORD
        return b"%d/cwd" % self.process if base == _AT_FDCWD else b"%d/fd/%d" % (self.process, base), path

    def open(self, call: SystemCall, base: int, path: bytes, follow: bool) -> int:
        """Return an O_PATH descriptor of the file that the call is about.

        Where the step's /proc shows the executor, whose directories this process could enter by it, ``path`` leads
        through no magic link: ELOOP.
        """
        link, rest = self.where(call, base, path)
        if path[:1] != b"/" and not os.path.exists(link):
            raise OSError(errno.EBADF, "")
        flags = _PATH if follow or not path else _PATH | os.O_NOFOLLOW
        if not self.sees_others or not rest:
            return os.open(_joined(link, rest), flags)
        start = os.open(link or b"/", _PATH)
        try:
            return syscalls.openat2(start, os.fsdecode(rest), flags, resolve=syscalls.RESOLVE_NO_MAGICLINKS)
        finally:
            os.close(start)


def change(table: InodeRecords, file: int, uid: int, gid: int) -> None:
    """Do what chown does to ``file``, an O_PATH descriptor, except for the owner, which is recorded; -1 leaves an id.

    The working directory is a /proc that shows this process.
    """
    was = os.fstat(file)
    os.chown(f"self/fd/{file}", -1, -1)  # copies up, clears set-user-id bits, fails with EROFS
    table.give(file, was, uid, gid)


def _joined(link: bytes, rest: bytes) -> bytes:
    return link + b"/" + rest if link and rest else link or rest


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _id(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return _UNCHANGED if value == (1 << bits) - 1 else value


def _umask(process: int) -> int:
    with open(f"{process}/status", "rb") as file:
        return next((int(line.split()[1], 8) for line in file if line.startswith(b"Umask:")), 0)
