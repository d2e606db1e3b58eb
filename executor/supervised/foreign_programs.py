"""Starting the programs of another architecture by an emulator, where the kernel has no handler for them.

The rule of a ``tracer`` for execve(2) and execveat(2). It does what binfmt_misc does with the flags P and F: the
emulator gets ``-0``, the program's argv[0], its path and its further arguments. Everything else is left to the kernel,
with all errors: a file that is no program of the architecture, that its caller may not execute, or that is not there.
As with a handler, an unnamed program in a descriptor that is closed by execve(2) cannot be started (ENOENT).

Paths are resolved by this process, in the root directory of the caller, with the caller's user, groups and working
directory, and never through the links of /proc. Of the file only the first bytes are read. This process must have the
step's root directory for its own, no other tree, and CAP_SYS_CHROOT; where it cannot take the identity of a caller, the
caller has its.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from typing import Final

from executor.supervised import programs
from executor.supervised.tracer import Arguments, Caller, Change, acting_as, file_identity
from platforms import elf, syscalls

_PATH_MAX: Final = 4096
_WORD: Final = (1 << 32) - 1
_AT_FDCWD: Final = syscalls.AT_FDCWD & _WORD
_KNOWN_FLAGS: Final = syscalls.AT_EMPTY_PATH | syscalls.AT_SYMLINK_NOFOLLOW
_OPEN_PATH: Final = os.O_PATH | os.O_CLOEXEC
_DESCRIPTOR: Final = re.compile(rb"/(?:proc/self|proc/thread-self|dev)/fd/([0-9]{1,9})")


class ForeignPrograms:
    """The rule. ``emulator``: its path in the step's root, at a place that no image has and no step can change.

    ``proc``: a descriptor of a /proc that shows the step's processes and this one, itself below no root of a step.
    """

    def __init__(self, architecture: str, emulator: str, proc: int) -> None:
        self.architecture = architecture
        self.emulator = os.fsencode(emulator)
        self.proc = proc
        self.root = os.open("/", _OPEN_PATH | os.O_DIRECTORY)
        found = os.fstat(self.root)
        self.root_identity = (found.st_dev, found.st_ino)

    def __call__(self, caller: Caller) -> Change | None:
        """Return the call that starts the emulator; None for other programs, and where the kernel reports an error."""
        base, flags, arguments = _AT_FDCWD, 0, caller.arguments
        if caller.call == "execveat":
            base, flags, arguments = arguments[0] & _WORD, arguments[4] & _WORD, arguments[1:]
        path_at, argv_at, envp = arguments[:3]
        try:
            path = caller.memory.string(path_at, _PATH_MAX)
            if path == self.emulator or flags & ~_KNOWN_FLAGS or not (path or flags & syscalls.AT_EMPTY_PATH):
                return None
            named = base == _AT_FDCWD or path.startswith(b"/")
            shown = path if named else b"/".join((b"/dev/fd/%d" % base, *([path] if path else [])))
            with acting_as(file_identity(self.proc, caller.directory)), self._within_root_of(caller) as same:
                found = programs.find(path, shown, _Opener(self.proc, caller, base, flags))
                os.close(found.file)
                described = None if named else base
                if match := _DESCRIPTOR.fullmatch(path):
                    described = int(match[1])
                gone = described is not None and self._closes(caller, described)
        except OSError:
            return None
        if elf.architecture(found.head) != self.architecture or not same:
            return None
        if gone:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        first = caller.memory.word(argv_at) if argv_at else 0
        rest = argv_at + caller.memory.pointer if first else 0
        name, *others = found.front or (first or b"",)
        program = shown if found.front is None else found.path
        if program.startswith(b"-"):  # it would be an option of the emulator
            program = b"./" + program
        front = (self.emulator, b"-0", name, program, *others)
        return Change("execve", (self.emulator + b"\0", Arguments(front, rest), envp))

    @contextlib.contextmanager
    def _within_root_of(self, caller: Caller) -> Iterator[bool]:
        """Have the caller's root directory for the length of the block; yields whether it is the step's."""
        place = f"{caller.directory}/root"
        found = os.stat(place, dir_fd=self.proc)
        if (found.st_dev, found.st_ino) == self.root_identity:
            yield True
            return
        other = os.open(place, _OPEN_PATH | os.O_DIRECTORY, dir_fd=self.proc)
        try:
            os.fchdir(other)
            os.chroot(".")
            yield False
        finally:
            os.close(other)
            os.fchdir(self.root)
            os.chroot(".")

    def _closes(self, caller: Caller, number: int) -> bool:
        """Whether the caller's descriptor is closed by execve(2)."""
        file = os.open(f"{caller.directory}/fdinfo/{number}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)
        with open(file, "rb") as lines:
            flags = next(int(line.split()[1], 8) for line in lines if line.startswith(b"flags:"))
        return bool(flags & os.O_CLOEXEC)


class _Opener:
    """Opens what a call of ``caller`` executes, and then the interpreters of scripts."""

    def __init__(self, proc: int, caller: Caller, base: int, flags: int) -> None:
        self.proc = proc
        self.caller = caller
        self.base = base
        self.flags = flags

    def __call__(self, path: bytes) -> int:
        """Return a descriptor for reading of the regular file at ``path``, if the caller may execute it. Raises
        OSError."""
        file = self._find(path)
        self.base, self.flags = _AT_FDCWD, 0
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode) or os.fstatvfs(file).f_flag & os.ST_NOEXEC:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            own = f"self/fd/{file}"
            if not os.access(own, os.X_OK, dir_fd=self.proc, effective_ids=True):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            # Without waiting for the end of a lease that the step has taken (fcntl(2), F_SETLEASE).
            return os.open(own, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.proc)
        finally:
            os.close(file)

    def _find(self, path: bytes) -> int:
        """Return a descriptor of what is at ``path``, a name only."""
        directory = self.caller.directory
        if not path:
            return os.open(f"{directory}/fd/{self.base}", _OPEN_PATH, dir_fd=self.proc)
        if match := _DESCRIPTOR.fullmatch(path):
            return os.open(f"{directory}/fd/{int(match[1])}", _OPEN_PATH, dir_fd=self.proc)
        start = f"{directory}/cwd" if self.base == _AT_FDCWD else f"{directory}/fd/{self.base}"
        place = os.open(start, _OPEN_PATH | os.O_DIRECTORY, dir_fd=self.proc)
        try:
            follow = os.O_NOFOLLOW if self.flags & syscalls.AT_SYMLINK_NOFOLLOW else 0
            resolve = syscalls.RESOLVE_NO_MAGICLINKS
            return syscalls.openat2(place, os.fsdecode(path), _OPEN_PATH | follow, resolve=resolve)
        finally:
            os.close(place)
