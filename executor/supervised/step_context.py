"""What the handlers of a step's system calls share."""

from __future__ import annotations

import errno
import functools
import os
import signal
import stat
from typing import TYPE_CHECKING, Final

from executor.supervised.file_view import FileView, FoundFile
from executor.supervised.terminals import Terminals
from platforms import syscalls

if TYPE_CHECKING:
    from executor.sandbox.listener import Listener, SystemCall
    from executor.supervised.file_metadata import MetadataTable
    from executor.supervised.processes import Process, Processes

PTS: Final = "pts"
"""The directory in ``Answers.place`` that a step sees as /dev/pts."""
_INTERVAL: Final = 0.25
"""Seconds after which a process that waits for the other end of a pipe looks whether its caller is still there."""
_STAND_INS: Final = 256
"""Maximum number of files that stand for links, pipes and sockets."""


class StepContext:
    """One step.

    ``place``: a directory for files that stand for others, on the file system of the step's root.
    """

    def __init__(
        self, listener: Listener, view: FileView, table: MetadataTable, processes: Processes, place: str
    ) -> None:
        self.listener = listener
        self.view = view
        self.table = table
        self.processes = processes
        self.devices: set[tuple[int, int]] = set()
        """The files that stand for devices of this host, by device and inode number. No other can be opened."""
        self.hostname = ""
        self._place = place
        self._device = os.fstat(view.root.fd).st_dev
        self._stood_for: dict[tuple[int, int], tuple[int, int]] = {}
        """By device and inode number of a file that stands for another: what it stands for, and the file itself, which
        is kept open lest a new file have its number."""

    @functools.cached_property
    def terminals(self) -> Terminals:
        """The step's terminals."""
        return Terminals(f"{self._place}/{PTS}", self.table, self.devices)

    def is_own_file(self, status: os.stat_result) -> bool:
        """Whether the file with ``status`` is one that the step may have changed: not a pipe, nor one of /proc."""
        return status.st_dev == self._device

    def link_text(self, call: SystemCall, process: Process, base: int, path: bytes) -> bytes:
        """Return the text of a link. Raises OSError."""
        del call
        if path:
            found = self.view.find(process, base, path, follow=False)
        else:
            found = self.stood_for(self.view.descriptor(process, base))
        try:
            return self.view.link_text(process, found.fd)
        finally:
            os.close(found.fd)

    # -- descriptors in place of O_PATH descriptors --------------------------------------------------------------------

    def stand_in(self, fd: int) -> int:
        """Return a descriptor of a new file that stands for the link, pipe or socket that ``fd`` is."""
        new = os.open(self._place, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        status = os.fstat(new)
        self.table.forget(status)
        self._stood_for[status.st_dev, status.st_ino] = os.dup(fd), os.dup(new)
        if len(self._stood_for) > _STAND_INS:
            for each in self._stood_for.pop(next(iter(self._stood_for))):
                os.close(each)
        return new

    def told_status(self, status: os.stat_result) -> os.stat_result:
        """Return ``status``, or that of the file that the file with it stands for."""
        known = self._stood_for.get((status.st_dev, status.st_ino)) if self._stood_for else None
        return status if known is None else os.fstat(known[0])

    def stood_for(self, fd: int) -> FoundFile:
        """Return ``fd``, or what it stands for."""
        status = os.fstat(fd)
        known = self._stood_for.get((status.st_dev, status.st_ino))
        if known is not None:
            os.close(fd)
            return FoundFile(os.dup(known[0]), readonly=False)
        return FoundFile(fd, readonly=self.view.is_readonly(fd, status), status=status)

    # -- pipes ---------------------------------------------------------------------------------------------------------

    def wait_for_pipe(self, call: SystemCall, fd: int, flags: int) -> None:
        """Open the pipe ``fd`` in a process of its own, which waits until it has another end, and answer ``call``.

        It ends when the caller has been killed: a step has no more of them than threads for long.
        """
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        if syscalls.fork(0):  # it is reaped with the step's processes
            return
        try:
            syscalls.die_with_parent()
            signal.signal(signal.SIGALRM, lambda _number, _frame: self.listener.still(call))
            signal.setitimer(signal.ITIMER_REAL, _INTERVAL, _INTERVAL)
            kept = flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOFOLLOW)
            opened = os.open(b"/proc/self/fd/%d" % fd, kept | os.O_CLOEXEC)
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.listener.add_descriptor(call, opened, flags)
        except OSError as error:
            self.listener.answer(call, error=error.errno or errno.EINVAL)
        finally:
            os._exit(0)
