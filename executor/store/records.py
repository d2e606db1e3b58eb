"""Cache records: what a key has led to, with the snapshots and blobs that it needs.

The value is the caller's (JSON, say). A record is found only while all that it refers to is there; what it refers to
is then leased until the store is closed, and counts as used together with the record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor.store import blobs, snapshots
from executor.store.index import DamagedError, number, seal
from executor.store.snapshots import Snapshot

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from executor.store.store import Store


def get(store: Store, key: str) -> bytes | None:
    """The value under ``key``; None when there is none, or when something it refers to is gone."""

    def look(db: sqlite3.Connection) -> tuple[bytes, float, list[str]] | None:
        row = db.execute("SELECT value, seal, used FROM records WHERE key=?", (key,)).fetchone()
        if row is None:
            return None
        things = [str(each[0]) for each in db.execute("SELECT thing FROM refs WHERE record=? ORDER BY thing", (key,))]
        if not isinstance(row[0], bytes) or row[1] != seal(key, row[0], *things):
            raise DamagedError("the checksum of a cache record does not match")
        return row[0], number(row[2]), things

    found = store.index.read(look)
    if found is None:
        return None
    value, used, things = found
    for thing in things:
        there = (
            snapshots.get(store, int(thing[1:])) is not None
            if thing.startswith("s")
            else blobs.find(store, thing[1:]) is not None
        )
        if not there:
            forget(store, key)
            return None
    store.touch("records", key, used)
    return value


def put(store: Store, key: str, value: bytes, *, refers: Iterable[Snapshot | str] = (), description: str = "") -> None:
    """Record ``value`` under ``key``, in place of what was there.

    ``refers`` are the snapshots and the blobs (by digest) without which it means nothing; ``description`` is for
    people.
    """
    things = sorted({f"s{each.number}" if isinstance(each, Snapshot) else f"b{each}" for each in refers})
    now = store.clock()

    def write(db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT OR REPLACE INTO records VALUES(?, ?, ?, ?, ?, ?)",
            (key, value, description, seal(key, value, *things), now, now),
        )
        db.execute("DELETE FROM refs WHERE record=?", (key,))
        db.executemany("INSERT INTO refs VALUES(?, ?)", ((key, each) for each in things))

    store.index.write(write)


def forget(store: Store, key: str) -> None:
    """Remove the record under ``key``, if there is one. What it referred to stays."""

    store.index.write(lambda db: drop_row(db, key))


def drop_row(db: sqlite3.Connection, key: str) -> None:
    """Remove the record under ``key``."""
    db.execute("DELETE FROM records WHERE key=?", (key,))
    db.execute("DELETE FROM refs WHERE record=?", (key,))


def dangling(db: sqlite3.Connection, boot: str) -> frozenset[str]:
    """The keys of records that refer to something that has no row, or none that is valid in ``boot``."""
    found = db.execute(
        "SELECT DISTINCT record FROM refs WHERE thing NOT IN (SELECT 'b' || digest FROM blobs UNION ALL"
        " SELECT 's' || number FROM snapshots WHERE boot IS NULL OR boot=?)",
        (boot,),
    )
    return frozenset(str(key) for (key,) in found)
