"""The stat cache: digests of files outside of the store, by their stat signature.

A stat signature is the device, inode, size, mtime and ctime of a file (lstat(2)). A file with the signature under which
a digest was recorded has that digest. One entry is kept for each inode.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from typing import TYPE_CHECKING, Final

from executor.store.index import CorruptIndexError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from executor.store.store import Store

_BATCH: Final = 500
_COARSE_NS: Final = 2_000_000_000
_FINE_NS: Final = 50_000_000
_LATEST: Final = (1 << 63) - 1


def stat_signature(found: os.stat_result) -> bytes:
    """Return the stat signature of ``found``, packed. Times after 2262 are clamped."""
    modified, changed = min(found.st_mtime_ns, _LATEST), min(found.st_ctime_ns, _LATEST)
    return struct.pack("=QQqqq", found.st_dev, found.st_ino, found.st_size, modified, changed)


def cache_key(signature: bytes) -> tuple[bytes, bytes]:
    """Return the key for ``get`` of the file with the stat signature ``signature``: its device and inode, and the
    signature."""
    return b"%d:%d" % struct.unpack_from("=QQ", signature), signature


def get(store: Store, keys: Sequence[tuple[bytes, bytes]]) -> list[str | None]:
    """Return the digests of files, in the order of ``keys`` (``cache_key``); None where there is none."""

    def look(db: sqlite3.Connection) -> list[str | None]:
        found: list[str | None] = []
        for start in range(0, len(keys), _BATCH):
            batch = keys[start : start + _BATCH]
            placeholders = ",".join("?" * len(batch))
            rows = db.execute(
                f"SELECT path, stamp, digest, seal FROM files WHERE path IN ({placeholders})",
                [path for path, _ in batch],
            )
            known = {row[0]: row[1:] for row in rows}
            for path, signature in batch:
                row = known.get(path)
                if row is None or row[0] != signature:
                    found.append(None)
                    continue
                if row[2] != _checksum(path, signature, row[1]):
                    raise CorruptIndexError("the checksum of a known file does not match")
                found.append(row[1])
        return found

    return store.index.read(look)


def put(store: Store, rows: Iterable[tuple[bytes, bytes, str]], *, read_at: int) -> None:
    """Record digests: ``rows`` are names, stat signatures (taken *before* reading) and digests.

    ``read_at``: ``time.time_ns()`` before the first file was read. A file that was changed just before could change
    again with the same times (file systems have a granularity of up to two seconds), so its row is skipped.
    """
    _insert(store, (row for row in rows if _is_stable(max(struct.unpack_from("=qq", row[1], 24)), read_at)))


def put_renamed(store: Store, rows: Iterable[tuple[bytes, bytes, str]]) -> None:
    """As ``put``, for files of the store that were written, read and then renamed, which changed their ctime.

    A later write to such a file changes its mtime, so only that has to be old enough.
    """
    read_at = now()
    _insert(store, (row for row in rows if _is_stable(struct.unpack_from("=q", row[1], 24)[0], read_at)))


def _is_stable(changed: int, read_at: int) -> bool:
    return read_at - changed > (_FINE_NS if changed % 1_000_000_000 else _COARSE_NS)


def _insert(store: Store, rows: Iterable[tuple[bytes, bytes, str]]) -> None:
    today = int(store.clock())
    values = [(path, signature, digest, _checksum(path, signature, digest), today) for path, signature, digest in rows]
    if values:
        store.index.write(lambda db: db.executemany("INSERT OR REPLACE INTO files VALUES(?, ?, ?, ?, ?)", values))


def is_racy(signature: bytes, read_at: int) -> bool:
    """Whether the file was changed less than two seconds before ``read_at``, so that it may change with the same
    times."""
    modified, changed = struct.unpack_from("=qq", signature, 24)
    return bool(read_at - max(modified, changed) < _COARSE_NS)


def _checksum(path: bytes, signature: bytes, digest: str) -> int:
    return zlib.crc32(str(digest).encode("utf-8", "surrogateescape"), zlib.crc32(signature, zlib.crc32(path)))


def now() -> int:
    """Return the value for ``read_at``."""
    return time.time_ns()
