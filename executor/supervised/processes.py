"""What the supervisor keeps of each thread of a step: its working directory, file mode creation mask and credentials.

The kernel's own are never changed: the real working directory of all processes is an empty directory, and all run as
the user of the executor. Threads and processes inherit from those that make them, as the tracer learns before they
run.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

CLONE_FS: Final = 0x00000200
"""linux/sched.h: the child shares the working directory and the mask."""
DOCKER_CAPABILITIES: Final = 0xA80425FB
"""The capabilities of Docker's default, as a mask (linux/capability.h)."""
CLONE_THREAD: Final = 0x00010000
_KEPT: Final = 256
"""Maximum number of threads whose directory of open files is kept open."""


class Credentials(msgspec.Struct, frozen=True):
    """The ids of a thread (credentials(7)): real, effective, saved, and those for files."""

    uids: tuple[int, int, int, int] = (0, 0, 0, 0)
    gids: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: tuple[int, ...] = ()

    @property
    def privileged(self) -> bool:
        """Whether it has root's capabilities."""
        return self.uids[1] == 0

    @property
    def overrides(self) -> bool:
        """Whether the permissions of files do not matter."""
        return self.uids[3] == 0

    def belongs(self, gid: int) -> bool:
        """Whether it is in the group ``gid``."""
        return gid == self.gids[3] or gid in self.groups


class WorkingDirectory:
    """A directory that is open as long as anything refers to it. ``readonly``: whether it is on a read-only mount."""

    def __init__(self, fd: int, *, readonly: bool) -> None:
        self.fd = fd
        self.device = os.fstat(fd).st_dev
        self.readonly = readonly

    def __del__(self) -> None:
        os.close(self.fd)


class FileSystemState:
    """What threads share that were made with CLONE_FS."""

    __slots__ = ("cwd", "umask")

    def __init__(self, cwd: WorkingDirectory, umask: int) -> None:
        self.cwd = cwd
        self.umask = umask


class OpenFiles:
    """The directory of /proc with the open files of the thread ``number``: ``fd``."""

    kept = 0
    """How many there are of them."""

    def __init__(self, number: int) -> None:
        self.fd = os.open(f"/proc/{number}/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        OpenFiles.kept += 1

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)
            OpenFiles.kept -= 1


class Process:
    """A thread. ``leader``: the number of its process; ``program``: the path of the program that it executes."""

    __slots__ = ("_files", "credentials", "fs", "leader", "number", "program", "starting")

    def __init__(self, number: int, leader: int, fs: FileSystemState, credentials: Credentials, program: bytes) -> None:
        self.number = number
        self._files: OpenFiles | None = None
        self.leader = leader
        self.starting: tuple[bytes, Credentials] | None = None
        """The program and the credentials that it will have if its execve(2) succeeds."""
        self.fs = fs
        self.credentials = credentials
        self.program = program

    def files(self) -> OpenFiles:
        """Return its open files. They are kept for the next call, unless there are many threads. Raises OSError."""
        if self._files is not None:
            return self._files
        files = OpenFiles(self.number)
        if OpenFiles.kept <= _KEPT:
            self._files = files
        return files

    def renumbered(self, number: int) -> None:
        """It is the only thread of the process ``number``, and has that number."""
        self.number = self.leader = number
        self._files = None


class Processes:
    """The threads of a step, by number. None of these is used again before ``ended``, as it is traced until then."""

    def __init__(self) -> None:
        self.threads: dict[int, Process] = {}
        self.first = 0
        """The number of the step's first process."""

    def started(self, parent: int, child: int, flags: int) -> None:
        """``parent`` has made ``child``, with the ``flags`` of clone(2)."""
        old = self.threads[parent]
        fs = old.fs if flags & CLONE_FS else FileSystemState(old.fs.cwd, old.fs.umask)
        leader = old.leader if flags & CLONE_THREAD else child
        self.threads[child] = Process(child, leader, fs, old.credentials, old.program)

    def executed(self, number: int, former: int) -> None:
        """The thread ``former`` executes another program, and is the only one of its process ``number``."""
        thread = self.threads.pop(former, None)
        if thread is not None:
            thread.renumbered(number)
            if thread.starting is not None:
                thread.program, thread.credentials = thread.starting
            thread.fs = FileSystemState(thread.fs.cwd, thread.fs.umask)
            self.threads[number] = thread

    def ended(self, number: int) -> None:
        """The thread is gone."""
        self.threads.pop(number, None)

    def leaders(self) -> list[int]:
        """Return the numbers of all processes."""
        return sorted({each.leader for each in self.threads.values()})
