"""Writing tar archives block by block, also invalid ones."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable
from pathlib import Path

FILE, HARDLINK, SYMLINK, CHARACTER, BLOCK, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
END = bytes(1024)


def header(
    name: bytes,
    kind: bytes = FILE,
    *,
    size: int | bytes = 0,
    mode: int = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 0,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    device: tuple[int, int] = (0, 0),
    prefix: bytes = b"",
) -> bytes:
    """Return a header block with a correct checksum; a field given as bytes is written unchanged."""

    def number(value: int | bytes, width: int) -> bytes:
        return value.ljust(width, b"\0") if isinstance(value, bytes) else b"%0*o\0" % (width - 1, value)

    block = bytearray(512)
    for at, value in (
        (0, name[:100]),
        (100, number(mode, 8)),
        (108, number(uid, 8)),
        (116, number(gid, 8)),
        (124, number(size, 12)),
        (136, number(mtime, 12)),
        (148, b" " * 8),
        (156, kind),
        (157, link[:100]),
        (257, magic),
        (329, number(device[0], 8)),
        (337, number(device[1], 8)),
        (345, prefix[:155]),
    ):
        block[at : at + len(value)] = value
    return sealed(bytes(block))


def sealed(block: bytes) -> bytes:
    """Return ``block`` with its correct checksum."""
    blank = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(blank) + block[156:]


def padded(data: bytes) -> bytes:
    """Return ``data`` padded to whole blocks."""
    return data + bytes(-len(data) % 512)


def file(name: bytes, data: bytes = b"", **fields: object) -> bytes:
    """Return header and content of a regular file."""
    return header(name, FILE, size=len(data), **fields) + padded(data)  # type: ignore[arg-type]


def record(key: bytes, value: bytes) -> bytes:
    """Return a record of a PAX extended header."""
    length = len(key) + len(value) + 3
    while len(str(length)) + len(key) + len(value) + 3 != length:
        length = len(str(length)) + len(key) + len(value) + 3
    return b"%d %b=%b\n" % (length, key, value)


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    """Return a PAX extended header (``kind`` g: a global one)."""
    return raw_pax(b"".join(record(*each) for each in records), kind=kind)


def raw_pax(data: bytes, kind: bytes = b"x") -> bytes:
    """Return an extended header with arbitrary content."""
    return header(b"PaxHeader", kind, size=len(data)) + padded(data)


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    """Return GNU tar's long name (L) or link (K)."""
    return header(b"././@LongLink", kind, size=len(name) + 1, magic=b"ustar  \0") + padded(name + b"\0")


def stream(*parts: bytes, end: bytes = END) -> io.BytesIO:
    """Return the parts as a stream, with the end marker."""
    return io.BytesIO(b"".join(parts) + end)


def fingerprint(*roots: Path) -> dict[str, tuple[object, ...]]:
    """Return everything about the files below ``roots`` that an attacker could change; the ctime shows even a touch."""
    found: dict[str, tuple[object, ...]] = {}
    for path in _all(roots):
        status = path.lstat()
        content: object = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        found[str(path)] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_ino,
            status.st_nlink,
            status.st_mtime_ns,
            status.st_ctime_ns,
            content,
            tuple(os.listxattr(path, follow_symlinks=False)),
        )
    return found


def _all(roots: Iterable[Path]) -> Iterable[Path]:
    for root in roots:
        yield root
        yield from root.rglob("*")
