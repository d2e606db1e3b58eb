"""The files that a step sees: its root directory, and other directories and files in place of some in it.

A path is resolved by the kernel within the root directory (openat2(2), RESOLVE_IN_ROOT and RESOLVE_BENEATH), which
therefore nothing in it can lead out of, whatever other threads of the step do to it meanwhile. Where the step sees
something else, the root has a file or directory without any permission, so that the kernel's resolution ends there with
EACCES; then, and where a relative path leads above its start, the path is resolved here, one component at a time
(``_walk``), each of which the kernel looks up without following a link.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from platforms import syscalls
from platforms.pathwalk import PathWalk

if TYPE_CHECKING:
    from executor.supervised.processes import Process
    from executor.supervised.step_proc import StepProc

_PATH: Final = os.O_PATH | os.O_CLOEXEC
_UNDECIDED: Final = frozenset((errno.EACCES, errno.EXDEV, errno.ELOOP, errno.EAGAIN))
_LINKS: Final = 40
"""Maximum number of links that Linux follows (path_resolution(7))."""
_WORD: Final = 0xFFFFFFFF
AT_FDCWD: Final = syscalls.AT_FDCWD & _WORD
_DELETED: Final = b" (deleted)"


def failure(number: int) -> OSError:
    """Return the exception for an errno."""
    return OSError(number, os.strerror(number))


class MountedFile:
    """What a step sees at ``target``, a path without links and a slash at its start; b"" for the root.

    ``source`` is a path of this host without links, ``fd`` an O_PATH descriptor of it.
    """

    def __init__(self, target: bytes, source: bytes, *, readonly: bool = False, fd: int = -1) -> None:
        self.target = target
        self.source = source
        self.fd = os.open(source, _PATH) if fd < 0 else fd
        self.device = os.fstat(self.fd).st_dev
        self.readonly = readonly


class FoundFile:
    """An open file, and whether it may not be written because of where it is."""

    __slots__ = ("_status", "fd", "readonly")

    def __init__(self, fd: int, *, readonly: bool, status: os.stat_result | None = None) -> None:
        self.fd = fd
        self.readonly = readonly
        self._status = status

    @property
    def status(self) -> os.stat_result:
        """The status that it had when it was found, or had first when that was asked for."""
        if self._status is None:
            self._status = os.fstat(self.fd)
        return self._status


class FileView:
    """The files of a step. ``covered``: the identities of the files in the root in whose place there is something else
    (device and inode number)."""

    def __init__(self, mounts: list[MountedFile], covered: set[tuple[int, int]], proc: StepProc) -> None:
        self.root = mounts[0]
        self._mounts = {each.target: each for each in mounts}
        self._by_source = sorted(mounts, key=lambda each: -len(each.source))
        self._covered = covered
        self._proc = proc
        self._walked_devices = {proc.device, *(each.device for each in mounts if each.target == b"sys")}
        """Of /proc and /sys, in whose directories the kernel would find what the step does not."""
        readonly = {each.device for each in mounts if each.readonly}
        self._writable_device = -1 if self.root.device in readonly else self.root.device
        """The device of the root, unless there are read-only mounts from it, too."""

    # -- names of open files -------------------------------------------------------------------------------------------

    def shown(self, host: bytes) -> bytes | None:
        """Return the step's path of ``host``, a path of this host; None if it has none."""
        for each in self._by_source:
            if host == each.source:
                return b"/" + each.target
            if host.startswith(each.source + b"/"):
                return (b"/" + each.target if each.target else b"") + host[len(each.source) :]
        return host if host.startswith(b"/dev/") else self._proc.shown(host)

    def path_of(self, fd: int) -> bytes | None:
        """Return the step's path of a descriptor of this process; None if it has none, or is deleted."""
        host = os.readlink(b"/proc/self/fd/%d" % fd)
        return None if host.endswith(_DELETED) and not os.fstat(fd).st_nlink else self.shown(host)

    def mount_of(self, fd: int) -> MountedFile | None:
        """Return which mount the file of a descriptor of this process is in."""
        host = os.readlink(b"/proc/self/fd/%d" % fd)
        for each in self._by_source:
            if host == each.source or host.startswith(each.source + b"/"):
                return each
        return None

    def is_readonly(self, fd: int, status: os.stat_result) -> bool:
        """Whether the file ``fd``, with ``status``, is on a read-only mount."""
        if status.st_dev == self._writable_device:
            return False
        mount = self.mount_of(fd)
        return mount is not None and mount.readonly

    def is_covered(self, status: os.stat_result) -> bool:
        """Whether the step sees something else in place of the file with ``status``."""
        return (status.st_dev, status.st_ino) in self._covered

    # -- looking up ----------------------------------------------------------------------------------------------------

    def descriptor(self, process: Process, number: int) -> int:
        """Return an O_PATH descriptor of what the caller has open as ``number``. Raises OSError (EBADF)."""
        files = process.files()
        try:
            return os.open(b"%d" % (number & _WORD), _PATH, dir_fd=files.fd)
        except FileNotFoundError:
            raise failure(errno.EBADF) from None

    def status(self, process: Process, number: int) -> os.stat_result:
        """Return the status of what the caller has open as ``number``. Raises OSError (EBADF)."""
        files = process.files()
        try:
            return os.stat(b"%d" % (number & _WORD), dir_fd=files.fd)
        except FileNotFoundError:
            raise failure(errno.EBADF) from None

    def find(self, process: Process, base: int, path: bytes, *, follow: bool) -> FoundFile:
        """Return an O_PATH descriptor of ``path``, relative to the caller's descriptor ``base``. Raises OSError."""
        return self.open(process, base, path, _PATH if follow else _PATH | os.O_NOFOLLOW)

    def open(self, process: Process, base: int, path: bytes, flags: int) -> FoundFile:
        """Open ``path`` with the ``flags`` of open(2), which must not make a file. Raises OSError."""
        if not path:
            raise failure(errno.ENOENT)
        if path[:1] == b"/":
            try:
                return self._uncovered(syscalls.openat2(self.root.fd, path, flags, resolve=syscalls.IN_ROOT), flags)
            except OSError as error:
                if error.errno not in _UNDECIDED:
                    raise
            return self._walked(process, [], path, flags)
        return self._open_relative(process, base & _WORD, path, flags)

    def _uncovered(self, fd: int, flags: int, *, readonly: bool = False) -> FoundFile:
        """Return the file that has been opened as ``fd``, unless there is something else in its place (EACCES)."""
        if not flags & os.O_PATH:
            return FoundFile(fd, readonly=readonly)
        status = os.fstat(fd)
        if self.is_covered(status):
            os.close(fd)
            raise failure(errno.EACCES)
        return FoundFile(fd, readonly=readonly, status=status)

    def _open_relative(self, process: Process, base: int, path: bytes, flags: int) -> FoundFile:
        cwd = process.fs.cwd
        start = cwd.fd if base == AT_FDCWD else self.descriptor(process, base)
        try:
            readonly, walked = cwd.readonly, cwd.device in self._walked_devices
            if base != AT_FDCWD:
                status = os.fstat(start)
                if not stat.S_ISDIR(status.st_mode):
                    raise failure(errno.ENOTDIR)
                walked = status.st_dev in self._walked_devices
                readonly = not walked and self.is_readonly(start, status)
            if not walked:
                try:
                    found = self._uncovered(
                        syscalls.openat2(start, path, flags, resolve=syscalls.BENEATH), flags, readonly=readonly
                    )
                except OSError as error:
                    if error.errno not in _UNDECIDED:
                        raise
                else:
                    return self._checked(found, flags)
            above = self.path_of(start)
        finally:
            if base != AT_FDCWD:
                os.close(start)
        if above is None:
            raise failure(errno.ENOENT)
        return self._walked(process, [each for each in above.split(b"/") if each], path, flags)

    @staticmethod
    def _checked(found: FoundFile, flags: int) -> FoundFile:
        if found.readonly and flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_PATH:
            os.close(found.fd)
            raise failure(errno.EROFS)
        return found

    def _walked(self, process: Process, names: list[bytes], path: bytes, flags: int) -> FoundFile:
        """As ``open``, from the directory ``names`` on, by components."""
        if names and path[:1] != b"/":  # what leads above its start, and nowhere special, is the kernel's to resolve
            full = b"/".join((*names, path))
            try:
                return self._uncovered(syscalls.openat2(self.root.fd, full, flags, resolve=syscalls.IN_ROOT), flags)
            except OSError as error:
                if error.errno not in _UNDECIDED:
                    raise
        found = self._walk(process, names, path, follow=not flags & os.O_NOFOLLOW)
        if found.fd < 0:
            raise failure(errno.ENOENT)
        if flags & os.O_PATH and not flags & os.O_DIRECTORY:
            return found
        try:
            status = os.fstat(found.fd)
            if stat.S_ISLNK(status.st_mode):
                raise failure(errno.ELOOP)
            if (flags & os.O_DIRECTORY or path.endswith(b"/")) and not stat.S_ISDIR(status.st_mode):
                raise failure(errno.ENOTDIR)
            writing = flags & os.O_ACCMODE != os.O_RDONLY
            if writing and found.readonly:
                raise failure(errno.EROFS)
            if writing and status.st_dev == self._proc.device and not self._proc.writable(found.fd):
                raise failure(errno.EACCES)
            fd = os.open(b"/proc/self/fd/%d" % found.fd, flags & ~os.O_NOFOLLOW | os.O_CLOEXEC)
            return FoundFile(fd, readonly=found.readonly)
        finally:
            os.close(found.fd)

    def parent(self, process: Process, base: int, path: bytes) -> tuple[FoundFile, bytes]:
        """Return the directory that ``path`` is in, and its name there. Raises OSError."""
        if not path:
            raise failure(errno.ENOENT)
        above, slash, name = path.rstrip(b"/").rpartition(b"/")
        if not name:
            raise failure(errno.EEXIST)
        if len(name) > 255:
            raise failure(errno.ENAMETOOLONG)
        if not above and not slash and base & _WORD == AT_FDCWD:
            cwd = process.fs.cwd
            return FoundFile(os.dup(cwd.fd), readonly=cwd.readonly), name
        return self.open(process, base, above or slash or b".", _PATH | os.O_DIRECTORY), name

    def place(self, process: Process, base: int, path: bytes) -> tuple[FoundFile, bytes]:
        """As ``parent``, after following a link at ``path`` that leads to what does not exist."""
        start: list[bytes] = []
        if path[:1] != b"/":
            fd = process.fs.cwd.fd if base & _WORD == AT_FDCWD else self.descriptor(process, base)
            try:
                above = self.path_of(fd)
            finally:
                if fd != process.fs.cwd.fd:
                    os.close(fd)
            if above is None:
                raise failure(errno.ENOENT)
            start = [each for each in above.split(b"/") if each]
        walk = PathWalk(path, start)
        found = self._walk_on(process, walk, follow=True)
        if found.fd >= 0:
            os.close(found.fd)
        *names, name = walk.names or [b""]
        if not name:
            raise failure(errno.EEXIST)
        return self._at(tuple(names)), name

    def link_text(self, process: Process, fd: int) -> bytes:
        """Return the text of the link that is open as ``fd`` in this process. Raises OSError (EINVAL) for no link."""
        status = os.fstat(fd)
        if not stat.S_ISLNK(status.st_mode):
            raise failure(errno.EINVAL)
        if status.st_dev != self._proc.device:
            return os.readlink(b"", dir_fd=fd)
        host = os.readlink(b"/proc/self/fd/%d" % fd)
        text = self._proc.text(process, tuple(host.split(b"/")[2:]))
        if text is not None:
            return text
        target = self._proc.followed(process, tuple(host.split(b"/")[2:]))
        if target is None:
            return os.readlink(host)
        try:
            text = os.readlink(b"/proc/self/fd/%d" % target)
        finally:
            os.close(target)
        return self.shown(text) or (b"/" if text[:1] == b"/" else text)

    # -- by components -------------------------------------------------------------------------------------------------

    def _walk(self, process: Process, names: list[bytes], path: bytes, *, follow: bool) -> FoundFile:
        return self._walk_on(process, PathWalk(path, names), follow=follow)

    def _walk_on(self, process: Process, walk: PathWalk, *, follow: bool) -> FoundFile:
        """Follow ``walk`` to its end: an O_PATH descriptor, or -1 if only the last component is missing."""
        links = 0
        found: FoundFile | None = None
        reached: tuple[bytes, ...] = ()
        try:
            while (name := walk.next()) is not None:
                if found is not None:
                    os.close(found.fd)
                    found = None
                names = (*walk.names, name)
                part = self._proc_part(names)
                try:
                    if part is not None and (follow or not walk.last):
                        target = self._proc.followed(process, part)
                        if target is not None:
                            if walk.last:
                                status = os.fstat(target)
                                return FoundFile(target, readonly=self.is_readonly(target, status), status=status)
                            walk.names[:] = self._names_of(target)
                            continue
                    found = self._at(names)
                except FileNotFoundError:
                    if not walk.last:
                        raise
                    walk.enter(name)
                    return FoundFile(-1, readonly=False)
                mode = found.status.st_mode
                if stat.S_ISLNK(mode) and (follow or not walk.last):
                    links += 1
                    if links > _LINKS:
                        raise failure(errno.ELOOP)
                    text = self._proc.text(process, part) if part is not None else None
                    walk.follow(os.readlink(b"", dir_fd=found.fd) if text is None else text)
                    continue
                if not walk.last and not stat.S_ISDIR(mode):
                    raise failure(errno.ENOTDIR)
                walk.enter(name)
                reached = names
            if found is not None and reached == tuple(walk.names):
                done, found = found, None
                return done
            return self._at(tuple(walk.names))  # ".." has left what was found
        finally:
            if found is not None:
                os.close(found.fd)

    def _names_of(self, fd: int) -> list[bytes]:
        """Return the components of the step's path of ``fd``, and close it."""
        try:
            path = self.path_of(fd)
        finally:
            os.close(fd)
        if path is None:
            raise failure(errno.EACCES)
        return [each for each in path.split(b"/") if each]

    def _proc_part(self, names: tuple[bytes, ...]) -> tuple[bytes, ...] | None:
        """Return the path in /proc of ``names``; None elsewhere."""
        return names[1:] if names[0] == b"proc" and len(names) > 1 else None

    def _at(self, names: tuple[bytes, ...]) -> FoundFile:
        """Return an O_PATH descriptor of ``names``, none of which is a link but perhaps the last. Raises OSError."""
        part = self._proc_part(names) if names else None
        if part is not None:
            return FoundFile(self._proc.find(part), readonly=False)
        if names == (b"proc",):
            self._proc.list()
        path = b"/".join(names)
        mount, rest = self.root, path
        for count in range(len(names), 0, -1):
            target = b"/".join(names[:count])
            if target in self._mounts:
                mount, rest = self._mounts[target], b"/".join(names[count:])
                break
        if not rest:
            return FoundFile(os.dup(mount.fd), readonly=mount.readonly)
        flags = _PATH | os.O_NOFOLLOW
        fd = syscalls.openat2(mount.fd, rest, flags, resolve=syscalls.CONFINED)
        return FoundFile(fd, readonly=mount.readonly)
