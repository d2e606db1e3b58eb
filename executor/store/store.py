"""Opening a store, and the handle that all functions of this package take."""

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
from executor.store.index import StoreIndex
from executor.store.leases import LeaseSession
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
"""linux/fs.h: the argument is an int, although the ioctl's number says long."""
_GET_FLAGS: Final = 0x80006601 | _FLAGS.size << 16
_SET_FLAGS: Final = 0x40006602 | _FLAGS.size << 16
_TOP: Final = 0x20000
"""FS_TOPDIR_FL"""
_RESERVE: Final = "reserve"
_RESERVE_BYTES: Final = 512 << 10
_TOUCH_SECONDS: Final = 600.0
"""A time of last use is updated only when it is older than this, so that a cached build writes nothing."""


class Store:
    """An open store. Safe for threads and across forks; every process opens its own.

    Closing it releases the leases of everything that was found or made through it.
    """

    def __init__(self, root: str, warn: Callable[[Problem], None], clock: Callable[[], float]) -> None:
        self.root: Final = root
        self.index: Final = StoreIndex(root, warn)
        self.session: Final = LeaseSession(root)
        self.clock: Final = clock
        """Seconds since the epoch."""
        self.boot: Final = _boot_id()
        self._touched: dict[tuple[str, str | int], float] = {}
        self._mutex = threading.Lock()

    def touch(self, table: str, key: str | int, used: float) -> None:
        """Record that the row ``key`` of ``table``, last used at ``used``, is used now; written by ``flush``."""
        now = self.clock()
        if now - used > _TOUCH_SECONDS:
            with self._mutex:
                self._touched[table, key] = now

    def flush(self) -> None:
        """Write the recorded times of use."""
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
        """Write the times of use and release all leases."""
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
    """Open the store at ``root`` ("" or None: ``default_root()``); missing directories are made.

    The store must belong to this user alone (``executor.store.ownership``). The index is opened by its first use.
    ``warn`` is called for a damaged index (default: a line on stderr). Raises ``StoreError``.
    """
    root = os.path.abspath(root or default_root())
    with translated(root, f"cannot open the store {root}"):
        if claim(root, _DIRECTORIES, (_RESERVE,)):
            spread(os.path.join(root, "snapshots"))
            reserve_space(root)
        if not os.access(root, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), root)
    return Store(root, warn or _print_warning, clock)


def spread(directory: str) -> None:
    """Set the top-directory flag (chattr(1), ``+T``) on ``directory``, so that ext4 spreads its subdirectories over the
    disk, each to a place chosen by its name.

    Otherwise ext4 allocates them close together, where others were deleted. Inodes that were deleted in the last
    minutes are not reused but skipped one by one for every new file (without a journal: fs/ext4/ialloc.c,
    recently_deleted), so that a file may take half a millisecond. Other file systems have no such flag.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        (flags,) = _FLAGS.unpack(fcntl.ioctl(fd, _GET_FLAGS, bytes(_FLAGS.size)))
        fcntl.ioctl(fd, _SET_FLAGS, _FLAGS.pack(flags | _TOP))
    except OSError:
        pass
    finally:
        os.close(fd)


def reserve_space(root: str) -> None:
    """Reserve disk space for the bookkeeping of ``prune`` on a full disk."""
    fd = os.open(os.path.join(root, _RESERVE), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if sys.platform == "linux":
            os.posix_fallocate(fd, 0, _RESERVE_BYTES)
        else:
            os.pwrite(fd, bytes(_RESERVE_BYTES), 0)
    except OSError:
        release_reserve(root)
        raise
    finally:
        os.close(fd)


def release_reserve(root: str) -> None:
    """Free the space that ``reserve_space`` reserved."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(root, _RESERVE))


def default_root() -> str:
    """Return ``KANIFOLD_ROOT``, else ``$XDG_DATA_HOME/kanifold``, else ``~/.local/share/kanifold``, also for root.

    A relative XDG_DATA_HOME is ignored (XDG Base Directory Specification).
    """
    if named := os.environ.get("KANIFOLD_ROOT"):
        return named
    data = os.environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(data):
        data = os.path.expanduser("~/.local/share")
    return os.path.join(data, "kanifold")


def _boot_id() -> str:
    """Return the id of this boot (random(4)); if there is none, one that no row has."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "unknown-" + os.urandom(8).hex()


def _print_warning(problem: Problem) -> None:
    print(f"warning: {problem.what}: {problem.why}; {problem.remedy}", file=sys.stderr, flush=True)
