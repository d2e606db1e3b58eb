"""Settling: making what was committed survive a power failure, with one sync for all of it."""

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
"""Seconds after which the kernel has written out by itself what was changed, or nearly (vm.dirty_expire_centisecs)."""


def settle(store: Store, age: float = 0.0) -> int:
    """Write the store's file system to disk, and mark what was committed before, by any process, as durable.

    Called beside a build, for what was committed ``age`` seconds ago or earlier: to sync what has just been written
    would make that build wait for the disk. What is not settled is lost only by a power failure.
    Returns how many blobs and snapshots were marked. When the disk reports that something could not be written,
    none of it is trusted any longer, and ``StoreError`` is raised.
    """

    now = time.time()
    values = (store.boot, now - age, now)

    def pending(db: sqlite3.Connection) -> tuple[list[tuple[int]], list[tuple[int]]]:
        # Who has set the clock back is not made to wait until it has caught up.
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
