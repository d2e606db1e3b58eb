"""Small things worth remembering, by kind and key: a manifest's bytes by its digest, say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor.store.index import DamagedError, number, seal

if TYPE_CHECKING:
    import sqlite3

    from executor.store.store import Store


def get(store: Store, kind: str, key: str, *, max_age: float | None = None) -> bytes | None:
    """What was put under ``kind`` and ``key``, unless that is more than ``max_age`` seconds ago."""

    def look(db: sqlite3.Connection) -> tuple[bytes, float] | None:
        row = db.execute("SELECT value, seal, created FROM facts WHERE kind=? AND key=?", (kind, key)).fetchone()
        if row is None:
            return None
        if not isinstance(row[0], bytes) or row[1] != seal(kind, key, row[0]):
            raise DamagedError("the checksum of a fact does not match")
        return row[0], number(row[2])

    found = store.index.read(look)
    if found is None or (max_age is not None and store.clock() - found[1] > max_age):
        return None
    return found[0]


def put(store: Store, kind: str, key: str, value: bytes) -> None:
    """Remember ``value`` under ``kind`` and ``key``, in place of what was there."""
    row = (kind, key, value, seal(kind, key, value), store.clock())
    store.index.write(lambda db: db.execute("INSERT OR REPLACE INTO facts VALUES(?, ?, ?, ?, ?)", row))


def forget(store: Store, kind: str, key: str) -> None:
    """Forget what is under ``kind`` and ``key``, if anything."""
    store.index.write(lambda db: db.execute("DELETE FROM facts WHERE kind=? AND key=?", (kind, key)))
