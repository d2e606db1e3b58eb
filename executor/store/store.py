"""The store itself: where it is, and the one handle that all modules of this package take."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from executor.store.faults import translated
from executor.store.index import Index
from executor.store.leases import Session
from executor.store.ownership import claim
from platforms.errors import StoreError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from platforms.errors import Problem

_DIRECTORIES: Final = ("blobs", "blobs/sha256", "snapshots", "cache", "tmp", "tmp/partial", "leases", "locks")
_FLAGS: Final = struct.Struct("@Ixxxx" if struct.calcsize("l") == 8 else "@I")
"""linux/fs.h: an int where the number of the call says long."""
_GETFLAGS: Final = 0x80006601 | _FLAGS.size << 16
_SETFLAGS: Final = 0x40006602 | _FLAGS.size << 16
_TOPDIR: Final = 0x00020000
_RESERVE: Final = "reserve"
_RESERVE_BYTES: Final = 512 << 10
_TOUCH_SECONDS: Final = 600.0
"""A time of last use is written again only when it is older than this: a cached build should write nothing."""


class Store:
    """An open store. Safe for threads and across forks; every process opens its own.

    Closing it gives up the leases of everything that was found or made through it.
    """

    def __init__(self, root: str, warn: Callable[[Problem], None], clock: Callable[[], float]) -> None:
        self.root: Final = root
        self.index: Final = Index(root, warn)
        self.session: Final = Session(root)
        self.clock: Final = clock
        """Seconds since the epoch."""
        self.boot: Final = _boot_id()
        self._touched: dict[tuple[str, str | int], float] = {}
        self._mutex = threading.Lock()

    def touch(self, table: str, key: str | int, used: float) -> None:
        """Note that the row ``key`` of ``table``, last used at ``used``, is used now; written with ``flush``."""
        now = self.clock()
        if now - used > _TOUCH_SECONDS:
            with self._mutex:
                self._touched[table, key] = now

    def flush(self) -> None:
        """Write the times of use that were noted."""
        with self._mutex:
            touched, self._touched = self._touched, {}
        if not touched:
            return

        def write(db: sqlite3.Connection) -> None:
            for (table, key), now in touched.items():
                column = {"blobs": "digest", "snapshots": "number", "records": "key"}[table]
                db.execute(f"UPDATE {table} SET used=max(used, ?) WHERE {column}=?", (now, key))

        self.index.write(write)

    def close(self) -> None:
        """Write what is left to write, and end all leases."""
        with contextlib.suppress(StoreError):  # losing a time of use is no reason to fail
            self.flush()
        self.session.close()
        self.index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_store(
    root: str | None = None,
    *,
    warn: Callable[[Problem], None] | None = None,
    clock: Callable[[], float] = time.time,
) -> Store:
    """The store at ``root`` ("" or None: ``default_root()``), its directories made when they are missing.

    It is this user's alone, or refused (``executor.store.ownership``).

    Nothing is scanned, and the index is opened by its first use. ``warn`` hears of a damaged index (default: a line on
    stderr). Raises ``StoreError``.
    """
    root = os.path.abspath(root or default_root())
    with translated(root, f"cannot open the store {root}"):
        if claim(root, _DIRECTORIES, (_RESERVE,)):
            _spread(os.path.join(root, "snapshots"))
            put_by(root)
        if not os.access(root, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), root)
    return Store(root, warn or _say, clock)


def _spread(directory: str) -> None:
    """Let ext4 make each directory in ``directory`` somewhere else on the disk (chattr(1), ``+T``).

    It would make them next to each other, where others were deleted before; and the inodes of what was deleted in the
    last minutes it does not hand out, but passes over one by one, for every file that is made. Where much is deleted,
    unpacking a base takes three times as long for that. Other file systems have nothing of this kind.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        (flags,) = _FLAGS.unpack(fcntl.ioctl(fd, _GETFLAGS, bytes(_FLAGS.size)))
        fcntl.ioctl(fd, _SETFLAGS, _FLAGS.pack(flags | _TOPDIR))
    except OSError:
        pass
    finally:
        os.close(fd)


def put_by(root: str) -> None:
    """Put some space by, which ``prune`` spends on its own book-keeping when the disk is full."""
    fd = os.open(os.path.join(root, _RESERVE), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, _RESERVE_BYTES)
    except OSError:
        spend(root)
        raise
    finally:
        os.close(fd)


def spend(root: str) -> None:
    """Free what ``put_by`` has put by."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(root, _RESERVE))


def default_root() -> str:
    """``KANIFOLD_ROOT``, else ``$XDG_DATA_HOME/kanifold``, else ``~/.local/share/kanifold``, for root like anybody.

    A relative XDG_DATA_HOME is ignored, as the XDG Base Directory Specification demands.
    """
    if named := os.environ.get("KANIFOLD_ROOT"):
        return named
    data = os.environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(data):
        data = os.path.expanduser("~/.local/share")
    return os.path.join(data, "kanifold")


def _boot_id() -> str:
    """What the kernel calls this boot (random(4)); where it does not say, nothing is taken for this boot's."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "unknown-" + os.urandom(8).hex()


def _say(problem: Problem) -> None:
    print(f"warning: {problem.what}: {problem.why}; {problem.remedy}", file=sys.stderr, flush=True)
