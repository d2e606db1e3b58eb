"""Cache records: the result of a step by its cache key, with references to the snapshots and blobs that it needs.

The value is the caller's (JSON, say). A record is found only while everything that it refers to exists; that is then
leased until the store is closed, and marked as used together with the record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor.store import blobs, snapshots
from executor.store.index import CorruptIndexError, checksum, number
from executor.store.snapshots import Snapshot

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from executor.store.store import Store


def get(store: Store, key: str) -> bytes | None:
    """Return the value under ``key``; None when there is none, or when something that it refers to is gone."""

    def look(db: sqlite3.Connection) -> tuple[bytes, float, list[str]] | None:
        row = db.execute("SELECT value, seal, used FROM records WHERE key=?", (key,)).fetchone()
        if row is None:
            return None
        resources = [
            str(each[0]) for each in db.execute("SELECT thing FROM refs WHERE record=? ORDER BY thing", (key,))
        ]
        if not isinstance(row[0], bytes) or row[1] != checksum(key, row[0], *resources):
            raise CorruptIndexError("the checksum of a cache record does not match")
        return row[0], number(row[2]), resources

    found = store.index.read(look)
    if found is None:
        return None
    value, used, resources = found
    for resource in resources:
        there = (
            snapshots.get(store, int(resource[1:])) is not None
            if resource.startswith("s")
            else blobs.find(store, resource[1:]) is not None
        )
        if not there:
            forget(store, key)
            return None
    store.touch("records", key, used)
    return value


def put(store: Store, key: str, value: bytes, *, refers: Iterable[Snapshot | str] = (), description: str = "") -> None:
    """Store ``value`` under ``key``, replacing an earlier one.

    ``refers``: the snapshots, and the digests of the blobs, without which the record is invalid. ``description`` is for
    display.
    """
    resources = sorted({f"s{each.number}" if isinstance(each, Snapshot) else f"b{each}" for each in refers})
    now = store.clock()

    def write(db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT OR REPLACE INTO records VALUES(?, ?, ?, ?, ?, ?)",
            (key, value, description, checksum(key, value, *resources), now, now),
        )
        db.execute("DELETE FROM refs WHERE record=?", (key,))
        db.executemany("INSERT INTO refs VALUES(?, ?)", ((key, each) for each in resources))

    store.index.write(write)


def forget(store: Store, key: str) -> None:
    """Remove the record under ``key``, if there is one. What it refers to stays."""

    store.index.write(lambda db: delete_row(db, key))


def delete_row(db: sqlite3.Connection, key: str) -> None:
    """Delete the record under ``key`` and its references."""
    db.execute("DELETE FROM records WHERE key=?", (key,))
    db.execute("DELETE FROM refs WHERE record=?", (key,))


def dangling(db: sqlite3.Connection, boot: str) -> frozenset[str]:
    """Return the keys of records that refer to something without a row, or without one that is valid in ``boot``."""
    found = db.execute(
        "SELECT DISTINCT record FROM refs WHERE thing NOT IN (SELECT 'b' || digest FROM blobs UNION ALL"
        " SELECT 's' || number FROM snapshots WHERE boot IS NULL OR boot=?)",
        (boot,),
    )
    return frozenset(str(key) for (key,) in found)
