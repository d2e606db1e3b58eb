"""Writing output files atomically, without following a link at their path.

A new file is written beside the old one and renamed. A link at the path is replaced, not followed.
"""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from collections.abc import Iterator
from typing import BinaryIO, Final

_STREAMS: Final = ("/dev/stdout", "/dev/stderr", "/dev/null", "/dev/fd/", "/proc/self/fd/")
"""Paths that stand for a descriptor of the command; these links are followed."""


@contextlib.contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """Open a file that gets the name ``path`` at the end of the block, or is removed if it raises. Raises ``OSError``.

    A pipe or a device at ``path`` is written to directly; a pipe must have a reader.
    """
    if is_stream(path):
        # Non-blocking: a FIFO without a reader is an error (ENXIO).
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "wb") as file:
            os.set_blocking(fd, True)
            yield file
        return
    incoming = f"{path}.{uuid.uuid4().hex[:8]}.part"
    try:
        with open(incoming, "xb") as file:
            yield file
        os.replace(incoming, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(incoming)
        raise


def is_stream(path: str) -> bool:
    """Whether ``path`` is written to directly: a pipe, a device, or a path that stands for a descriptor."""
    if path.startswith(_STREAMS):
        return True
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)
