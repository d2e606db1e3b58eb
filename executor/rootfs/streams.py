"""Byte streams that work ahead: reading and hashing in threads, beside the thread that uses the bytes.

Hashing, inflating and reading let go of the interpreter lock, so a second core does them for free.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from typing import Final, Protocol, Self

BLOCK: Final = 512 << 10
"""Bytes that travel between threads at a time."""
_DEPTH: Final = 4
"""Blocks that may wait in a queue."""


class Readable(Protocol):
    """What a stream has to offer: a file, a socket's response, a decompressor."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; ``b""`` only at the end."""
        ...


class Ahead:
    """``stream``, read ahead in a thread of its own. A context manager: leaving it ends the thread.

    The stream itself is not closed, and must not be used by anyone else in the meantime.
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
        """The next bytes, at most ``size``; ``b""`` at the end. Raises what the stream raised."""
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
        """End the thread. A read that is under way is waited for."""
        self._stop = True
        self._ended = True
        while self._thread.is_alive():
            try:
                while True:
                    self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)


class Digest:
    """SHA-256 in a thread of its own, which starts with the second block. The blocks must not change afterwards."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._queue: queue.Queue[bytes | memoryview | None] | None = None
        self._first: bytes | memoryview | None = None
        self._thread: threading.Thread | None = None
        self.size = 0
        """Bytes given so far."""

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes; waits while too many are waiting."""
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
        """The digest of everything, ``sha256:`` and hex. Also how the thread is ended."""
        if self._queue is not None and self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._queue = None
        elif self._first is not None:
            self._hash.update(self._first)
            self._first = None
        return "sha256:" + self._hash.hexdigest()
