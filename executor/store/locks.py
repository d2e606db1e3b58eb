"""Named locks between threads and processes: of several that want to do the same work, one does it (single flight).

Each acquisition opens the lock's file anew, so that flock(2) also excludes threads of the same process from each
other. The holder deletes the file before it lets go; whoever then gets a lock on a file that is no longer the one at
that path tries again. A lock is not reentrant, and death releases it.

Waiting is a blocking flock(2). In the main thread a signal handler that raises ends it (Ctrl-C does); a wait that
somebody else should be able to end takes ``cancel``, and then leaves the flock(2) to a thread of its own while it
waits for whatever comes first. Nothing polls.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from typing import TYPE_CHECKING

from executor.store.faults import translated
from platforms import debug
from platforms.errors import Interrupted
from platforms.paths import below

if TYPE_CHECKING:
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Any, Self

    from executor.store.store import Store


class Held:
    """A lock that is held, until ``release`` or the end of its ``with`` block."""

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd

    def release(self) -> None:
        """Let go of the lock."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            os.unlink(self._path)
        except OSError:
            pass  # it only takes an inode, and is as good a lock for the next holder
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # closing is not enough: a fork may have the descriptor, too
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock(store: Store, name: str, *, cancel: Future[Any] | None = None) -> Held:
    """The lock ``name``, waited for. ``Interrupted`` when ``cancel`` is done before."""
    with translated(store.root, f"cannot lock {name!r}"):
        path = _path(store, name)
        while True:
            fd = _open(path)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                debug.log("lock is taken: waiting", name=name)
                if cancel is not None:
                    _wait(fd, name, cancel)
                else:
                    _block(fd)
                debug.log("lock had", name=name)
            if _is_at(fd, path):
                return Held(path, fd)
            os.close(fd)


def try_lock(store: Store, name: str) -> Held | None:
    """The lock ``name``, or None when it is taken."""
    with translated(store.root, f"cannot lock {name!r}"):
        path = _path(store, name)
        while True:
            fd = _open(path)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return None
            if _is_at(fd, path):
                return Held(path, fd)
            os.close(fd)


def _path(store: Store, name: str) -> str:
    return below(store.root, "locks", hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32])


def _open(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _block(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        os.close(fd)
        raise


def _wait(fd: int, name: str, cancel: Future[Any]) -> None:
    """flock ``fd`` in a thread, until ``cancel`` is done. A thread that is given up on lets go of what it then gets."""
    import concurrent.futures
    import threading

    acquired: Future[None] = concurrent.futures.Future()

    def block() -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            if acquired.set_running_or_notify_cancel():
                acquired.set_exception(error)
        else:
            if acquired.set_running_or_notify_cancel():
                acquired.set_result(None)
                return
        os.close(fd)

    threading.Thread(target=block, name="kanifold-lock", daemon=True).start()
    try:
        concurrent.futures.wait((acquired, cancel), return_when=concurrent.futures.FIRST_COMPLETED)
    except BaseException:
        if not acquired.cancel():
            os.close(fd)
        raise
    if acquired.cancel():
        raise Interrupted(f"gave up waiting for {name!r}")
    acquired.result()
