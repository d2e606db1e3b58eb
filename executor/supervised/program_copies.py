"""Starting a step's programs where the kernel looks up paths in the executor's files: from copies.

The kernel starts what execve(2) names, and the loader that the program's header names, in the root directory of the
caller, which is the executor's. So a program is copied to a directory that the step cannot reach, and the copy's header
(PT_INTERP) names a copy of the loader that the step's root has. The name in the program's memory stays, with which its
loader compares. A copy is kept until the root is removed; a changed program gets another, and so does one with
another loader. What anybody has open for writing is not executed (ETXTBSY), as by the kernel: it could be changed
without any sign while it is mapped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from executor.supervised import permissions, programs
from executor.supervised.file_view import AT_FDCWD, failure
from executor.supervised.tracer import Arguments, Caller, Change
from platforms import elf, syscalls
from platforms.host import host
from platforms.paths import below

if TYPE_CHECKING:
    from executor.supervised.file_metadata import MetadataTable
    from executor.supervised.file_view import FileView
    from executor.supervised.processes import Credentials, Process, Processes

_PATH_MAX: Final = 4096
_WORD: Final = 0xFFFFFFFF
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_PT_INTERP: Final = 3
_CHUNK: Final = 1 << 24
_TICK: Final = 50_000_000
"""Nanoseconds within which two changes of a file can have the same time (several ticks of any kernel's clock)."""
_NAME: Final = b"program"
_NATIVE: Final = {"amd64": ("amd64", "386"), "arm64": ("arm64", "arm")}
"""The architectures whose programs a kernel may run."""


class ProgramCopies:
    """The copies in ``place``, a directory that no step can reach. The rule for execve(2) and execveat(2).

    ``emulator``: the path of a program of this host for those of ``architecture``; "" for none.
    """

    def __init__(
        self, view: FileView, table: MetadataTable, processes: Processes, place: str, emulator: tuple[str, str]
    ) -> None:
        self._view = view
        self._table = table
        self._processes = processes
        self._place = place
        self._emulated, self._emulator = emulator[0], os.fsencode(emulator[1])
        self._count = 0

    def __call__(self, caller: Caller) -> Change:
        """Return the call that starts the program. Raises OSError as execve(2) does."""
        process = self._processes.threads[caller.pid]
        base, flags, arguments = AT_FDCWD, 0, caller.arguments
        if caller.call == "execveat":
            base, flags, arguments = arguments[0] & _WORD, arguments[4] & _WORD, arguments[1:]
        path_at, argv_at, envp = arguments[:3]
        path = caller.memory.string(path_at, _PATH_MAX)
        if not path and not flags & syscalls.AT_EMPTY_PATH:
            raise failure(errno.ENOENT)
        named = base == AT_FDCWD or path[:1] == b"/"
        shown = path if named else b"/".join((b"/dev/fd/%d" % base, *([path] if path else [])))
        opener = _Opener(self._view, self._table, process, base, flags)
        found = programs.find(path, shown, opener)
        try:
            program = self._view.path_of(found.file) or found.path
            name = os.path.basename(shown if found.front is None else path) or _NAME
            architecture = elf.architecture(found.head)
            if architecture in _NATIVE.get(host().architecture, (host().architecture,)):
                emulator: tuple[bytes, ...] = ()
                started = self._copied(process, found.file, name)
            elif architecture is not None and architecture == self._emulated and self._emulator:
                emulator = (self._emulator, b"-0")
                started = self._emulator
            else:
                raise failure(errno.ENOEXEC)
        finally:
            os.close(found.file)
        process.starting = (program, opener.credentials())
        first = caller.memory.word(argv_at) if argv_at else 0
        rest = argv_at + caller.memory.pointer if first else 0
        if emulator:
            argv0, *others = found.front or (first or b"",)
            return Change("execve", (started + b"\0", Arguments((*emulator, argv0, program, *others), rest), envp))
        if found.front is None:
            return Change("execve", (started + b"\0", argv_at, envp))
        return Change("execve", (started + b"\0", Arguments(found.front, rest), envp))

    def _copied(self, process: Process, file: int, name: bytes) -> bytes:
        """Return the path of a copy of the program ``file`` that is called ``name``. Raises OSError."""
        status = os.fstat(file)
        version = f"{status.st_ino:x}-{status.st_ctime_ns:x}-{status.st_size:x}"
        part = _interpreter(file)
        loader = b"" if part is None else self._loader(process, part[1])
        if part is not None:
            version += f"-{os.path.basename(os.path.dirname(os.fsdecode(loader)))}"
        if abs(time.time_ns() - status.st_ctime_ns) < _TICK:  # it may be changed once more without a sign
            self._count += 1
            version += f"-{os.getpid():x}-{self._count:x}"
        directory = below(self._place, version)
        path = os.fsencode(below(directory, os.fsdecode(name)))
        if os.path.lexists(path):
            return path
        first = os.fsencode(below(directory, os.fsdecode(_NAME)))
        if not os.path.lexists(first):
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, 0o755)
            draft = below(directory, ".draft")
            out = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o700)
            try:
                _copy(file, out, status.st_size)
                if part is not None:
                    part[0].name(out, status.st_size, loader)
                os.fchmod(out, 0o555)
            except OSError:
                os.unlink(draft)
                raise
            finally:
                os.close(out)
            os.rename(draft, first)
        if path != first:
            with contextlib.suppress(FileExistsError):
                os.link(first, path)
        return path

    def _loader(self, process: Process, path: bytes) -> bytes:
        """Return the path of a copy of the loader that the step has at ``path``. Raises OSError."""
        found = self._view.open(process, AT_FDCWD, path, _READ)
        try:
            if not stat.S_ISREG(os.fstat(found.fd).st_mode):
                raise failure(errno.EACCES)
            _check_unwritten(found.fd)
            return self._copied(process, found.fd, _NAME)
        finally:
            os.close(found.fd)


class _Opener:
    """Opens what ``process`` executes, and then the interpreters of scripts."""

    def __init__(self, view: FileView, table: MetadataTable, process: Process, base: int, flags: int) -> None:
        self.view = view
        self.table = table
        self.process = process
        self.base = base
        self.flags = flags
        self.last: os.stat_result | None = None

    def __call__(self, path: bytes) -> int:
        """Return a descriptor for reading of the regular file at ``path``, if the caller may execute it. Raises
        OSError."""
        if path:
            follow = os.O_NOFOLLOW if self.flags & syscalls.AT_SYMLINK_NOFOLLOW else 0
            if self.executable_of(path):
                path = self.process.program
            file = self.view.open(self.process, self.base, path, _READ | follow).fd
        else:
            place = self.view.descriptor(self.process, self.base)
            try:
                file = os.open(b"/proc/self/fd/%d" % place, _READ)
            finally:
                os.close(place)
        self.base, self.flags = AT_FDCWD, 0
        try:
            self.last = os.fstat(file)
            if not stat.S_ISREG(self.last.st_mode) or self.table.of(self.last).device is not None:
                raise failure(errno.EACCES)
            permissions.check(self.process.credentials, self.table.told(self.last), permissions.EXECUTE)
            _check_unwritten(file)
        except OSError:
            os.close(file)
            raise
        return file

    def executable_of(self, path: bytes) -> bool:
        """Whether ``path`` is the link of /proc to the program that the caller executes."""
        return path in (b"/proc/self/exe", b"/proc/thread-self/exe", b"/proc/%d/exe" % self.process.leader)

    def credentials(self) -> Credentials:
        """Return the caller's credentials after it has executed the last file (credentials(7), execve(2))."""
        old = self.process.credentials
        uids, gids = old.uids, old.gids
        assert self.last is not None
        told = self.table.told(self.last)
        if told.mode & stat.S_ISUID:
            uids = (uids[0], told.uid, told.uid, told.uid)
        if told.mode & stat.S_ISGID and told.mode & stat.S_IXGRP:
            gids = (gids[0], told.gid, told.gid, told.gid)
        return replace(old, uids=(uids[0], uids[1], uids[1], uids[1]), gids=(gids[0], gids[1], gids[1], gids[1]))


class _HeaderPlace:
    """Where a program's header says where the name of its loader is."""

    def __init__(self, order: str, wide: bool, header: int) -> None:
        self.order = order
        self.wide = wide
        self.header = header

    def name(self, file: int, size: int, loader: bytes) -> None:
        """Append the name ``loader`` to the program ``file`` of ``size`` bytes, and let its header say so."""
        os.pwrite(file, loader + b"\0", size)
        if self.wide:
            os.pwrite(file, struct.pack(f"{self.order}Q", size), self.header + 8)
            os.pwrite(file, struct.pack(f"{self.order}Q", len(loader) + 1), self.header + 32)
        else:
            os.pwrite(file, struct.pack(f"{self.order}I", size), self.header + 4)
            os.pwrite(file, struct.pack(f"{self.order}I", len(loader) + 1), self.header + 16)


def _interpreter(file: int) -> tuple[_HeaderPlace, bytes] | None:
    """Return the name of the loader that the program ``file`` asks for, and where its header says so; None if it does
    not. Raises OSError (ENOEXEC) for a header that makes no sense."""
    head = os.pread(file, elf.HEADER, 0)
    order, wide = "<" if head[5:6] == b"\x01" else ">", head[4:5] == b"\x02"
    try:
        if wide:
            (start,) = struct.unpack_from(f"{order}Q", head, 32)
            size, count = struct.unpack_from(f"{order}HH", head, 54)
        else:
            (start,) = struct.unpack_from(f"{order}I", head, 28)
            size, count = struct.unpack_from(f"{order}HH", head, 42)
        table = os.pread(file, size * count, start)
        for index in range(count):
            if struct.unpack_from(f"{order}I", table, index * size)[0] != _PT_INTERP:
                continue
            if wide:
                (offset,), (length,) = (struct.unpack_from(f"{order}Q", table, index * size + at) for at in (8, 32))
            else:
                (offset,), (length,) = (struct.unpack_from(f"{order}I", table, index * size + at) for at in (4, 16))
            text = os.pread(file, min(length, _PATH_MAX), offset)
            if not text.endswith(b"\0") or len(text) < 2:
                raise failure(errno.ENOEXEC)
            return _HeaderPlace(order, wide, start + index * size), text[:-1]
    except (struct.error, OverflowError):
        raise failure(errno.ENOEXEC) from None
    return None


def _check_unwritten(file: int) -> None:
    """Check that nobody has ``file``, open for reading, open for writing. Raises OSError (ETXTBSY).

    Where nobody has, a read lease can be taken (F_SETLEASE, fcntl(2)); file systems without leases tell nothing.
    """
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        raise failure(errno.ETXTBSY) from None
    except OSError:
        return
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _copy(source: int, target: int, size: int) -> None:
    """Copy ``size`` bytes, but no holes."""
    if syscalls.share_content(source, target):
        return
    os.ftruncate(target, size)
    done = 0
    while done < size:
        try:
            done = os.lseek(source, done, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # the rest is a hole
                return
            raise
        end = os.lseek(source, done, os.SEEK_HOLE)
        os.lseek(target, done, os.SEEK_SET)
        while done < end:
            count = os.sendfile(target, source, done, min(_CHUNK, end - done))
            if not count:
                raise failure(errno.EIO)
            done += count
