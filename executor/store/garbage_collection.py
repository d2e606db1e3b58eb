"""Garbage collection: keeping the store within its policy (``policy``), after each build and during one on a full disk.

The check is cheap: sums of the index, the last measured sizes of cache directories, and one statvfs(3). If it demands
it, resources are removed in BuildKit's order and never below ``reserved``: cache directories that were not used for two
days, what was not used for ``keep``, and then the least recently used until the store has its size and the disk its
free space. The store then goes somewhat below the limit, so that not every build at the limit has to do this. What a
living process uses is never removed; what killed processes have left is removed at once.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from executor.store import cachemounts, leases, locks, snapshots
from executor.store.index import number
from executor.store.policy import Disk, Policy, disk
from platforms.errors import StoreError

if TYPE_CHECKING:
    import sqlite3
    from concurrent.futures import Future
    from typing import Any

    from executor.store.prune import Pruned, UsageInfo
    from executor.store.store import Store

_MOUNT_SECONDS: Final = 48 * 3600.0
"""Seconds without use after which a cache directory is removed first (BuildKit's first rule)."""
_MEASURED_SECONDS: Final = 3600.0
"""Seconds for which the measured size of a cache directory is used although steps have used it since."""
_SLACK: Final = 10
"""The store goes below a limit by this fraction (1/n) of it."""
_SCARCE_BYTES: Final = 1 << 30
_SCARCE_PART: Final = 20
"""A disk is nearly full with less than ``_SCARCE_BYTES``, or this fraction (1/n) of it, free, whichever is less."""
_LOOK_SECONDS: Final = 0.5
_PAUSE: Final = 60
"""Number of checks that are skipped after nothing could be removed."""


def is_due(store: Store, policy: Policy) -> bool:
    """Whether ``collect`` would remove anything."""
    if not policy.enabled:
        return False
    if leases.has_dead(store.root):
        return True

    def sums(db: sqlite3.Connection) -> tuple[int, float]:
        kept = snapshots.kept(db)
        rows = [db.execute("SELECT sum(size), min(used) FROM blobs").fetchone()]
        removable = f"number NOT IN ({', '.join(map(str, kept))})"
        rows.append(db.execute(f"SELECT sum(size), min(used) FROM snapshots WHERE {removable}").fetchone())
        used = [number(each[1]) for each in rows if each[1] is not None]
        return sum(int(number(each[0] or 0)) for each in rows), min(used, default=store.clock())

    now = store.clock()
    total, oldest = store.index.read(sums)
    mounts = cachemounts.list_all(store)
    total += sum(each.size for each in mounts)
    if total <= policy.reserved:
        return False
    oldest = min((each.last_used for each in mounts), default=oldest) if policy.keep else oldest
    return (
        bool(policy.max_used and total > policy.max_used)
        or (disk(store.root).free < policy.min_free)
        or bool(policy.keep and now - oldest > policy.keep)
        or any(now - each.last_used > _MOUNT_SECONDS for each in mounts)
    )


def collect(store: Store, policy: Policy) -> Pruned:
    """Remove what exceeds ``policy``; nothing when another process is doing that. Raises ``StoreError``."""
    from executor.store import prune  # when there may be something to remove

    held = locks.try_lock(store, "keeping")
    if held is None:
        return prune.Pruned(0, ())
    with held:
        free, now = disk(store.root).free, store.clock()

        def choose(rows: list[UsageInfo]) -> Iterator[UsageInfo]:
            # Records are not leased, and their time of use is written when the session that found them ends.
            alone = len(leases.live(store.root)[0]) <= 1
            return _select([row for row in rows if alone or row.kind != "record"], policy, free, now)

        return prune.sweep(store, choose, now - prune.FORGET_SECONDS)


def _select(rows: list[UsageInfo], policy: Policy, free: int, now: float) -> Iterator[UsageInfo]:
    left = total = sum(row.size for row in rows)
    limit = total
    if policy.max_used and total > policy.max_used:
        limit = policy.max_used - policy.max_used // _SLACK
    if free < policy.min_free:
        limit = min(limit, total - (policy.min_free + policy.min_free // _SLACK - free))
    rules: tuple[tuple[Callable[[UsageInfo], bool], int], ...] = (
        (lambda row: row.kind == "cache-mount" and now - row.last_used > _MOUNT_SECONDS, policy.reserved),
        (lambda row: bool(policy.keep) and now - row.last_used > policy.keep, policy.reserved),
        (lambda row: row.kind != "record", max(limit, policy.reserved)),
    )
    waiting = sorted((row for row in rows if not row.in_use), key=lambda row: (row.last_used, row.created))
    for concerns, least in rules:
        others: list[UsageInfo] = []
        for row in waiting:
            if left > least and concerns(row):
                left -= row.size
                yield row
            else:
                others.append(row)
        waiting = others


def is_scarce(root: str) -> bool:
    """Whether the disk of the store at ``root`` is nearly full."""
    found = disk(root)
    return found.free < _scarcity_threshold(found)


def _scarcity_threshold(found: Disk) -> int:
    return min(_SCARCE_BYTES, found.total // _SCARCE_PART)


def make_room(store: Store, wanted: int = 0, cancel: Future[Any] | None = None) -> Pruned:
    """Remove the least recently used until ``wanted`` bytes of the disk are free, and twice the threshold of
    ``is_scarce``.

    For builds that would fail otherwise: ``reserved`` is ignored. Waits for another process that is removing. Raises
    ``StoreError``, and ``Interrupted`` when ``cancel`` is done.
    """
    from executor.store import prune  # when a build needs room

    with locks.lock(store, "keeping", cancel=cancel):
        found = disk(store.root)
        missing = max(wanted, 2 * _scarcity_threshold(found)) - found.free

        def oldest(rows: list[UsageInfo]) -> Iterator[UsageInfo]:
            left = missing
            for row in sorted(rows, key=lambda row: (row.last_used, row.created)):
                if left > 0 and not row.in_use and row.kind != "record":
                    left -= row.size
                    yield row

        return prune.sweep(store, oldest, store.clock() - prune.FORGET_SECONDS)


def measure(store: Store, age: float = _MEASURED_SECONDS) -> None:
    """Measure the cache directories that were used since they were last measured, at least ``age`` seconds ago."""
    now = store.clock()
    for each in cachemounts.list_all(store):
        if each.last_used >= each.measured and now - each.measured >= age:
            cachemounts.measure(store, each)


class DiskMonitor:
    """Makes room on the disk while a build runs, on a thread of its own."""

    def __init__(self, open_store: Callable[[], Store], root: str, removed: Callable[[Pruned], None]) -> None:
        self._open = open_store
        self._root = root
        self._removed = removed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="disk", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        pause = 0
        while True:
            if pause:
                pause -= 1
            elif is_scarce(self._root):
                with contextlib.suppress(StoreError, OSError), self._open() as store:
                    done = make_room(store)
                    if done.removed:
                        self._removed(done)
                if is_scarce(self._root):
                    pause = _PAUSE
            if self._stop.wait(_LOOK_SECONDS):
                return

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._thread.join()
