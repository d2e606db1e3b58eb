"""Making committed blobs and snapshots survive a power failure, with one sync for all."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from executor.store.faults import os_fault
from platforms import syscalls

if TYPE_CHECKING:
    import sqlite3

    from executor.store.store import Store


WRITTEN_BACK: Final = 35.0
"""Seconds after which the kernel has written back nearly all changed pages (vm.dirty_expire_centisecs)."""


def sync(store: Store, age: float = 0.0) -> int:
    """Write the store's file system to disk, and mark what any process committed before as durable.

    Called beside a build for what was committed at least ``age`` seconds ago; to sync newer data would make that build
    wait for the disk. What is not synced is lost only by a power failure. Returns the number of blobs and snapshots
    that were marked. On a write error all of them are invalidated, and ``StoreError`` is raised.
    """

    now = time.time()
    values = (store.boot, now - age, now)

    def pending(db: sqlite3.Connection) -> tuple[list[tuple[int]], list[tuple[int]]]:
        # Rows from the future: the clock was set back.
        which = "WHERE boot=? AND (created<=? OR created>?)"
        return (
            db.execute(f"SELECT id FROM blobs {which}", values).fetchall(),
            db.execute(f"SELECT number FROM snapshots {which}", values).fetchall(),
        )

    blobs, snapshots = store.index.read(pending)
    if not blobs and not snapshots:
        return 0

    def mark(boot: str | None) -> None:
        def write(db: sqlite3.Connection) -> None:
            # A blob that was written again has another id: only files that were synced are marked.
            db.executemany("UPDATE blobs SET boot=? WHERE id=?", ((boot, *each) for each in blobs))
            db.executemany("UPDATE snapshots SET boot=? WHERE number=?", ((boot, *each) for each in snapshots))

        store.index.write(write)

    try:
        _syncfs(store.root)
    except OSError as error:
        mark("")
        raise os_fault(store.root, f"cannot write the store {store.root} to its disk", error) from error
    mark(None)
    return len(blobs) + len(snapshots)


def _syncfs(root: str) -> None:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.syncfs(fd)
    finally:
        os.close(fd)
