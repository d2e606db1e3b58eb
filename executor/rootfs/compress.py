"""Compression of tar archives to layer blobs, and decompression, with digests of both sides.

**Compressing.** The archive is cut into blocks of fixed size. A gzip blob is one member. Its blocks are compressed
independently, each with the 32 KiB before it as the dictionary, and end on a byte boundary; so they can be made in
parallel. zstd compresses in its own worker threads, whose number does not affect its output.

A blob's bytes depend on the archive, the level and the version of the compressor, and on no property of the machine:
neither on the number of cores nor on the processor. zlib-ng (for gzip) and zstd have faster code for some processors,
which makes the same choices. ISA-L, which is faster still, makes others on each kind, so it only reads; and
Python's zlib is another library on each distribution. The exception is level 1 of gzip on IBM Z, where the processor
itself compresses.

**Decompressing.** gzip (several members), zstd (several frames), bzip2, xz and plain data are recognised by their first
bytes. The caller sets the maximum size of the result.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol, Self

import msgspec

from executor.rootfs import tarwriter
from executor.rootfs.entry import Entry
from executor.rootfs.streams import Digest, Readable
from executor.rootfs.tarwriter import HeaderOf
from platforms.descriptors import write_all
from platforms.errors import ArchiveError, UsageError

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_BLOCK: Final = 512 << 10
"""Bytes of the archive that are compressed together. Part of the format: a change changes the digest of every blob."""
_WINDOW: Final = 32 << 10
"""Maximum distance of a reference in deflate."""
_WAITING: Final = 6
"""Maximum number of blocks in the threads."""
_GZIP_HEADER: Final = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
"""RFC 1952: deflate, no name, no time, unknown system."""

COMPRESSIONS: Final = ("gzip", "zstd", "uncompressed")
_LEVELS: Final = {"gzip": range(10), "zstd": range(1, 23), "uncompressed": range(1)}
_DEFAULT: Final = {"gzip": 2, "zstd": 3, "uncompressed": 0}
_STORED: Final = 65535
"""Maximum size of a stored block in deflate (RFC 1951, section 3.2.4)."""
_LAST_BLOCK: Final = b"\x03\0"
"""The last block of a deflate stream, with nothing in it."""
_SAMPLES: Final = (16, 256)
"""Of a block: how many pieces are compressed to see whether it is worth while, and their size in bytes."""
_PROBE: Final = 64 << 10
"""Bytes at the start of a block that are compressed, too, if the pieces were not worth while."""


class CompressedLayer(msgspec.Struct, frozen=True):
    """A layer blob: digest and ``size`` in bytes of the file, and of the archive in it."""

    diff_id: str
    digest: str
    size: int
    uncompressed_size: int


def pack(
    entries: Iterable[Entry],
    path: str,
    compression: str = "gzip",
    level: int | None = None,
    header_of: HeaderOf | None = None,
) -> CompressedLayer:
    """Write the layer of ``entries``, in the order given, to the file ``path``. ``header_of``: as for ``tarwriter``.

    ``compression`` is ``gzip`` (levels 0 to 9, default 2), ``zstd`` (1 to 22, default 3) or ``uncompressed``. An
    existing file is overwritten; a link at ``path`` is refused. Nothing is synced. After an error the content of the
    file is undefined. Raises what ``tarwriter.write`` raises, and ``UsageError``.
    """
    with Packer(path, compression, level) as packer:
        tarwriter.write(entries, packer.write, header_of)
        return packer.finish()


def recompress(stream: Readable, path: str, compression: str = "gzip", level: int | None = None) -> CompressedLayer:
    """Write the archive that ``stream`` reads, byte for byte, to the file ``path``; otherwise as ``pack``."""
    with Packer(path, compression, level) as packer:
        while data := stream.read(_BLOCK):
            packer.write(data)
        return packer.finish()


class Packer:
    """Writes a blob. ``write`` takes the archive piece by piece, ``finish`` returns the digests.

    A context manager, which releases threads and file even if ``finish`` was not reached. A layer of one block is made
    without any thread.
    """

    def __init__(self, path: str, compression: str = "gzip", level: int | None = None) -> None:
        self._codec = _codec(compression, level)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file: BinaryIO = os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)
        self._digest = Digest()
        self._blob = hashlib.sha256()
        self._size = 0
        self._block = bytearray(_BLOCK)
        self._view = memoryview(self._block)
        self._filled = 0
        self._before = b""
        self._threads: _Threads | None = None
        self._emit(self._codec.header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.close()
        self._digest.finish()
        self._file.close()

    def write(self, data: bytes | memoryview) -> None:
        """Append the next bytes of the archive; ``data`` may be reused afterwards."""
        at, size = 0, len(data)
        view = memoryview(data)
        while at < size:
            if self._filled == _BLOCK:
                self._flush()
            step = min(size - at, _BLOCK - self._filled)
            self._view[self._filled : self._filled + step] = view[at : at + step]
            self._filled += step
            at += step

    def _flush(self) -> None:
        """Compress a full block that is not the last one."""
        block = bytes(self._block)
        self._filled = 0
        self._digest.update(block)
        self._codec.see(block)
        if self._threads is None:
            self._threads = _Threads(self._codec, self._emit)
        self._threads.add(block, self._before)
        self._before = block[-_WINDOW:]

    def finish(self) -> CompressedLayer:
        """End the archive. The file is complete afterwards, but not synced."""
        last = bytes(self._view[: self._filled])
        self._digest.update(last)
        self._codec.see(last)
        if self._threads is not None:
            self._threads.drain()
        self._emit(self._codec.compress(last, self._before, True))
        diff_id = self._digest.finish()
        self._emit(self._codec.trailer(self._digest.size))
        self._file.close()
        return CompressedLayer(diff_id, "sha256:" + self._blob.hexdigest(), self._size, self._digest.size)

    def _emit(self, data: bytes) -> None:
        self._blob.update(data)
        self._size += len(data)
        write_all(self._file.fileno(), data)


class _Threads:
    """Compresses blocks in threads, and passes the results to ``emit`` in order."""

    def __init__(self, codec: _Codec, emit: Callable[[bytes], None]) -> None:
        # Imported here: a layer of one block, which is what most steps make, never needs it.
        from concurrent.futures import ThreadPoolExecutor

        self._codec = codec
        self._emit = emit
        cores = len(os.sched_getaffinity(0)) if codec.parallel else 1
        self._compress: ThreadPoolExecutor = ThreadPoolExecutor(min(cores, 4), "compress")
        self._write: ThreadPoolExecutor = ThreadPoolExecutor(1, "write")
        self._waiting: deque[Future[None]] = deque()

    def add(self, block: bytes, before: bytes) -> None:
        if len(self._waiting) >= _WAITING:
            self._waiting.popleft().result()
        made = self._compress.submit(self._codec.compress, block, before, False)
        self._waiting.append(self._write.submit(lambda: self._emit(made.result())))

    def drain(self) -> None:
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        self._compress.shutdown(cancel_futures=True)
        self._write.shutdown(cancel_futures=True)


class _Codec(Protocol):
    parallel: bool
    """Whether blocks may be compressed at the same time; otherwise one after the other."""
    header: bytes

    def see(self, block: bytes) -> None:
        """Receives every block in order, in the writing thread, before it is compressed."""

    def compress(self, block: bytes, before: bytes, last: bool) -> bytes:
        """Return the compressed ``block``; ``before`` is the end of the block before it."""
        ...

    def trailer(self, size: int) -> bytes:
        """Return the end of the blob, after ``size`` bytes of archive."""
        ...


def _codec(compression: str, level: int | None) -> _Codec:
    if compression not in COMPRESSIONS:
        raise UsageError(f"unknown compression {compression!r}", remedy=f"use one of {', '.join(COMPRESSIONS)}")
    levels = _LEVELS[compression]
    if level is None:
        level = _DEFAULT[compression]
    elif level not in levels:
        raise UsageError(
            f"no compression level {level} for {compression}", remedy=f"use {levels[0]} to {levels[-1]}, or none"
        )
    if compression == "gzip":
        return _Gzip(level)
    return _Zstd(level) if compression == "zstd" else _Plain()


class _Gzip:
    """A gzip member (RFC 1952) of deflate blocks, each of which ends with an empty stored block (a "sync flush").

    Blocks that would not become smaller are stored: they would take zlib-ng ten times as long as others.
    """

    parallel = True
    header = _GZIP_HEADER

    def __init__(self, level: int) -> None:
        from zlib_ng import zlib_ng

        self._level = level
        self._zlib: Any = zlib_ng
        self._crc = 0

    def see(self, block: bytes) -> None:
        self._crc = self._zlib.crc32(block, self._crc)

    def compress(self, block: bytes, before: bytes, last: bool) -> bytes:
        if self._level == 0 or self._is_dense(block):
            data = _stored(block)
        else:
            data = self._deflated(block, self._level, before)
        return data + _LAST_BLOCK if last else data

    def _deflated(self, data: bytes, level: int, before: bytes = b"") -> bytes:
        z = self._zlib
        machine = z.compressobj(level, z.DEFLATED, -15, 8, z.Z_DEFAULT_STRATEGY, *((before,) if before else ()))
        return b"".join((machine.compress(data), machine.flush(z.Z_SYNC_FLUSH)))

    def _is_dense(self, block: bytes) -> bool:
        """Whether parts of ``block`` lose less than a thirtieth when they are compressed."""
        count, size = _SAMPLES
        stride = len(block) // count
        if stride < 4 * size:
            return False
        sample = b"".join([block[at : at + size] for at in range(0, count * stride, stride)])
        return all(len(self._deflated(part, 2)) * 30 > len(part) * 29 for part in (sample, block[:_PROBE]))

    def trailer(self, size: int) -> bytes:
        return self._crc.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")


def _stored(data: bytes) -> bytes:
    """Return ``data`` as stored blocks, none of which is the last one."""
    pieces = []
    for at in range(0, len(data), _STORED):
        size = min(_STORED, len(data) - at)
        pieces += [b"\0", size.to_bytes(2, "little"), (size ^ 0xFFFF).to_bytes(2, "little"), data[at : at + size]]
    return b"".join(pieces)


class _Zstd:
    """A zstd frame (RFC 8878). At least one worker, because without any the library's output differs."""

    parallel = False
    header = b""

    def __init__(self, level: int) -> None:
        import zstandard

        workers = min(len(os.sched_getaffinity(0)), 4)
        self._machine = zstandard.ZstdCompressor(level=level, threads=workers, write_checksum=True).compressobj()

    def see(self, block: bytes) -> None:
        pass

    def compress(self, block: bytes, _: bytes, last: bool) -> bytes:
        data = self._machine.compress(block)
        return data + self._machine.flush() if last else data

    def trailer(self, _: int) -> bytes:
        return b""


class _Plain:
    parallel = False
    header = b""

    def see(self, block: bytes) -> None:
        pass

    def compress(self, block: bytes, _: bytes, last: bool) -> bytes:
        return block

    def trailer(self, _: int) -> bytes:
        return b""


# -- decompressing ---------------------------------------------------------------------------------------------------

_MAGIC: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
)
_PIECE: Final = 128 << 10
"""Compressed bytes that are read at a time."""
_ZSTD_PIECE: Final = 2 << 10
"""Compressed bytes that are passed to zstd at a time: its output cannot be limited, and 4 bytes may become 128 KiB."""
_ZSTD_WINDOW: Final = 128 << 20
"""Maximum window. RFC 8878 asks decoders to support 8 MiB; the command line tool refuses more than this."""
_XZ_MEMORY: Final = 256 << 20
"""Maximum memory of the decoder; ``xz -9`` needs 65 MiB."""


def sniff(head: bytes) -> str:
    """Return the compression of data that begins with ``head`` (6 bytes suffice): gzip, zstd, bzip2, xz; "" if
    unknown."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    # A zstd "skippable frame", as lazily pulled layers may begin with.
    return "zstd" if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50 else ""


class Decompressed:
    """A stream of what ``stream`` decompresses to: ``read(size)`` returns up to ``size`` bytes, ``b""`` at the end.

    ``limit``: the maximum number of decompressed bytes. Raises ``ArchiveError`` for more, for damaged or truncated
    data, and for data after the end (padding with zeros is accepted, as by gzip).
    """

    def __init__(self, stream: Readable, *, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._count = 0
        self._input = _fill(stream, 6)
        self.compression = sniff(self._input)
        """gzip, zstd, bzip2, xz or "" for plain data."""
        self._start = _machines(self.compression) if self.compression else None
        self._machine: _Machine | None = self._start() if self._start is not None else None
        self._hungry = True
        self._left = b""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, at most ``size``; ``b""`` only at the end."""
        data = self._left
        if not data:
            data = self._plain(size) if self._start is None else self._next(size)
            self._count += len(data)
            if self._count > self._limit:
                raise ArchiveError(
                    "archive too large",
                    why=f"it decompresses to more than {self._limit} bytes",
                    remedy="raise the limit if this is not an attack",
                )
        self._left = data[size:]
        return data[:size] if self._left else data

    def _plain(self, size: int) -> bytes:
        data, self._input = self._input, b""
        return data or self._stream.read(size)

    def _next(self, size: int) -> bytes:
        while self._machine is not None:
            piece = b""
            if self._hungry:
                piece, self._input = self._input or self._stream.read(_PIECE), b""
                if not piece:
                    raise ArchiveError("truncated archive", why=f"its {self.compression} data ends too early")
            try:
                data = self._machine.decompress(piece, size)
            except Exception as error:
                if isinstance(error, MemoryError):
                    raise
                raise ArchiveError("damaged archive", why=f"its {self.compression} data is broken: {error}") from error
            self._hungry = self._machine.needs_input
            if self._machine.eof:
                self._input = self._machine.unused_data
                self._begin()
            if data:
                return data
        return b""

    def _begin(self) -> None:
        """After a member or frame: begin the next one, skip padding, or end."""
        self._machine = None
        if not self._input:
            self._input = self._stream.read(_PIECE)
        if self._input and not self._input[0]:
            while self._input and not self._input.strip(b"\0"):
                self._input = self._stream.read(_PIECE)
            if not self._input:
                return
        elif not self._input:
            return
        self._input += _fill(self._stream, 6 - len(self._input)) if len(self._input) < 6 else b""
        if sniff(self._input) != self.compression:
            raise ArchiveError("damaged archive", why=f"something else follows its {self.compression} data")
        assert self._start is not None
        self._machine = self._start()
        self._hungry = True


def _fill(stream: Readable, size: int) -> bytes:
    """Read ``size`` bytes, or less at the end of the stream."""
    data = stream.read(size)
    while data and len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


class _Machine(Protocol):
    """A decompressor for one member or frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, size: int, /) -> bytes: ...


def _machines(compression: str) -> Callable[[], _Machine]:
    """Return a factory of decompressors for ``compression``."""
    if compression == "zstd":
        return _zstd_machines()
    make: Callable[[], Any]
    if compression == "gzip":
        from isal import igzip_lib

        def make() -> Any:
            return igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)

    elif compression == "xz":
        import lzma

        def make() -> Any:
            return lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)

    else:
        import bz2

        make = bz2.BZ2Decompressor
    return lambda: _Bounded(make())


class _Bounded:
    """A decompressor whose output can be limited (the interface of bz2, lzma and isal)."""

    def __init__(self, machine: Any) -> None:
        self._machine = machine
        self.decompress: Callable[[bytes, int], bytes] = machine.decompress

    @property
    def eof(self) -> bool:
        return bool(self._machine.eof)

    @property
    def needs_input(self) -> bool:
        return bool(self._machine.needs_input)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._machine.unused_data)


def _zstd_machines() -> Callable[[], _Machine]:
    import zstandard

    context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    return lambda: _ZstdFrame(context.decompressobj())


class _ZstdFrame:
    """A decompressor whose output cannot be limited: it is fed little at a time, and nothing more once there is
    enough."""

    def __init__(self, machine: Any) -> None:
        self._machine = machine
        self._left = memoryview(b"")

    @property
    def eof(self) -> bool:
        return bool(self._machine.eof)

    @property
    def needs_input(self) -> bool:
        return not self._left

    @property
    def unused_data(self) -> bytes:
        return bytes(self._machine.unused_data) + bytes(self._left)

    def decompress(self, data: bytes, size: int, /) -> bytes:
        left = memoryview(data) if data else self._left
        pieces: list[bytes] = []
        while left and size > 0 and not self._machine.eof:
            pieces.append(self._machine.decompress(left[:_ZSTD_PIECE]))
            size -= len(pieces[-1])
            left = left[_ZSTD_PIECE:]
        self._left = left
        return b"".join(pieces)
