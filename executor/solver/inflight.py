"""Blobs on their way into the store, from those who verify what they hand over: a registry's client, a layout."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, Self

from executor.image.manifest import Descriptor
from executor.store import blobs, faults
from executor.store.store import Store

if TYPE_CHECKING:
    from executor.registry.transfer import Sink


class InFlightBlob:
    """The coming of one blob, for who wants to read it meanwhile. One thread brings it, another ``follow``s."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._fd = -1
        self._size = 0
        self._awaited = 0
        self._over = False
        self._void = False

    def follow(self) -> BlobReader | None:
        """The blob as a stream, from when its first bytes are here; None when nobody downloads it after all."""
        with self._changed:
            self._changed.wait_for(lambda: self._size or self._over)
            return None if self._over else BlobReader(self, os.dup(self._fd))

    def wait_for(self, size: int) -> int:
        """How many bytes are here, once there are ``size`` or no more will come. Raises ``RetryRead``."""
        with self._changed:
            self._awaited = size
            self._changed.wait_for(lambda: self._size >= size or self._over or self._void)
            if self._void:
                raise RetryRead
            return self._size

    @property
    def void(self) -> bool:
        """Whether what was here at some time was wrong, and thrown away."""
        return self._void

    def begin(self, fd: int) -> None:
        """Bytes will be written to the file ``fd``."""
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
        """No more bytes will come: the blob is whole, or is not to be had."""
        with self._changed:
            self._over = True
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            self._changed.notify_all()


class RetryRead(Exception):
    """What was read of an arriving blob was wrong: begin again when all of it is here."""


class BlobReader:
    """A blob that is being downloaded, as a stream of its bytes so far; the last may come before they are verified.

    A context manager.
    """

    def __init__(self, arrival: InFlightBlob, fd: int) -> None:
        self._arrival = arrival
        self._fd = fd
        self._at = 0

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; ``b""`` when the download has ended, well or not. Raises ``RetryRead``."""
        there = self._arrival.wait_for(self._at + size)
        data = os.pread(self._fd, min(size, there - self._at), self._at)
        self._at += len(data)
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def fetch_blob(
    store: Store, descriptor: Descriptor, fetch: Callable[[Descriptor, Sink], None], arrival: InFlightBlob | None = None
) -> None:
    """Let ``fetch`` write the blob of ``descriptor``, and keep it. ``arrival`` hears of every byte and of the end.

    Its bytes are hashed once, where they come from: there a wrong one is asked for again, or elsewhere. When ``fetch``
    returns, they were right.
    """
    arrival = arrival or InFlightBlob()
    path = store.session.temporary()
    try:
        with open(path, "xb+", buffering=0) as file:
            os.fchmod(file.fileno(), 0o600)
            arrival.begin(file.fileno())
            fetch(descriptor, _FileSink(store, file, arrival))
        blobs.adopt(store, path, descriptor.digest, descriptor.size)
    finally:
        arrival.end()
        if os.path.exists(path):
            os.unlink(path)


class _FileSink:
    """A file of the store as what a download is written to."""

    def __init__(self, store: Store, file: BinaryIO, arrival: InFlightBlob) -> None:
        self._root = store.root
        self._file = file
        self._arrival = arrival

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        left = memoryview(data)
        with faults.translated(self._root, "cannot write a blob"):
            while left:
                left = left[self._file.write(left) :]
        self._arrival.grow(len(data))

    def reset(self) -> None:
        """Start again at 0."""
        self._arrival.reset()
        with faults.translated(self._root, "cannot write a blob"):
            self._file.seek(0)
            self._file.truncate()
