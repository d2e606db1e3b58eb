"""The pipe on which the process of a step reports to the zygote until the program is executed.

The pipe carries frames, each beginning with a 32-bit number in native byte order. A positive number is the length of a
packed ``StartReport`` that follows; of several the last counts. A negative one is the negated errno of the starter's
execve (``executor.sandbox.starter``): then, and only then, the program was not started.
"""

from __future__ import annotations

import errno
import fcntl
import marshal
import os
import struct
from typing import Final

import msgspec

from executor.sandbox import targets
from platforms.descriptors import write_all

FD: Final = 3
"""The number of the writing end when the starter takes over; the starter marks it close-on-exec."""

NOT_SET_UP: Final = 125
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
"""The exit codes of steps that could not be started, as in ``docker run``."""

_NUMBER: Final = struct.Struct("=i")
_WHY: Final = 4096
"""Maximum length of a reason in characters: it may contain text of a Dockerfile, and the pipe is not read meanwhile."""
_ROOM: Final = 32 << 10
_MORE: Final = 1 << 20
"""Bytes: the default capacity of a pipe is twice ``_ROOM``, and can be increased to twice this."""


class StartReport(msgspec.Struct, frozen=True):
    """How far the process of a step has got. ``code`` and ``error``, or ``unfit``, say why the step was not started."""

    code: int = 0
    error: str = ""
    unfit: str = ""
    """Why the host does not allow it."""
    made: tuple[targets.Made, ...] = ()
    touched: tuple[targets.Touched, ...] = ()
    program: str = ""
    """The program that is executed next."""
    shared: str = ""
    """Why it has the host's network although isolation was requested."""


class StartReporter:
    """The writing end, in the step's process."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._made: tuple[targets.Made, ...] = ()
        self._touched: tuple[targets.Touched, ...] = ()
        self._shared = ""

    def mounted(self, root: targets.Root, shared: str) -> None:
        """Record that the mounts were made, or one failed; ``shared`` is the result of ``Network.join``."""
        self._shared = shared
        self._made, self._touched = tuple(root.made), tuple(root.touched.values())

    def refused(self, code: int, why: str) -> None:
        """Report that the step cannot be started because of the step or its image."""
        self._send(StartReport(code, why[:_WHY], "", self._made, self._touched, shared=self._shared))

    def unfit(self, why: str) -> None:
        """Report that the step cannot be started because the host does not allow it."""
        self._send(StartReport(0, "", why[:_WHY], self._made, self._touched, shared=self._shared))

    def executing(self, program: str) -> None:
        """Report that the starter is about to execute ``program``. Afterwards the pipe is FD and survives an execve."""
        self._send(StartReport(made=self._made, touched=self._touched, program=program, shared=self._shared))
        if self.fd != FD:
            os.dup2(self.fd, FD)
            os.close(self.fd)
            self.fd = FD
        os.set_inheritable(FD, True)

    def _send(self, told: StartReport) -> None:
        data = marshal.dumps(tuple(getattr(told, name) for name in told.__struct_fields__))
        if len(data) > _ROOM:
            fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, _MORE)
        write_all(self.fd, _NUMBER.pack(len(data)) + data)


def read(fd: int) -> StartReport:
    """Return what was reported on the pipe, whose writing end is closed. Closes ``fd``."""
    with open(fd, "rb") as pipe:
        data = pipe.read()
    told, place = StartReport(), 0
    while place + _NUMBER.size <= len(data):
        (number,) = _NUMBER.unpack_from(data, place)
        place += _NUMBER.size
        if number < 0:
            return msgspec.structs.replace(told, **_failure(told.program, -number))
        told = StartReport(*marshal.loads(data[place : place + number]))
        place += number
    return told


def error_text(number: int) -> str:
    """Return the text of an errno, to follow a colon."""
    return os.strerror(number).lower()


def _failure(program: str, number: int) -> dict[str, int | str]:
    code = NOT_FOUND if number == errno.ENOENT else NOT_EXECUTABLE
    return {"code": code, "error": f"exec {program}: {error_text(number)}"}
