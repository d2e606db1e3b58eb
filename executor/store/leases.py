"""Leases: which resources are in use, in one lease file for each session, locked while its process lives.

A session is one open store in one process. Its file ``leases/<token>`` has a line ``+resource`` for each resource that
it begins to use, and ``-resource`` when it ends. The session holds flock(2) on the file, so whoever can lock it knows
that the session is dead. Resources are ``s12`` (snapshot 12), ``bsha256:…`` (a blob) and ``c…`` (a cache directory).

A session writes to its file under the lease lock (``locks/gate``), shared; ``prune`` selects and removes under it,
exclusively. So a resource is either seen as leased, or was removed before its lease was written, which the session
notices by looking for it *after* leasing it.

Locks are taken in this order to avoid deadlocks: a session's mutex, the lease lock, the index. No lease is taken within
a transaction.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from executor.store.faults import translated
from platforms import debug
from platforms.descriptors import write_all
from platforms.paths import below

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def flocked(path: str, *, exclusive: bool) -> Iterator[None]:
    """Hold flock(2) on the permanent file ``path``. Released explicitly, as forked processes may share the
    descriptor."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, path)
        try:
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


@contextmanager
def flocked_if_free(fd: int) -> Iterator[bool]:
    """Hold flock(2) on ``fd`` alone, and close it in the end; yields False if it is locked already."""
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def _flock(fd: int, kind: int, path: str) -> None:
    if debug.on:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            debug.log("lock is taken: waiting", name=path)
        else:
            return
    fcntl.flock(fd, kind)


def lease_lock(root: str) -> str:
    """Return the path of the lease lock."""
    return os.path.join(root, "locks/gate")


class LeaseSession:
    """The leases of this process. Safe for threads; a forked child starts a session of its own."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._reset()

    def _reset(self) -> None:
        self._mutex = threading.Lock()
        self._pid = os.getpid()
        self._fd = -1
        self._token = ""
        self._counts: dict[str, int] = {}
        self._made = 0

    def _check_fork(self) -> None:
        """In a forked child, reset the state: the mutex may be held by a thread that does not exist here."""
        if self._pid != os.getpid():
            if self._fd >= 0:
                os.close(self._fd)  # the parent has it too, and with it the lock
            self._reset()

    def temporary(self) -> str:
        """Return a new path under ``tmp`` that belongs to this session; nothing exists there."""
        self._check_fork()
        with self._mutex, translated(self._root, "cannot make a temporary file"):
            self._begin()
            self._made += 1
            return below(self._root, "tmp", f"{self._token}.{self._made}")

    def lease(self, *resources: str) -> None:
        """Lease ``resources``, each until ``release`` was called as often. Check afterwards that they exist."""
        self._check_fork()
        with self._mutex, translated(self._root, "cannot note what is in use"):
            self._begin()
            new = [each for each in dict.fromkeys(resources) if each not in self._counts]
            if new:
                with flocked(lease_lock(self._root), exclusive=False):
                    self._append("".join(f"+{each}\n" for each in new))
                debug.log("leased", things=",".join(new))
            for each in resources:
                self._counts[each] = self._counts.get(each, 0) + 1

    def lease_until_closed(self, resource: str) -> None:
        """Lease ``resource`` until the session ends. Idempotent."""
        self._check_fork()
        with self._mutex:
            held = resource in self._counts
        if not held:
            self.lease(resource)

    def release(self, *resources: str) -> None:
        """Release one lease of each of ``resources``."""
        self._check_fork()
        with self._mutex:
            gone = []
            for each in resources:
                left = self._counts.get(each, 0) - 1
                if left > 0:
                    self._counts[each] = left
                elif self._counts.pop(each, 0):
                    gone.append(each)
            if gone:
                debug.log("lease given up", things=",".join(gone))
                with contextlib.suppress(OSError):  # on a full disk they are released when the session ends
                    self._append("".join(f"-{each}\n" for each in gone))

    def close(self) -> None:
        """End the session and release all leases."""
        self._check_fork()
        with self._mutex:
            if self._fd >= 0:
                debug.log("store session ends", lease=self._token)
                with contextlib.suppress(OSError):  # without its lock it is garbage anyway
                    os.unlink(self._path())
                fcntl.flock(self._fd, fcntl.LOCK_UN)  # closing is not enough: a forked process may have the descriptor
                os.close(self._fd)
            self._fd, self._token, self._counts = -1, "", {}

    def _path(self) -> str:
        return below(self._root, "leases", self._token)

    def _begin(self) -> None:
        if self._fd >= 0:
            return
        token = os.urandom(8).hex()
        with flocked(lease_lock(self._root), exclusive=False):
            path = below(self._root, "leases", token)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
        self._token, self._fd = token, fd
        debug.log("store session begins", lease=token, root=self._root)

    def _append(self, lines: str) -> None:
        data = lines.encode()
        before = os.fstat(self._fd).st_size
        try:
            write_all(self._fd, data)
        except OSError:  # a full disk accepts a part and then fails
            os.ftruncate(self._fd, before)
            raise


def live(root: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the tokens of the living sessions, and the resources that they lease. The lease lock must be held
    exclusively."""
    tokens: set[str] = set()
    resources: set[str] = set()
    for path in _lease_files(root):
        with _live_lease(path) as fd:
            if fd is not None:
                tokens.add(os.path.basename(path))
                resources |= _read_names(fd)
    return frozenset(tokens), frozenset(resources)


def remove_dead(root: str) -> None:
    """Remove the lease files of dead sessions. The lease lock must be held exclusively."""
    for path in _lease_files(root):
        with _live_lease(path) as fd:
            if fd is None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)


def has_dead(root: str) -> bool:
    """Whether a process has died without ending its session, or is about to begin one. Needs no lock."""
    for path in _lease_files(root):
        with _live_lease(path) as fd:
            if fd is None and os.path.exists(path):
                return True
    return False


def _lease_files(root: str) -> list[str]:
    folder = os.path.join(root, "leases")
    return [below(folder, token) for token in os.listdir(folder)]


@contextmanager
def _live_lease(path: str) -> Iterator[int | None]:
    """Yield a descriptor of the lease file ``path`` while its session lives; None when that is dead or has ended."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield None
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield fd
        else:
            yield None
    finally:
        os.close(fd)


def _read_names(fd: int) -> set[str]:
    found: set[str] = set()
    with open(fd, encoding="utf-8", closefd=False) as lines:
        for line in lines:
            if not line.endswith("\n"):
                break  # being written; not complete yet
            if line[0] == "+":
                found.add(line[1:-1])
            else:
                found.discard(line[1:-1])
    return found
