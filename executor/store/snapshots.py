"""Snapshots: directories with what one step changed or one layer contains (``executor.snapshotter.layers``).

As in containerd, an active snapshot is written by its maker; ``commit`` makes it a ``Snapshot`` that is found by its
keys: the layer's diff id if it does not depend on its parents, its chain id if it does, or any other text. A commit
moves nothing, so that what is mounted on the snapshot may stay.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

import msgspec

from executor.store import index
from executor.store.faults import translated
from executor.store.index import CorruptIndexError, checksum
from executor.store.removal import remove_tree
from platforms import debug
from platforms.errors import StoreError
from platforms.paths import below

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

    from executor.store.store import Store


KEPT: Final = "kept: "
"""Snapshots with a key that begins so are not removed, whatever is asked for, until the key is."""


class ActiveSnapshot(msgspec.Struct, frozen=True):
    """A snapshot that is being written: ``fs`` gets its files, ``work`` is for what that takes."""

    number: int
    fs: str
    work: str


class Snapshot(msgspec.Struct, frozen=True):
    """A committed snapshot; ``fs`` must not be written to. ``size`` in bytes, as given at the commit."""

    number: int
    fs: str
    diff_id: str | None
    size: int


def prepare(store: Store) -> ActiveSnapshot:
    """Return a new, empty active snapshot. It exists until it is committed or discarded, or this process dies."""
    with translated(store.root, "cannot make a snapshot"):
        while True:
            number = store.index.write(_next_number)
            store.session.lease_until_closed(f"s{number}")
            top = _directory_of(store, number)
            try:
                os.mkdir(top, 0o700)
                break
            except FileExistsError:
                # The index was replaced by an empty one: continue after the snapshots of the former one.
                store.session.release(f"s{number}")
                last = max(int(each) for each in os.listdir(os.path.join(store.root, "snapshots")) if each.isdecimal())
                store.index.write(lambda db, last=last: _raise_number(db, last))  # type: ignore[misc]
        made = ActiveSnapshot(number, os.path.join(top, "fs"), os.path.join(top, "work"))
        os.mkdir(made.fs, 0o755)
        os.mkdir(made.work, 0o700)
        return made


def commit(
    store: Store,
    draft: ActiveSnapshot,
    *,
    diff_id: str | None,
    size: int,
    keys: Iterable[str] = (),
    description: str = "",
) -> Snapshot:
    """Commit ``draft``: from now on it is found by its ``diff_id`` (if not None) and ``keys``.

    ``size``: bytes of disk that ``usage`` reports. ``description`` is for display. A key that another process's
    snapshot has got first stays with that one.
    """
    with translated(store.root, "cannot finish a snapshot"):
        remove_tree(draft.work)
    now = store.clock()
    names = (*((diff_id,) if diff_id is not None else ()), *keys)

    def write(db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO snapshots VALUES(?, ?, ?, ?, ?, ?, ?, ?)",
            (draft.number, diff_id, checksum(draft.number, diff_id), size, description, store.boot, now, now),
        )
        for key in names:
            _set_name(db, store, draft.number, key)

    store.index.write(write)
    debug.log("snapshot made", number=draft.number, bytes=size, names=",".join(names))
    return Snapshot(draft.number, draft.fs, diff_id, size)


def discard(store: Store, draft: ActiveSnapshot) -> None:
    """Delete ``draft``, as far as possible; ``prune`` removes what is left."""
    with contextlib.suppress(OSError):
        trash = store.session.temporary()
        os.rename(_directory_of(store, draft.number), trash)
        remove_tree(trash)
    store.session.release(f"s{draft.number}")


def find(store: Store, key: str) -> Snapshot | None:
    """Return the snapshot with the key ``key``; it is then leased until the store is closed, and marked as used."""

    def look(db: sqlite3.Connection) -> int | None:
        row = db.execute("SELECT snapshot, seal FROM names WHERE key=?", (key,)).fetchone()
        if row is None:
            return None
        if row[1] != checksum(key, row[0]):
            raise CorruptIndexError("the checksum of a snapshot's name does not match")
        return int(row[0])

    number = store.index.read(look)
    return get(store, number) if number is not None else None


def get(store: Store, number: int) -> Snapshot | None:
    """Return the snapshot ``number``; it is then leased until the store is closed, and marked as used."""
    store.session.lease_until_closed(f"s{number}")

    def look(db: sqlite3.Connection) -> tuple[str | None, int, str | None, float] | None:
        query = "SELECT diff_id, seal, size, boot, used FROM snapshots WHERE number=?"
        row = db.execute(query, (number,)).fetchone()
        if row is None:
            return None
        if row[1] != checksum(number, row[0]):
            raise CorruptIndexError("the checksum of a snapshot does not match")
        return row[0], row[2], row[3], index.number(row[4])

    row = store.index.read(look)
    fs = os.path.join(_directory_of(store, number), "fs")
    if row is None or row[2] not in (None, store.boot) or not os.path.isdir(fs):
        return None
    store.touch("snapshots", number, row[3])
    return Snapshot(number, fs, row[0], row[1])


def name(store: Store, snapshot: Snapshot, key: str, *, diff_id: str | None = None) -> Snapshot:
    """Add ``key`` to the keys of ``snapshot``, and record its ``diff_id`` if given.

    A key of another existing snapshot stays with that one.
    """

    def write(db: sqlite3.Connection) -> None:
        _set_name(db, store, snapshot.number, key)
        if diff_id is not None:
            sealed = checksum(snapshot.number, diff_id)
            db.execute("UPDATE snapshots SET diff_id=?, seal=? WHERE number=?", (diff_id, sealed, snapshot.number))

    store.index.write(write)
    return Snapshot(snapshot.number, snapshot.fs, diff_id or snapshot.diff_id, snapshot.size)


def forget(store: Store, key: str) -> bool:
    """Remove ``key`` from the snapshot that has it; False if none has."""
    return store.index.write(lambda db: db.execute("DELETE FROM names WHERE key=?", (key,)).rowcount) > 0


def kept(db: sqlite3.Connection) -> frozenset[int]:
    """Return the numbers of the snapshots that are not to be removed."""
    query = "SELECT snapshot FROM names WHERE key>=? AND key<?"
    return frozenset(number for (number,) in db.execute(query, (KEPT, KEPT[:-1] + "!")))


def lease(store: Store, *snapshots: Snapshot | int) -> Lease:
    """Return a lease of ``snapshots``, a context manager that keeps them from being pruned.

    For numbers that were found by another process: what this process has found or made is leased anyway. Raises
    ``StoreError`` when one is gone.
    """
    return Lease(store, tuple(each if isinstance(each, int) else each.number for each in snapshots))


class Lease:
    """A lease of snapshots until it is released or the process dies."""

    def __init__(self, store: Store, numbers: tuple[int, ...]) -> None:
        self._store = store
        self._resources = tuple(f"s{each}" for each in numbers)
        store.session.lease(*self._resources)
        for number in numbers:
            if get(store, number) is None:
                self.release()
                raise StoreError(
                    f"the snapshot {number} is gone", why="it was pruned", remedy="build again: it will be made anew"
                )

    def release(self) -> None:
        """Release the lease."""
        resources, self._resources = self._resources, ()
        self._store.session.release(*resources)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def delete_row(db: sqlite3.Connection, number: int) -> None:
    """Delete the row of the snapshot ``number`` and its keys; the caller removes its directory."""
    db.execute("DELETE FROM snapshots WHERE number=?", (number,))
    db.execute("DELETE FROM names WHERE snapshot=?", (number,))


def _directory_of(store: Store, number: int) -> str:
    return below(store.root, "snapshots", str(number))


def _next_number(db: sqlite3.Connection) -> int:
    (number,) = db.execute("UPDATE counters SET value=value+1 WHERE name='snapshot' RETURNING value").fetchone()
    return int(number)


def _raise_number(db: sqlite3.Connection, last: int) -> None:
    db.execute("UPDATE counters SET value=max(value, ?) WHERE name='snapshot'", (last,))


def _set_name(db: sqlite3.Connection, store: Store, number: int, key: str) -> None:
    taken = db.execute(
        "SELECT s.number, s.boot FROM names n JOIN snapshots s ON s.number=n.snapshot WHERE n.key=?", (key,)
    ).fetchone()
    if (
        taken is not None
        and taken[1] in (None, store.boot)
        and os.path.isdir(os.path.join(_directory_of(store, taken[0]), "fs"))
    ):
        return
    db.execute("INSERT OR REPLACE INTO names VALUES(?, ?, ?)", (key, number, checksum(key, number)))
