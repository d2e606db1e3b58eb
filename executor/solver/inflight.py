"""Blobs that are being fetched into the store, from sources that verify them: a registry client, a layout."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, Self

from executor.image.manifest import Descriptor
from executor.store import blobs, faults
from executor.store.store import Store
from platforms.descriptors import write_all

if TYPE_CHECKING:
    from executor.registry.transfer import BlobWriter


class InFlightBlob:
    """A blob that one thread fetches and others read at the same time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._fd = -1
        self._size = 0
        self._awaited = 0
        self._over = False
        self._void = False

    def follow(self) -> BlobReader | None:
        """Return a reader once there are bytes; None if the blob is not fetched after all."""
        with self._changed:
            self._changed.wait_for(lambda: self._size or self._over)
            return None if self._over else BlobReader(self, os.dup(self._fd))

    def wait_for(self, size: int) -> int:
        """Wait until there are ``size`` bytes, or the end; return the number of bytes there are. Raises
        ``RetryRead``."""
        with self._changed:
            self._awaited = size
            self._changed.wait_for(lambda: self._size >= size or self._over or self._void)
            if self._void:
                raise RetryRead
            return self._size

    @property
    def void(self) -> bool:
        """Whether bytes that were there at some time were wrong and have been dropped."""
        return self._void

    def begin(self, fd: int) -> None:
        """The bytes are written to the file ``fd``."""
        self._fd = os.dup(fd)

    def grow(self, size: int) -> None:
        """``size`` more bytes are in the file."""
        with self._changed:
            self._size += size
            if self._size >= self._awaited:
                self._changed.notify_all()

    def reset(self) -> None:
        """All bytes so far were wrong."""
        with self._changed:
            self._void = self._void or self._size > 0
            self._size = 0
            self._changed.notify_all()

    def end(self) -> None:
        """There will be no more bytes: the blob is complete, or could not be fetched."""
        with self._changed:
            self._over = True
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            self._changed.notify_all()


class RetryRead(Exception):
    """Bytes that were read from a blob in flight were wrong: read it again when it is complete."""


class BlobReader:
    """A stream of a blob in flight. The last bytes may be read before they are verified.

    A context manager.
    """

    def __init__(self, inflight: InFlightBlob, fd: int) -> None:
        self._inflight = inflight
        self._fd = fd
        self._at = 0

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; b"" at the end of the fetch, whether it succeeded or not. Raises
        ``RetryRead``."""
        there = self._inflight.wait_for(self._at + size)
        data = os.pread(self._fd, min(size, there - self._at), self._at)
        self._at += len(data)
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def fetch_blob(
    store: Store,
    descriptor: Descriptor,
    fetch: Callable[[Descriptor, BlobWriter], None],
    inflight: InFlightBlob | None = None,
) -> None:
    """Ingest the blob of ``descriptor``, which ``fetch`` writes, into the store. ``inflight`` follows every byte and
    the end.

    The bytes are hashed once, by ``fetch``, which can ask for wrong ones again. They are right when it returns.
    """
    inflight = inflight or InFlightBlob()
    path = store.session.temporary()
    try:
        with open(path, "xb+", buffering=0) as file:
            os.fchmod(file.fileno(), 0o600)
            inflight.begin(file.fileno())
            fetch(descriptor, _FileWriter(store, file, inflight))
        blobs.adopt(store, path, descriptor.digest, descriptor.size)
    finally:
        inflight.end()
        if os.path.exists(path):
            os.unlink(path)


class _FileWriter:
    """Writes a download to a file of the store."""

    def __init__(self, store: Store, file: BinaryIO, inflight: InFlightBlob) -> None:
        self._root = store.root
        self._file = file
        self._inflight = inflight

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        with faults.translated(self._root, "cannot write a blob"):
            write_all(self._file.fileno(), data)
        self._inflight.grow(len(data))

    def reset(self) -> None:
        """Start again at 0."""
        self._inflight.reset()
        with faults.translated(self._root, "cannot write a blob"):
            self._file.seek(0)
            self._file.truncate()
