"""Snapshots: the directories that hold what one step changed, or what one layer contains, in overlay's own format.

A ``Draft`` belongs to its maker; ``commit`` makes it a ``Snapshot`` that others find by its keys: the layer's diff id
when it stands for itself, its chain id when it needed its parents, or any other text. Nothing is moved at a commit,
so that an overlay mounted on the draft may stay.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import msgspec

from executor.store import index
from executor.store.faults import translated
from executor.store.index import DamagedError, seal
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


class Draft(msgspec.Struct, frozen=True):
    """A snapshot in the making: ``fs`` is its overlay upper directory, ``work`` overlay's work directory."""

    number: int
    fs: str
    work: str


class Snapshot(msgspec.Struct, frozen=True):
    """A finished snapshot; ``fs`` must not be written to. ``size`` in bytes, as its maker gave it."""

    number: int
    fs: str
    diff_id: str | None
    size: int


def draft(store: Store) -> Draft:
    """A new, empty draft, which stays until it is committed or discarded, or this process dies."""
    with translated(store.root, "cannot make a snapshot"):
        while True:
            number = store.index.write(_next_number)
            store.session.keep(f"s{number}")
            top = _top(store, number)
            try:
                os.mkdir(top, 0o700)
                break
            except FileExistsError:
                # The index was replaced by an empty one: go on after what the former one has left.
                store.session.drop(f"s{number}")
                last = max(int(each) for each in os.listdir(os.path.join(store.root, "snapshots")) if each.isdecimal())
                store.index.write(lambda db, last=last: _raise_number(db, last))  # type: ignore[misc]
        made = Draft(number, os.path.join(top, "fs"), os.path.join(top, "work"))
        os.mkdir(made.fs, 0o755)
        os.mkdir(made.work, 0o700)
        return made


def commit(
    store: Store,
    draft: Draft,
    *,
    diff_id: str | None,
    size: int,
    keys: Iterable[str] = (),
    description: str = "",
) -> Snapshot:
    """Finish ``draft``: from now on it is found by its ``diff_id`` (when not None) and ``keys``.

    ``size`` in bytes of disk is what ``usage`` will count; ``description`` is for people. When another process was
    faster, a key stays with that process's snapshot.
    """
    with translated(store.root, "cannot finish a snapshot"):
        remove_tree(draft.work)
    now = store.clock()
    names = (*((diff_id,) if diff_id is not None else ()), *keys)

    def write(db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO snapshots VALUES(?, ?, ?, ?, ?, ?, ?, ?)",
            (draft.number, diff_id, seal(draft.number, diff_id), size, description, store.boot, now, now),
        )
        for key in names:
            _name(db, store, draft.number, key)

    store.index.write(write)
    debug.log("snapshot made", number=draft.number, bytes=size, names=",".join(names))
    return Snapshot(draft.number, draft.fs, diff_id, size)


def discard(store: Store, draft: Draft) -> None:
    """Delete ``draft``, as far as that is possible; ``prune`` tells about what is left."""
    with contextlib.suppress(OSError):
        trash = store.session.temporary()
        os.rename(_top(store, draft.number), trash)
        remove_tree(trash)
    store.session.drop(f"s{draft.number}")


def find(store: Store, key: str) -> Snapshot | None:
    """The snapshot that ``key`` names; it is then leased until the store is closed, and counts as used."""

    def look(db: sqlite3.Connection) -> int | None:
        row = db.execute("SELECT snapshot, seal FROM names WHERE key=?", (key,)).fetchone()
        if row is None:
            return None
        if row[1] != seal(key, row[0]):
            raise DamagedError("the checksum of a snapshot's name does not match")
        return int(row[0])

    number = store.index.read(look)
    return get(store, number) if number is not None else None


def by_diff_id(store: Store, diff_id: str) -> Snapshot | None:
    """The snapshot of the layer ``diff_id`` for itself: ``find`` under a name that says so."""
    return find(store, diff_id)


def get(store: Store, number: int) -> Snapshot | None:
    """The snapshot ``number`` when it is there; it is then leased until the store is closed, and counts as used."""
    store.session.keep(f"s{number}")

    def look(db: sqlite3.Connection) -> tuple[str | None, int, str | None, float] | None:
        query = "SELECT diff_id, seal, size, boot, used FROM snapshots WHERE number=?"
        row = db.execute(query, (number,)).fetchone()
        if row is None:
            return None
        if row[1] != seal(number, row[0]):
            raise DamagedError("the checksum of a snapshot does not match")
        return row[0], row[2], row[3], index.number(row[4])

    row = store.index.read(look)
    fs = os.path.join(_top(store, number), "fs")
    if row is None or row[2] not in (None, store.boot) or not os.path.isdir(fs):
        return None
    store.touch("snapshots", number, row[3])
    return Snapshot(number, fs, row[0], row[1])


def name(store: Store, snapshot: Snapshot, key: str, *, diff_id: str | None = None) -> Snapshot:
    """Let ``key`` name ``snapshot`` too, and record its ``diff_id`` when that has become known.

    A key that names another, existing snapshot stays with that one.
    """

    def write(db: sqlite3.Connection) -> None:
        _name(db, store, snapshot.number, key)
        if diff_id is not None:
            sealed = seal(snapshot.number, diff_id)
            db.execute("UPDATE snapshots SET diff_id=?, seal=? WHERE number=?", (diff_id, sealed, snapshot.number))

    store.index.write(write)
    return Snapshot(snapshot.number, snapshot.fs, diff_id or snapshot.diff_id, snapshot.size)


def use(store: Store, *snapshots: Snapshot | int) -> Lease:
    """A lease of ``snapshots``, to be held while they are used: a context manager.

    What this process itself has found or made is leased anyway; this is for numbers that came from elsewhere. Raises
    ``StoreError`` when one is gone.
    """
    return Lease(store, tuple(each if isinstance(each, int) else each.number for each in snapshots))


class Lease:
    """Keeps snapshots in place until it is released or the process dies."""

    def __init__(self, store: Store, numbers: tuple[int, ...]) -> None:
        self._store = store
        self._things = tuple(f"s{each}" for each in numbers)
        store.session.hold(*self._things)
        for number in numbers:
            if get(store, number) is None:
                self.release()
                raise StoreError(
                    f"the snapshot {number} is gone", why="it was pruned", remedy="build again: it will be made anew"
                )

    def release(self) -> None:
        """Give the lease up."""
        things, self._things = self._things, ()
        self._store.session.drop(*things)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def drop_row(db: sqlite3.Connection, number: int) -> None:
    """Remove the row of the snapshot ``number`` and its names; its directory is the caller's business."""
    db.execute("DELETE FROM snapshots WHERE number=?", (number,))
    db.execute("DELETE FROM names WHERE snapshot=?", (number,))


def _top(store: Store, number: int) -> str:
    return below(store.root, "snapshots", str(number))


def _next_number(db: sqlite3.Connection) -> int:
    (number,) = db.execute("UPDATE counters SET value=value+1 WHERE name='snapshot' RETURNING value").fetchone()
    return int(number)


def _raise_number(db: sqlite3.Connection, last: int) -> None:
    db.execute("UPDATE counters SET value=max(value, ?) WHERE name='snapshot'", (last,))


def _name(db: sqlite3.Connection, store: Store, number: int, key: str) -> None:
    taken = db.execute(
        "SELECT s.number, s.boot FROM names n JOIN snapshots s ON s.number=n.snapshot WHERE n.key=?", (key,)
    ).fetchone()
    if (
        taken is not None
        and taken[1] in (None, store.boot)
        and os.path.isdir(os.path.join(_top(store, taken[0]), "fs"))
    ):
        return
    db.execute("INSERT OR REPLACE INTO names VALUES(?, ?, ?)", (key, number, seal(key, number)))
