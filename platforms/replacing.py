"""Files that a command leaves behind: whole or not at all, and never through a link.

What is written goes to a new file beside, which takes the name in the end. So a link at that name is replaced rather
than followed, whatever it leads to.
"""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from collections.abc import Iterator
from typing import BinaryIO, Final

_STREAMS: Final = ("/dev/stdout", "/dev/stderr", "/dev/null", "/dev/fd/", "/proc/self/fd/")
"""What stands for a descriptor of whoever runs the command: links, and meant to be followed."""


@contextlib.contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """A file to write, which takes the name ``path`` when all went well and is gone when not. Raises ``OSError``.

    A pipe or a device at ``path`` is written to as it is; a pipe needs somebody who reads.
    """
    if is_stream(path):
        # Without waiting for a reader: a FIFO that nobody reads is an error (ENXIO).
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
    """Whether ``path`` is written to as it is: a pipe, a device, or a descriptor by one of its usual names."""
    if path.startswith(_STREAMS):
        return True
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)
