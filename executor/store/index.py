"""``index.db``: the SQLite database that says which files of the store are whole, and what is known about them.

The journal is a write-ahead log with ``synchronous=NORMAL``: a transaction costs no fsync, a power failure may undo
the last ones, and never damages the rest (https://sqlite.org/wal.html). Losing the index loses a cache, no more: a
damaged or outdated one is set aside as ``index.db.corrupt-…`` with a warning, and an empty one takes its place.

Rows that decide what an image is made of carry a seal, a checksum over their fields, because SQLite does not notice a
flipped bit inside of a value. A broken seal is damage like any other.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import zlib
from typing import TYPE_CHECKING, Final, TypeVar

from executor.store.faults import primary_code, sqlite_fault, translated
from executor.store.leases import flocked
from platforms.errors import Problem, StoreError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    Work = Callable[["sqlite3.Connection"], "T"]

T = TypeVar("T")

SCHEMA: Final = 1
"""The ``user_version`` that this code reads and writes."""
_BUSY_SECONDS: Final = 60.0
_DAMAGE: Final = frozenset({11, 26})
"""SQLITE_CORRUPT and SQLITE_NOTADB."""
_MOVED: Final = 8 | 4 << 8
"""SQLITE_READONLY_DBMOVED: another process has set the database aside."""

# ``boot`` is NULL for a row whose file is known to be on disk, else the id of the boot it is valid in.
_TABLES: Final = """
CREATE TABLE counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counters VALUES('snapshot', 0);
CREATE TABLE blobs(
    id INTEGER PRIMARY KEY AUTOINCREMENT, digest TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, boot TEXT,
    created REAL NOT NULL, used REAL NOT NULL);
CREATE TABLE snapshots(
    number INTEGER PRIMARY KEY, diff_id TEXT, size INTEGER NOT NULL, description TEXT NOT NULL, boot TEXT,
    created REAL NOT NULL, used REAL NOT NULL);
CREATE TABLE names(key TEXT PRIMARY KEY, snapshot INTEGER NOT NULL, seal INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX names_by_snapshot ON names(snapshot);
CREATE TABLE records(
    key TEXT PRIMARY KEY, value BLOB NOT NULL, description TEXT NOT NULL, seal INTEGER NOT NULL,
    created REAL NOT NULL, used REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE refs(record TEXT NOT NULL, thing TEXT NOT NULL, PRIMARY KEY(record, thing)) WITHOUT ROWID;
CREATE INDEX refs_by_thing ON refs(thing);
CREATE TABLE files(
    path BLOB PRIMARY KEY, stamp BLOB NOT NULL, digest TEXT NOT NULL, seal INTEGER NOT NULL,
    created INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE facts(
    kind TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, seal INTEGER NOT NULL, created REAL NOT NULL,
    PRIMARY KEY(kind, key)) WITHOUT ROWID;
"""


class DamagedError(Exception):
    """A row's seal is broken. Raised inside of ``read`` and ``write``, which then begin a new index."""


def seal(*parts: str | bytes | int | None) -> int:
    """A checksum over ``parts``, framed so that ("ab", "c") and ("a", "bc") differ."""
    total = 0
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
        total = zlib.crc32(data, zlib.crc32(b"%d:" % len(data), total))
    return total


class Index:
    """The connection of one process. Safe for threads and across forks; opened by its first use."""

    def __init__(self, root: str, warn: Callable[[Problem], None]) -> None:
        self._root = root
        self._path = os.path.join(root, "index.db")
        self._warn = warn
        self._mutex = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._pid = os.getpid()
        self._opened = (0, 0)
        self._inherited: list[sqlite3.Connection] = []

    def read(self, work: Work[T]) -> T:
        """``work``'s result, in one read transaction. It may be called again after damage, so it must only read."""
        return self._run(work, "BEGIN")

    def write(self, work: Work[T]) -> T:
        """``work``'s result, in one write transaction, undone when it raises. It may be called again after damage."""
        return self._run(work, "BEGIN IMMEDIATE")

    def damage(self) -> str:
        """What SQLite's own check finds wrong; "" when nothing. The index is set aside by the next use if so."""

        import sqlite3

        def check(db: sqlite3.Connection) -> str:
            found = [str(row[0]) for row in db.execute("PRAGMA integrity_check(20)")]
            if found != ["ok"]:
                raise DamagedError("; ".join(found))
            return ""

        try:
            self._attempt(check, "BEGIN")
        except (DamagedError, sqlite3.DatabaseError) as error:
            if not self._is_damage(error):
                raise self._fault(error) from error
            self._replace(str(error))
            return str(error)
        return ""

    def close(self) -> None:
        """Close the connection; the next use opens another one."""
        with self._mutex:
            connection, self._connection = self._connection, None
            if connection is not None and self._pid == os.getpid():
                connection.close()

    def _run(self, work: Work[T], begin: str) -> T:
        import sqlite3

        for attempt in range(3):
            try:
                return self._attempt(work, begin)
            except (DamagedError, sqlite3.Error) as error:
                moved = getattr(error, "sqlite_errorcode", None) == _MOVED
                if attempt == 2 or not (moved or self._is_damage(error)):
                    raise self._fault(error) from error
                if moved:
                    self.close()
                else:
                    self._replace(str(error))
        raise AssertionError("unreachable")

    def _attempt(self, work: Work[T], begin: str) -> T:
        import sqlite3

        with self._mutex:
            db = self._connected()
            db.execute(begin)
            try:
                result = work(db)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    with contextlib.suppress(sqlite3.Error):  # the first error tells more
                        db.execute("ROLLBACK")
                raise
            return result

    @staticmethod
    def _is_damage(error: Exception) -> bool:
        return isinstance(error, DamagedError) or primary_code(error) in _DAMAGE  # type: ignore[arg-type]

    def _fault(self, error: Exception) -> StoreError:
        if isinstance(error, DamagedError):
            return StoreError(f"cannot use the index of the store {self._root}", why=str(error))
        return sqlite_fault(self._root, error)  # type: ignore[arg-type]

    def _connected(self) -> sqlite3.Connection:
        if self._pid != os.getpid():
            # After a fork the connection is the parent's: neither used here nor closed, which would touch its files.
            if self._connection is not None:
                self._inherited.append(self._connection)
            self._connection, self._pid = None, os.getpid()
        while self._connection is None:
            with translated(self._root, f"cannot open the store {self._root}"):
                with flocked(self._lock(), exclusive=False):
                    self._opened = _identity(self._path)
                    if self._opened != (0, 0):
                        self._connection = self._open()
                        continue
                with flocked(self._lock(), exclusive=True):
                    if not os.path.exists(self._path):
                        self._create()
        return self._connection

    def _lock(self) -> str:
        return os.path.join(self._root, "locks/index")

    def _open(self) -> sqlite3.Connection:
        import sqlite3

        db = sqlite3.connect(
            self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            db.execute("PRAGMA synchronous=NORMAL")
            (version,) = db.execute("PRAGMA user_version").fetchone()
        except BaseException:
            db.close()
            raise
        if version == SCHEMA:
            return db
        db.close()
        if version > SCHEMA:
            raise StoreError(
                f"cannot use the store {self._root}",
                why=f"a newer kanifold has made it (its schema is {version}; this one knows {SCHEMA})",
                remedy="update kanifold, or choose another place with --root or KANIFOLD_ROOT",
            )
        raise DamagedError(f"its schema is {version}, which this version does not know")

    def _create(self) -> None:
        """A whole new database, renamed into place; logs left by an earlier one go first. The lock is held."""
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(self._path + suffix, self._aside(suffix))
        import sqlite3

        draft = self._path + ".new"
        for suffix in ("", "-wal", "-shm", "-journal"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft + suffix)  # its maker died
        db = sqlite3.connect(draft, isolation_level=None)
        try:
            db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version={SCHEMA}; COMMIT;")
            # Last, so that closing has nothing to copy from a log: a close does not tell when that fails. Where the
            # file system cannot share memory, the mode stays what it was, and that works as well.
            db.execute("PRAGMA journal_mode=WAL")
        finally:
            db.close()
        os.rename(draft, self._path)

    def _replace(self, why: str) -> None:
        """Set the damaged database aside, unless another process has done so already."""
        with self._mutex, translated(self._root, f"cannot repair the index of the store {self._root}"):
            self.close()
            with flocked(self._lock(), exclusive=True):
                if _identity(self._path) != self._opened:
                    return
                aside = self._aside("")
                # The database first: SQLite ignores a log without a database, but not a database without its log.
                with contextlib.suppress(FileNotFoundError):
                    os.rename(self._path, aside)
                self._create()
        self._warn(
            Problem(
                "StoreError",
                f"the index of the store {self._root} was damaged and has been replaced by an empty one",
                why,
                f"builds go on without their cache; the old one is {aside}",
            )
        )

    def _aside(self, suffix: str) -> str:
        return f"{self._path}.corrupt-{int(time.time())}-{os.urandom(3).hex()}{suffix}"


def _identity(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return (0, 0)
    return found.st_dev, found.st_ino
