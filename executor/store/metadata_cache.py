"""Cached metadata: small values by kind and key, such as the bytes of a manifest by its digest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor.store.index import CorruptIndexError, checksum, number

if TYPE_CHECKING:
    import sqlite3

    from executor.store.store import Store


def get(store: Store, kind: str, key: str, *, max_age: float | None = None) -> bytes | None:
    """Return the value under ``kind`` and ``key``; None when there is none or it is older than ``max_age`` seconds."""

    def look(db: sqlite3.Connection) -> tuple[bytes, float] | None:
        row = db.execute("SELECT value, seal, created FROM facts WHERE kind=? AND key=?", (kind, key)).fetchone()
        if row is None:
            return None
        if not isinstance(row[0], bytes) or row[1] != checksum(kind, key, row[0]):
            raise CorruptIndexError("the checksum of a fact does not match")
        return row[0], number(row[2])

    found = store.index.read(look)
    if found is None or (max_age is not None and store.clock() - found[1] > max_age):
        return None
    return found[0]


def put(store: Store, kind: str, key: str, value: bytes) -> None:
    """Store ``value`` under ``kind`` and ``key``, replacing an earlier one."""
    row = (kind, key, value, checksum(kind, key, value), store.clock())
    store.index.write(lambda db: db.execute("INSERT OR REPLACE INTO facts VALUES(?, ?, ?, ?, ?)", row))


def forget(store: Store, kind: str, key: str) -> None:
    """Remove the value under ``kind`` and ``key``, if there is one."""
    store.index.write(lambda db: db.execute("DELETE FROM facts WHERE kind=? AND key=?", (kind, key)))
