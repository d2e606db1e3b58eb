"""Who uses what: one lease file per session, locked while its process lives.

A session is one open store in one process. Its file ``leases/<token>`` lists what it uses, one line each, ``+thing``
when it begins to and ``-thing`` when it ends. The session holds flock(2) on that file, so that whoever can lock it
knows that the session is dead. Things are ``s12`` (snapshot 12), ``bsha256:…`` (a blob), ``c…`` (a cache directory).

A session writes to its file under the *gate* (``locks/gate``), shared; ``prune`` decides and removes under the gate,
exclusively. So a thing is either seen as leased, or gone before its lease was written, which the session notices by
looking for the thing *after* leasing it.

Locks are taken in this order, so that nobody waits in a circle: a session's mutex, the gate, the index. Nothing leases
inside of a transaction.
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
    """flock(2) on the lasting file ``path``, waiting for it. Released explicitly, as forks may share the descriptor."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _take(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, path)
        try:
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def _take(fd: int, kind: int, path: str) -> None:
    if debug.on:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            debug.log("lock is taken: waiting", name=path)
        else:
            return
    fcntl.flock(fd, kind)


def gate(root: str) -> str:
    """The path of the gate."""
    return os.path.join(root, "locks/gate")


class Session:
    """This process's leases. Safe for threads; a forked child begins a session of its own."""

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

    def _look_for_fork(self) -> None:
        """In a forked child, begin anew: the mutex may be held by a thread that is not here."""
        if self._pid != os.getpid():
            if self._fd >= 0:
                os.close(self._fd)  # the parent has it too, and with it the lock
            self._reset()

    def temporary(self) -> str:
        """A fresh path under ``tmp`` that stays this session's own; nothing is there yet."""
        self._look_for_fork()
        with self._mutex, translated(self._root, "cannot make a temporary file"):
            self._begin()
            self._made += 1
            return below(self._root, "tmp", f"{self._token}.{self._made}")

    def hold(self, *things: str) -> None:
        """Lease ``things``, each as often as ``drop`` will be called for it. Look whether they exist afterwards."""
        self._look_for_fork()
        with self._mutex, translated(self._root, "cannot note what is in use"):
            self._begin()
            new = [each for each in dict.fromkeys(things) if each not in self._counts]
            if new:
                with flocked(gate(self._root), exclusive=False):
                    self._append("".join(f"+{each}\n" for each in new))
                debug.log("leased", things=",".join(new))
            for each in things:
                self._counts[each] = self._counts.get(each, 0) + 1

    def keep(self, thing: str) -> None:
        """Lease ``thing`` until the session ends; once is enough."""
        self._look_for_fork()
        with self._mutex:
            held = thing in self._counts
        if not held:
            self.hold(thing)

    def drop(self, *things: str) -> None:
        """Give up a lease of each of ``things``."""
        self._look_for_fork()
        with self._mutex:
            gone = []
            for each in things:
                left = self._counts.get(each, 0) - 1
                if left > 0:
                    self._counts[each] = left
                elif self._counts.pop(each, 0):
                    gone.append(each)
            if gone:
                debug.log("lease given up", things=",".join(gone))
                with contextlib.suppress(OSError):  # on a full disk they are given up when the session ends
                    self._append("".join(f"-{each}\n" for each in gone))

    def close(self) -> None:
        """End the session: all leases are given up."""
        self._look_for_fork()
        with self._mutex:
            if self._fd >= 0:
                debug.log("store session ends", lease=self._token)
                with contextlib.suppress(OSError):  # without its lock it is garbage anyway
                    os.unlink(self._path())
                fcntl.flock(self._fd, fcntl.LOCK_UN)  # closing is not enough: a fork may have the descriptor, too
                os.close(self._fd)
            self._fd, self._token, self._counts = -1, "", {}

    def _path(self) -> str:
        return below(self._root, "leases", self._token)

    def _begin(self) -> None:
        if self._fd >= 0:
            return
        token = os.urandom(8).hex()
        with flocked(gate(self._root), exclusive=False):
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
        except OSError:  # a full disk takes a part of it, and then says so
            os.ftruncate(self._fd, before)
            raise


def live(root: str) -> tuple[frozenset[str], frozenset[str]]:
    """The tokens of the living sessions, and all things they use. The gate must be held exclusively."""
    tokens: set[str] = set()
    things: set[str] = set()
    for path in _files(root):
        with _held(path) as fd:
            if fd is not None:
                tokens.add(os.path.basename(path))
                things |= _things(fd)
    return frozenset(tokens), frozenset(things)


def bury(root: str) -> None:
    """Remove the lease files of the dead, of whom nothing is left. The gate must be held exclusively."""
    for path in _files(root):
        with _held(path) as fd:
            if fd is None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)


def has_dead(root: str) -> bool:
    """Whether a process has died, or is about to begin, without ending its session. Needs no gate."""
    for path in _files(root):
        with _held(path) as fd:
            if fd is None and os.path.exists(path):
                return True
    return False


def _files(root: str) -> list[str]:
    folder = os.path.join(root, "leases")
    return [below(folder, token) for token in os.listdir(folder)]


@contextmanager
def _held(path: str) -> Iterator[int | None]:
    """The lease file ``path`` to be read, while its session lives; None when that is dead, or has just ended."""
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


def _things(fd: int) -> set[str]:
    found: set[str] = set()
    with open(fd, encoding="utf-8", closefd=False) as lines:
        for line in lines:
            if not line.endswith("\n"):
                break  # being written: of what is only half there, a lease cannot be given up yet
            if line[0] == "+":
                found.add(line[1:-1])
            else:
                found.discard(line[1:-1])
    return found
