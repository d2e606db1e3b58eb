"""Whether a store is consistent: every blob is hashed, every reference followed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from executor.store import blobs, cache_records, snapshots
from executor.store.index import CorruptIndexError
from platforms.errors import Problem
from platforms.paths import below

if TYPE_CHECKING:
    import sqlite3

    from executor.store.store import Store

_REMEDY = "it has been removed and will be made anew when it is needed"


def verify(store: Store) -> tuple[Problem, ...]:
    """Return what is wrong with the store; damaged blobs, snapshots and records are removed.

    Garbage of dead processes is no problem: ``prune`` removes it.
    """
    found: list[Problem] = []
    if damage := _damage(store):
        found.append(Problem("StoreError", "the index was damaged", damage, "it has been replaced by an empty one"))

    for identity, digest in store.index.read(lambda db: db.execute("SELECT id, digest FROM blobs").fetchall()):
        if blobs.hash_file(blobs.path(store, digest), digest) != digest and _has_blob(store, identity):
            blobs.remove_damaged(store, digest, identity)
            found.append(Problem("StoreError", f"the blob {digest} was missing or damaged", "", _REMEDY))

    def lost(db: sqlite3.Connection) -> list[int]:
        rows = db.execute("SELECT number FROM snapshots WHERE boot IS NULL OR boot=?", (store.boot,))
        return [n for (n,) in rows if not os.path.isdir(below(store.root, "snapshots", str(n), "fs"))]

    for number in store.index.read(lost):
        store.index.write(lambda db, number=number: snapshots.delete_row(db, number))  # type: ignore[misc]
        found.append(Problem("StoreError", f"the snapshot {number} was missing", "", _REMEDY))

    for key in store.index.read(lambda db: cache_records.dangling(db, store.boot)):
        cache_records.forget(store, key)
    return tuple(found)


def _damage(store: Store) -> str:
    """What SQLite's integrity check finds; "" if nothing. A damaged index is replaced by an empty one."""
    before = store.index._current()
    found: list[str] = []

    def check(db: sqlite3.Connection) -> None:
        if not found:
            found.extend(str(row[0]) for row in db.execute("PRAGMA integrity_check(20)"))
            if found != ["ok"]:
                raise CorruptIndexError("; ".join(found))

    store.index.read(check)
    if found != ["ok"]:
        return "; ".join(found)
    return "it could not be read" if before not in ("", store.index._current()) else ""


def _has_blob(store: Store, identity: int) -> bool:
    """False when the blob was pruned during the check, which is not damage."""
    row = store.index.read(lambda db: db.execute("SELECT 1 FROM blobs WHERE id=?", (identity,)).fetchone())
    return row is not None
