"""A bundle: a sequence of byte strings (items) of any size as one compressed stream, in bounded memory.

An item is its length (8 bytes, big-endian) and its bytes. Items are concatenated, cut into pieces of at most 512 KiB,
and each piece is a zstd frame (RFC 8878) with its content size, preceded by the length of the frame (4 bytes,
big-endian). As a piece is bounded, what a frame can expand to is known before it is decompressed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import zstandard

from platforms.errors import ProtocolError

_PIECE: Final = 512 << 10
_FRAME_LIMIT: Final = 1 << 20
_LENGTH: Final = 8
_LEVEL: Final = 3


class BundleWriter:
    """Writes a bundle to ``out`` in blocks."""

    def __init__(self, out: Callable[[bytes], object]) -> None:
        self._out = out
        self._piece = bytearray()
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)

    def begin(self, size: int) -> None:
        """Begin an item of ``size`` bytes, which are then passed to ``write``."""
        self.write(size.to_bytes(_LENGTH, "big"))

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        self._piece += data
        while len(self._piece) >= _PIECE:
            self._flush(bytes(self._piece[:_PIECE]))
            del self._piece[:_PIECE]

    def finish(self) -> None:
        """Write what is left. To be called last."""
        if self._piece:
            self._flush(bytes(self._piece))
            self._piece.clear()

    def _flush(self, piece: bytes) -> None:
        frame = self._compressor.compress(piece)
        self._out(len(frame).to_bytes(4, "big") + frame)


class Receiver(Protocol):
    """Receives the items of a bundle. ``write`` is called with the content of the item that was begun last."""

    def begin(self, size: int) -> None: ...
    def write(self, data: memoryview) -> None: ...
    def end(self) -> None: ...


class BundleReader:
    """Reads a bundle from blocks, and passes its items to ``receiver``. Raises ``ProtocolError`` if it is malformed."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._buffer = bytearray()
        self._length = b""
        """What there is of the length of the next item."""
        self._left = -1
        """Bytes of the current item that are still to come; -1 between items."""
        self._decompressor = zstandard.ZstdDecompressor()

    def feed(self, block: bytes) -> None:
        """Take the next block, of any size."""
        self._buffer += block
        while len(self._buffer) >= 4:
            size = int.from_bytes(self._buffer[:4], "big")
            if size > _FRAME_LIMIT:
                raise _malformed("a frame is too large")
            if len(self._buffer) < 4 + size:
                return
            frame = bytes(self._buffer[4 : 4 + size])
            del self._buffer[: 4 + size]
            self._take(memoryview(self._decompressed(frame)))

    def finish(self) -> None:
        """Raise ``ProtocolError`` if the bundle is cut short."""
        if self._buffer or self._length or self._left >= 0:
            raise _malformed("it is cut short")

    def _decompressed(self, frame: bytes) -> bytes:
        try:
            if not 0 < zstandard.frame_content_size(frame) <= _PIECE:
                raise _malformed("a piece is too large")
            return self._decompressor.decompress(frame)
        except zstandard.ZstdError as error:
            raise _malformed(str(error)) from error

    def _take(self, data: memoryview) -> None:
        while data:
            if self._left < 0:
                needed = _LENGTH - len(self._length)
                self._length += bytes(data[:needed])
                data = data[needed:]
                if len(self._length) < _LENGTH:
                    return
                self._left, self._length = int.from_bytes(self._length, "big"), b""
                self._receiver.begin(self._left)
            some = data[: self._left]
            if some:
                self._receiver.write(some)
                self._left -= len(some)
                data = data[len(some) :]
            if not self._left:
                self._left = -1
                self._receiver.end()


def _malformed(why: str) -> ProtocolError:
    return ProtocolError("what the orchestrator sent is malformed", why=why)
