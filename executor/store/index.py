"""``index.db``: the SQLite database of the store's committed blobs and snapshots, cache records, stat cache and
metadata.

The journal is a write-ahead log with ``synchronous=NORMAL``: a transaction costs no fsync; a power failure may undo the
last ones but never damages the rest (https://sqlite.org/wal.html). The index is a cache: a damaged or outdated one is
set aside as ``index.db.corrupt-…`` with a warning, and replaced by an empty one.

``index.db`` is a symbolic link to ``index-<token>.db``; a new index gets a new name. SQLite finds the log of a database
by name and deletes it by name on close. With a fixed name, a process that still had the old database open would sooner
or later delete the log of the new one (https://sqlite.org/howtocorrupt.html, section 2.5).

Rows that determine the content of an image have a checksum of their fields (column ``seal``), because SQLite does not
detect a flipped bit within a value. A wrong checksum is treated as a damaged index.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
import zlib
from typing import TYPE_CHECKING, Final, TypeVar

from executor.store.faults import primary_code, sqlite_fault, translated
from executor.store.leases import flocked
from executor.store.ownership import claim_file
from platforms.errors import Problem, StoreError
from platforms.paths import below

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    Work = Callable[["sqlite3.Connection"], "T"]

T = TypeVar("T")

SCHEMA: Final = 3
"""The ``user_version`` that this code reads and writes."""
_BUSY_SECONDS: Final = 60.0
_DAMAGE: Final = frozenset({1, 11, 26})
"""SQLITE_ERROR (the statements are right, so the tables are not), SQLITE_CORRUPT and SQLITE_NOTADB."""

# ``boot`` is NULL for a row whose file was synced to disk, else the id of the boot in which it is valid.
_TABLES: Final = """
CREATE TABLE counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counters VALUES('snapshot', 0);
CREATE TABLE blobs(
    id INTEGER PRIMARY KEY AUTOINCREMENT, digest TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, boot TEXT,
    created REAL NOT NULL, used REAL NOT NULL);
CREATE TABLE snapshots(
    number INTEGER PRIMARY KEY, diff_id TEXT, seal INTEGER NOT NULL, size INTEGER NOT NULL,
    description TEXT NOT NULL, boot TEXT, created REAL NOT NULL, used REAL NOT NULL);
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


class CorruptIndexError(Exception):
    """The index is damaged. Raised within ``read`` and ``write``, which then replace the index."""


class OutdatedIndexError(CorruptIndexError):
    """The index has an earlier schema; it is replaced like a damaged one."""


def checksum(*parts: str | bytes | int | None) -> int:
    """Return the CRC-32 of ``parts``, framed so that ("ab", "c") and ("a", "bc") differ."""
    total = 0
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
        total = zlib.crc32(data, zlib.crc32(b"%d:" % len(data), total))
    return total


def number(value: object) -> float:
    """Return ``value``, from a numeric column, if it is a number: a flipped bit may change its type in SQLite."""
    if isinstance(value, int | float):
        return value
    raise CorruptIndexError("a number was expected")


class StoreIndex:
    """The database connection of one process, opened by its first use. Safe for threads and across forks."""

    def __init__(self, root: str, warn: Callable[[Problem], None]) -> None:
        self._root = root
        self._link = os.path.join(root, "index.db")
        self._lock = os.path.join(root, "locks/index")
        self._warn = warn
        self._mutex = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._name = ""
        self._pid = os.getpid()
        self._inherited: list[sqlite3.Connection | None] = []

    def read(self, work: Work[T]) -> T:
        """Return the result of ``work`` in a read transaction. ``work`` may be called again after damage, so it must
        only read."""
        return self._run(work, "BEGIN")

    def write(self, work: Work[T]) -> T:
        """Return the result of ``work`` in a write transaction, rolled back if it raises. It may be called again after
        damage."""
        return self._run(work, "BEGIN IMMEDIATE")

    def close(self) -> None:
        """Close the connection; the next use opens a new one."""
        self._check_fork()
        with self._mutex:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def _run(self, work: Work[T], begin: str) -> T:
        import sqlite3

        for last in (False, False, True):
            try:
                return self._attempt(work, begin)
            except (CorruptIndexError, UnicodeDecodeError, sqlite3.OperationalError, sqlite3.DatabaseError) as error:
                if isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError):
                    raise
                # Python raises errors without a code, or UnicodeDecodeError, for text that is not UTF-8.
                damaged = not isinstance(error, sqlite3.Error) or primary_code(error) in (-1, *_DAMAGE)
                if not damaged:
                    raise sqlite_fault(self._root, error) from error  # type: ignore[arg-type]
                if last:
                    raise StoreError(f"cannot use the index of the store {self._root}", why=str(error)) from error
                self._replace(error)
        raise AssertionError("unreachable")

    def _attempt(self, work: Work[T], begin: str) -> T:
        import sqlite3

        self._check_fork()
        with self._mutex:
            db = self._connected()
            db.execute(begin)
            try:
                result = work(db)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    with contextlib.suppress(sqlite3.Error):  # the first error is the relevant one
                        db.execute("ROLLBACK")
                raise
            return result

    def _check_fork(self) -> None:
        """In a forked child, reset the state: the mutex may be held by a thread that does not exist here, and the
        connection is the parent's, which may neither be used nor closed."""
        if self._pid != os.getpid():
            self._inherited.append(self._connection)
            self._mutex, self._connection, self._pid = threading.RLock(), None, os.getpid()

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None and self._name != self._current():
            self.close()  # another process has replaced the index
        while self._connection is None:
            with translated(self._root, f"cannot open the store {self._root}"):
                with flocked(self._lock, exclusive=False):
                    self._name = self._current()
                    if os.path.exists(below(self._root, self._name or "?")):
                        self._connection = self._open()
                        continue
                with flocked(self._lock, exclusive=True):
                    if not os.path.exists(self._link) or not self._current():
                        self._create()
        return self._connection

    def _current(self) -> str:
        """Return the name of the database that ``index.db`` points to; "" when there is none."""
        try:
            return os.path.basename(os.readlink(self._link))
        except FileNotFoundError:
            return ""
        except OSError as error:
            if error.errno == errno.EINVAL:  # a regular file, not made by kanifold
                return ""
            raise

    def _open(self) -> sqlite3.Connection:
        import sqlite3

        claim_file(self._root, self._name)
        db = sqlite3.connect(
            below(self._root, self._name),
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=64,
        )
        try:
            db.execute("PRAGMA synchronous=NORMAL")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (mark,) = db.execute("PRAGMA application_id").fetchone()
        except BaseException:
            db.close()
            raise
        if version == SCHEMA and mark == _application_id(version):
            return db
        db.close()
        if version > SCHEMA and mark == _application_id(version):
            raise StoreError(
                f"cannot use the store {self._root}",
                why=f"a newer kanifold has made it (its schema is {version}; this one knows {SCHEMA})",
                remedy="update kanifold, or choose another place with --root or KANIFOLD_ROOT",
            )
        if version < SCHEMA and mark == _application_id(version):
            raise OutdatedIndexError(f"its schema is {version}; this version's is {SCHEMA}")
        raise CorruptIndexError(f"its schema is {version}, which this version does not know")

    def _create(self) -> None:
        """Create a database and make ``index.db`` point to it. The lock is held."""
        import sqlite3

        token = os.urandom(6).hex()
        name = f"index-{token}.db"
        # SQLite creates the -wal and -shm files with the mode of the database.
        os.close(os.open(below(self._root, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(below(self._root, name), isolation_level=None)
        try:
            marks = f"PRAGMA user_version={SCHEMA}; PRAGMA application_id={_application_id(SCHEMA)};"
            db.executescript(f"BEGIN; {_TABLES} {marks} COMMIT;")
            # Last, so that there is no log to copy on close, which does not report a failure. Where the file system
            # does not support shared memory, the journal mode stays the default, which works as well.
            db.execute("PRAGMA journal_mode=WAL")
        finally:
            db.close()
        if os.path.lexists(self._link) and not os.path.islink(self._link):
            os.rename(self._link, f"{self._link}.corrupt-{int(time.time())}-{token}")
        link = below(self._root, f"index-{token}.link")
        os.symlink(name, link)
        os.rename(link, self._link)

    def _replace(self, error: Exception) -> None:
        """Create a new index and set the old one aside, unless another process has done so."""
        with self._mutex, translated(self._root, f"cannot repair the index of the store {self._root}"):
            self.close()
            with flocked(self._lock, exclusive=True):
                if self._current() != self._name:
                    return
                self._create()
                aside = f"{self._link}.corrupt-{int(time.time())}-{os.urandom(3).hex()}"
                with contextlib.suppress(FileNotFoundError):
                    os.rename(below(self._root, self._name), aside)
        reason = "is of an earlier kanifold" if isinstance(error, OutdatedIndexError) else "was damaged"
        self._warn(
            Problem(
                "StoreError",
                f"the index of the store {self._root} {reason} and has been replaced by an empty one",
                str(error),
                f"builds go on without their cache; the old one is {aside}",
            )
        )


def _application_id(version: int) -> int:
    """Return the ``application_id`` for the schema ``version``: a flipped bit in either makes them inconsistent."""
    return zlib.crc32(b"kanifold index %d" % version) >> 1
