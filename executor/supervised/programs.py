"""What the kernel would start for a path: a program, by way of the ``#!`` lines of scripts.

As in fs/exec.c and fs/binfmt_script.c of Linux: of a script's first line the kernel reads 256 bytes; an interpreter's
path ends at a space or a tab, the rest of the line is one argument; an interpreter may be a script, five in a row.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

import msgspec

HEAD: Final = 4096
"""Bytes of a program that are read: its ELF header and program headers."""

_LINE: Final = 256
"""The kernel's BINPRM_BUF_SIZE."""
_SCRIPTS: Final = 5
_BLANK: Final = b" \t"


class Interpreter(msgspec.Struct, frozen=True):
    """A script's first line."""

    path: bytes
    argument: bytes | None = None


class Program(msgspec.Struct, frozen=True):
    """What a path leads to."""

    path: bytes
    """The program's path: the one that was looked up, or that of the interpreter of the last script."""
    head: bytes
    """The first ``HEAD`` bytes."""
    file: int
    """A descriptor of the program, open for reading, which the caller closes."""
    front: tuple[bytes, ...] | None
    """What takes the place of argv[0] for a script: the interpreter, its argument, the script. None for a program."""


def interpreter(head: bytes) -> Interpreter | None:
    """Return the interpreter that a file names which begins with ``head``; None if it is no script that the kernel
    would start."""
    if head[:2] != b"#!":
        return None
    line = head[:_LINE].ljust(_LINE, b"\0")
    text, newline, _ = line.partition(b"\n")
    if not newline or b"\0" in text:  # the end of the line is not known
        text = line[2:-1]
        start = text.lstrip(_BLANK)
        if not start or not any(each in start for each in b" \t\0"):
            return None
    else:
        text = text[2:]
    text = text.partition(b"\0")[0].strip(_BLANK)
    end = min((place for place in (text.find(b" "), text.find(b"\t")) if place >= 0), default=len(text))
    path, argument = text[:end], text[end:].strip(_BLANK)
    return Interpreter(path, argument or None) if path else None


def find(path: bytes, shown: bytes, opened: Callable[[bytes], int]) -> Program:
    """Return what the kernel would start for ``path``, which a script's interpreter gets as ``shown``.

    ``opened`` returns a descriptor of a regular file that may be executed, open for reading. Raises what it raises,
    ELOOP for too many scripts, and ENOEXEC for an interpreter that is no program.
    """
    front: tuple[bytes, ...] | None = None
    for _ in range(_SCRIPTS + 1):
        file = opened(path)
        try:
            head = os.pread(file, HEAD, 0)
            found = interpreter(head)
        except BaseException:
            os.close(file)
            raise
        if found is None:
            return Program(path, head, file, front)
        os.close(file)
        argument = () if found.argument is None else (found.argument,)
        front = (found.path, *argument, shown, *(front[1:] if front else ()))
        path = shown = found.path
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
