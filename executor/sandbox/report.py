"""What the process of a step tells the zygote, over a pipe, on its way to the program.

The pipe carries frames, each beginning with a 32-bit number in the machine's own order. A positive number is the length
of the packed ``Told`` that follows; of several the last counts. A negative one is the errno with which the starter's
execve has failed, negated (``executor.sandbox.starter``): then, and only then, the program was not started.
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
"""The writing end's number when the starter takes over; it marks it close-on-exec."""

NOT_SET_UP: Final = 125
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
"""The exit codes of steps that could not be started, as ``docker run`` has them."""

_NUMBER: Final = struct.Struct("=i")
_WHY: Final = 4096
"""Characters of a reason that are told: it may have any word of a Dockerfile in it, and nobody reads meanwhile."""
_ROOM: Final = 32 << 10
_MORE: Final = 1 << 20
"""Bytes: a pipe has room for twice the first, and can be made to have room for the second."""


class Told(msgspec.Struct, frozen=True):
    """Where a step's process has got to. ``code`` and ``error``, or ``unfit``, say why it could not become the step."""

    code: int = 0
    error: str = ""
    unfit: str = ""
    """Why the host does not allow it."""
    made: tuple[targets.Made, ...] = ()
    touched: tuple[targets.Touched, ...] = ()
    program: str = ""
    """What is executed next."""
    shared: str = ""
    """Why it has the host's network although it was to be isolated."""


class Report:
    """The writing end, in the step's process."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._made: tuple[targets.Made, ...] = ()
        self._touched: tuple[targets.Touched, ...] = ()
        self._shared = ""

    def mounted(self, root: targets.Root, shared: str) -> None:
        """All mounts are made, or one could not be; ``shared`` is what ``Network.join`` said before."""
        self._shared = shared
        self._made, self._touched = tuple(root.made), tuple(root.touched.values())

    def refused(self, code: int, why: str) -> None:
        """The step cannot be started, through its own fault or its image's."""
        self._tell(Told(code, why[:_WHY], "", self._made, self._touched, shared=self._shared))

    def unfit(self, why: str) -> None:
        """The step cannot be started because the host does not allow it."""
        self._tell(Told(0, "", why[:_WHY], self._made, self._touched, shared=self._shared))

    def executing(self, program: str) -> None:
        """The starter is to execute ``program``. From now on the pipe's number is FD, and it outlives an execve."""
        self._tell(Told(made=self._made, touched=self._touched, program=program, shared=self._shared))
        if self.fd != FD:
            os.dup2(self.fd, FD)
            os.close(self.fd)
            self.fd = FD
        os.set_inheritable(FD, True)

    def _tell(self, told: Told) -> None:
        data = marshal.dumps(tuple(getattr(told, name) for name in told.__struct_fields__))
        if len(data) > _ROOM:
            fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, _MORE)
        write_all(self.fd, _NUMBER.pack(len(data)) + data)


def read(fd: int) -> Told:
    """What was told over the pipe, whose other end nobody holds any more. Closes ``fd``."""
    with open(fd, "rb") as pipe:
        data = pipe.read()
    told, place = Told(), 0
    while place + _NUMBER.size <= len(data):
        (number,) = _NUMBER.unpack_from(data, place)
        place += _NUMBER.size
        if number < 0:
            return msgspec.structs.replace(told, **_failure(told.program, -number))
        told = Told(*marshal.loads(data[place : place + number]))
        place += number
    return told


def words(number: int) -> str:
    """An errno as it is said after a colon."""
    return os.strerror(number).lower()


def _failure(program: str, number: int) -> dict[str, int | str]:
    code = NOT_FOUND if number == errno.ENOENT else NOT_EXECUTABLE
    return {"code": code, "error": f"exec {program}: {words(number)}"}
