"""Settling: making what was committed survive a power failure, with one sync for all of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from executor.store.faults import os_fault
from platforms import syscalls

if TYPE_CHECKING:
    import sqlite3

    from executor.store.store import Store


def settle(store: Store) -> int:
    """Write the store's file system to disk, and mark what was committed before, by any process, as durable.

    Called once at the end of a build, or beside the next one: what is not settled is lost only by a power failure.
    Returns how many blobs and snapshots were marked. When the disk reports that something could not be written,
    none of it is trusted any longer, and ``StoreError`` is raised.
    """

    def pending(db: sqlite3.Connection) -> tuple[list[tuple[int]], list[tuple[int]]]:
        return (
            db.execute("SELECT id FROM blobs WHERE boot=?", (store.boot,)).fetchall(),
            db.execute("SELECT number FROM snapshots WHERE boot=?", (store.boot,)).fetchall(),
        )

    blobs, snapshots = store.index.read(pending)
    if not blobs and not snapshots:
        return 0

    def mark(boot: str | None) -> None:
        def write(db: sqlite3.Connection) -> None:
            # A blob's id changes when it is written anew: only those files that the sync has seen are marked.
            db.executemany("UPDATE blobs SET boot=? WHERE id=?", ((boot, *each) for each in blobs))
            db.executemany("UPDATE snapshots SET boot=? WHERE number=?", ((boot, *each) for each in snapshots))

        store.index.write(write)

    try:
        _sync(store.root)
    except OSError as error:
        mark("")
        raise os_fault(store.root, f"cannot write the store {store.root} to its disk", error) from error
    mark(None)
    return len(blobs) + len(snapshots)


def _sync(root: str) -> None:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.syncfs(fd)
    finally:
        os.close(fd)
