"""Resources with the lifetime of a job: its cancellation, parallel work, and temporary directories."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress

from executor.rootfs.tree import Tree
from platforms.errors import Interrupted


class Cancellation:
    """The cancellation of a job. Thread-safe."""

    def __init__(self) -> None:
        self.future: Future[None] = Future()
        """Done when the job is cancelled, for calls that wait on a future."""
        self.event = threading.Event()
        """Set when the job is cancelled, for calls that wait on an event."""

    def cancel(self) -> None:
        """Cancel the job: steps are killed and waiting calls are woken."""
        self.event.set()
        with suppress(InvalidStateError):  # it was cancelled before
            self.future.set_result(None)

    @property
    def cancelled(self) -> bool:
        """Whether the job is cancelled."""
        return self.future.done()

    def check(self) -> None:
        """Raise ``Interrupted`` if the job is cancelled."""
        if self.cancelled:
            raise Interrupted("the build was cancelled")


class ScratchSpace:
    """Temporary directories of a job, and trees that stay open until it ends. Thread-safe."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        """The directory that holds them."""
        self._lock = threading.Lock()
        self._trees: list[Tree] = []

    def new(self) -> str:
        """Create a directory."""
        import tempfile

        return tempfile.mkdtemp(dir=self.directory)

    def keep(self, tree: Tree) -> Tree:
        """Return ``tree``, which ``close`` will close."""
        with self._lock:
            self._trees.append(tree)
        return tree

    def close(self) -> None:
        """Close all trees."""
        with self._lock:
            for tree in self._trees:
                tree.close()
            self._trees.clear()


def together(background: ThreadPoolExecutor, works: Sequence[Callable[[], object]]) -> None:
    """Run all of ``works`` in parallel. When all have ended, the first error of any is raised.

    The caller runs what has not been started in the ``background``: all of its threads may be waiting for the caller.
    """
    begun = [background.submit(work) for work in works[1:]]
    error: BaseException | None = None
    for number, work in enumerate(works):
        try:
            if number == 0 or begun[number - 1].cancel():
                work()
            else:
                begun[number - 1].result()
        except BaseException as raised:
            error = error or raised
    if error is not None:
        raise error
