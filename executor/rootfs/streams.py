"""Byte streams with threads: reading ahead, and hashing beside the thread that uses the bytes.

Hashing, decompressing and reading release the interpreter lock, so they run on a second core.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from typing import Final, Protocol, Self

BLOCK: Final = 512 << 10
"""Size in bytes of the blocks that are passed between threads."""
_DEPTH: Final = 4
"""Maximum number of blocks in a queue."""


class Readable(Protocol):
    """A stream to read: a file, a response, a decompressor."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; ``b""`` only at the end."""
        ...


class Ahead:
    """Reads ``stream`` ahead in a thread. A context manager, which ends the thread.

    The stream is not closed, and must not be used otherwise in the meantime.
    """

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(_DEPTH)
        self._stop = False
        self._left = b""
        self._at = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="read ahead", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        item: bytes | BaseException
        while not self._stop:
            try:
                item = self._stream.read(BLOCK)
            except BaseException as error:
                item = error
            self._queue.put(item)
            if not item or isinstance(item, BaseException):
                return

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, at most ``size``; ``b""`` at the end. Raises what the stream raised."""
        if self._at < len(self._left):
            piece = self._left[self._at : self._at + size]
            self._at += len(piece)
            return piece
        if self._ended:
            return b""
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._ended = True
            raise item
        if not item:
            self._ended = True
        if len(item) <= size:
            return item
        self._left, self._at = item, size
        return item[:size]

    def close(self) -> None:
        """End the thread, after a read in progress."""
        self._stop = True
        self._ended = True
        while self._thread.is_alive():
            try:
                while True:
                    self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)


class Digest:
    """SHA-256 in a thread, which starts with the second block. Blocks must not change after ``update``."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._queue: queue.Queue[bytes | memoryview | None] | None = None
        self._first: bytes | memoryview | None = None
        self._thread: threading.Thread | None = None
        self.size = 0
        """Number of bytes so far."""

    def update(self, data: bytes | memoryview) -> None:
        """Append the next bytes; waits while the queue is full."""
        self.size += len(data)
        if self._queue is not None:
            self._queue.put(data)
        elif self._first is None:
            self._first = data
        else:
            self._queue = queue.Queue(_DEPTH)
            self._queue.put(self._first)
            self._queue.put(data)
            self._first = None
            self._thread = threading.Thread(target=self._run, args=(self._queue,), name="digest", daemon=True)
            self._thread.start()

    def _run(self, blocks: queue.Queue[bytes | memoryview | None]) -> None:
        while (block := blocks.get()) is not None:
            self._hash.update(block)

    def finish(self) -> str:
        """Return the digest of everything, ``sha256:`` and hexadecimal digits. Ends the thread."""
        if self._queue is not None and self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._queue = None
        elif self._first is not None:
            self._hash.update(self._first)
            self._first = None
        return "sha256:" + self._hash.hexdigest()
