"""What lasts as long as a job: whether it is to end, work in its background, and its temporary directories."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress

from executor.rootfs.tree import Tree
from platforms.errors import Interrupted


class Cancellation:
    """Whether a job is to end. Safe for threads."""

    def __init__(self) -> None:
        self.future: Future[None] = Future()
        """Done when the job is to end; waiting calls take it."""
        self.event = threading.Event()
        """Set when the job is to end, for what waits for an event."""

    def cancel(self) -> None:
        """End the job: steps are killed, whatever waits is woken."""
        self.event.set()
        with suppress(InvalidStateError):  # it was cancelled before
            self.future.set_result(None)

    @property
    def cancelled(self) -> bool:
        """Whether the job is to end."""
        return self.future.done()

    def check(self) -> None:
        """Raise ``Interrupted`` when the job is to end."""
        if self.cancelled:
            raise Interrupted("the build was cancelled")


class ScratchSpace:
    """Temporary directories of a job, and trees that stay open until it ends. Safe for threads."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        """For what lives as long as the job."""
        self._lock = threading.Lock()
        self._trees: list[Tree] = []

    def new(self) -> str:
        """A new directory."""
        import tempfile

        return tempfile.mkdtemp(dir=self.directory)

    def keep(self, tree: Tree) -> Tree:
        """``tree``, which will be closed with the others."""
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
    """Do all of ``works`` at once; the first error of any is raised when all have ended.

    What the ``background`` has no thread for is done by the caller, for whom all of its threads may be waiting.
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
