"""Named locks between threads and processes, so that one of several does the same work (single flight).

Each acquisition opens the lock's file again, so that flock(2) also excludes threads of the same process. The holder
deletes the file before it unlocks; whoever then gets a lock on a file that is no longer at that path tries again. A
lock is not reentrant; it is released when its holder dies.

Waiting is a blocking flock(2). In the main thread a signal handler that raises interrupts it (Ctrl-C does). With
``cancel``, flock(2) is called on another thread while the caller waits for it or for ``cancel``. There is no polling.
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


class Lock:
    """A lock that is held until ``release`` or the end of its ``with`` block."""

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd

    def release(self) -> None:
        """Release the lock."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            os.unlink(self._path)
        except OSError:
            pass  # the next holder can use the file
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # closing is not enough: a forked process may have the descriptor
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock(store: Store, name: str, *, cancel: Future[Any] | None = None) -> Lock:
    """Acquire the lock ``name``, waiting for it. Raises ``Interrupted`` when ``cancel`` is done before."""
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
                return Lock(path, fd)
            os.close(fd)


def try_lock(store: Store, name: str) -> Lock | None:
    """Acquire the lock ``name``; None when it is taken."""
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
                return Lock(path, fd)
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
    """flock(2) ``fd`` in a thread, until ``cancel`` is done. An abandoned thread releases the lock that it then
    gets."""
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
