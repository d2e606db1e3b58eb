"""The stat cache: digests of files outside of the store, known by what lstat(2) says of them.

A file whose device, inode, size and both times are those of a digest that was computed before has that digest. One
entry is kept per name.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from typing import TYPE_CHECKING, Final

from executor.store.index import DamagedError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from executor.store.store import Store

_BATCH: Final = 500
_COARSE_NS: Final = 2_000_000_000
_FINE_NS: Final = 50_000_000
_LATEST: Final = (1 << 63) - 1


def stamp(found: os.stat_result) -> bytes:
    """The fields of ``found`` that change when the file does, packed. Times after 2262 are taken to be then."""
    modified, changed = min(found.st_mtime_ns, _LATEST), min(found.st_ctime_ns, _LATEST)
    return struct.pack("=QQqqq", found.st_dev, found.st_ino, found.st_size, modified, changed)


def known_as(mark: bytes) -> tuple[bytes, bytes]:
    """What the file with the stamp ``mark`` is asked for with: a name that stays its own, and the stamp."""
    return b"%d:%d" % struct.unpack_from("=QQ", mark), mark


def get(store: Store, keys: Sequence[tuple[bytes, bytes]]) -> list[str | None]:
    """The digests of files, in the order of ``keys`` (``known_as``)."""

    def look(db: sqlite3.Connection) -> list[str | None]:
        found: list[str | None] = []
        for start in range(0, len(keys), _BATCH):
            batch = keys[start : start + _BATCH]
            marks = ",".join("?" * len(batch))
            rows = db.execute(
                f"SELECT path, stamp, digest, seal FROM files WHERE path IN ({marks})", [path for path, _ in batch]
            )
            known = {row[0]: row[1:] for row in rows}
            for path, mark in batch:
                row = known.get(path)
                if row is None or row[0] != mark:
                    found.append(None)
                    continue
                if row[2] != _seal(path, mark, row[1]):
                    raise DamagedError("the checksum of a known file does not match")
                found.append(row[1])
        return found

    return store.index.read(look)


def put(store: Store, rows: Iterable[tuple[bytes, bytes, str]], *, read_at: int) -> None:
    """Remember digests: ``rows`` are names, stamps (taken *before* reading) and digests.

    ``read_at`` is ``time.time_ns()`` from before the first of them was read. A file that had been changed just before
    could change again without its times telling (they come from a clock that ticks, on some file systems every two
    seconds), so such rows are left out.
    """
    _insert(store, (row for row in rows if _settled(max(struct.unpack_from("=qq", row[1], 24)), read_at)))


def put_renamed(store: Store, rows: Iterable[tuple[bytes, bytes, str]]) -> None:
    """As ``put``, for files of our own that were written, read and then renamed, which was their last change.

    Whoever writes to such a file gives it another time of modification than the one it had when it was read: only that
    one has to be settled.
    """
    read_at = now()
    _insert(store, (row for row in rows if _settled(struct.unpack_from("=q", row[1], 24)[0], read_at)))


def _settled(changed: int, read_at: int) -> bool:
    return read_at - changed > (_FINE_NS if changed % 1_000_000_000 else _COARSE_NS)


def _insert(store: Store, rows: Iterable[tuple[bytes, bytes, str]]) -> None:
    today = int(store.clock())
    values = [(path, mark, digest, _seal(path, mark, digest), today) for path, mark, digest in rows]
    if values:
        store.index.write(lambda db: db.executemany("INSERT OR REPLACE INTO files VALUES(?, ?, ?, ?, ?)", values))


def is_young(mark: bytes, read_at: int) -> bool:
    """Whether the file with the stamp ``mark`` was changed in the last two seconds, and so may well change again."""
    modified, changed = struct.unpack_from("=qq", mark, 24)
    return bool(read_at - max(modified, changed) < _COARSE_NS)


def _seal(path: bytes, mark: bytes, digest: str) -> int:
    return zlib.crc32(str(digest).encode("utf-8", "surrogateescape"), zlib.crc32(mark, zlib.crc32(path)))


def now() -> int:
    """The value for ``read_at``."""
    return time.time_ns()
