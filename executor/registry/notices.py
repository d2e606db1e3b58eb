"""Notices of a registry client to its user: requests that wait for an answer, and messages of registries.

A request without an answer for ``QUIET_SECONDS`` is reported, again every ``AGAIN_SECONDS``, and once more when it is
over. A transfer counts as waiting only while no bytes move.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

QUIET_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 15.0


class Wait(msgspec.Struct, frozen=True, tag=True):
    """A request that waits for its answer."""

    registry: str
    """The host that was asked, which may be a mirror."""
    what: str
    """``resolve debian:12``: identifies the wait."""
    seconds: float = 0.0
    why: str = ""
    """Why the last attempt failed, if it is being tried again."""
    over: bool = False


class Remark(msgspec.Struct, frozen=True, tag=True):
    """A message about a registry for the user."""

    text: str


Notice = Wait | Remark
Tell = Callable[[Notice], None]
"""Receives notices, one at a time, from any thread."""


class _SlowRequest:
    """A request that is being made."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.registry = ""
        self.why = ""
        self.told = False
        self.since = time.monotonic()
        self.due = self.since + QUIET_SECONDS

    def notice(self, *, over: bool = False) -> Wait:
        return Wait(self.registry, self.what, time.monotonic() - self.since, self.why, over)


class WaitMonitor:
    """Reports the requests of one client that wait for an answer. Thread-safe; a thread makes one request at a time."""

    def __init__(self, tell: Tell | None) -> None:
        self._tell = tell
        self._changed = threading.Condition()
        self._open: set[_SlowRequest] = set()
        self._here = threading.local()
        self._thread: threading.Thread | None = None
        self._closed = False

    @contextmanager
    def over(self, what: str) -> Iterator[None]:
        """Watch the requests in the ``with`` block, which are made to ``what``. A nested block belongs to the outer
        one."""
        if self._tell is None or self._question() is not None:
            yield
            return
        question = self._here.question = _SlowRequest(what)
        self._begin(question)
        try:
            yield
        finally:
            self._here.question = None
            with self._changed:
                self._open.discard(question)
                if question.told:
                    self._tell(question.notice(over=True))

    def waiting_for(self, registry: str) -> None:
        """This thread waits for ``registry`` now."""
        if (question := self._question()) is not None:
            question.registry = registry

    def retrying(self, why: str) -> None:
        """The request of this thread failed with ``why``, and will be tried again."""
        if (question := self._question()) is not None:
            question.why = why

    def progress(self) -> None:
        """Bytes have moved in the transfer of this thread."""
        if self._tell is None or (question := self._question()) is None:
            return
        if question.told:
            with self._changed:
                question.told = False
                self._tell(question.notice(over=True))
        question.since = time.monotonic()
        question.due = question.since + QUIET_SECONDS
        question.why = ""

    def close(self) -> None:
        """Stop reporting."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _question(self) -> _SlowRequest | None:
        return getattr(self._here, "question", None)

    def _begin(self, question: _SlowRequest) -> None:
        with self._changed:
            idle = not self._open
            self._open.add(question)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
                self._thread.start()
            elif idle:
                self._changed.notify()

    def _run(self) -> None:
        assert self._tell is not None
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for question in self._open:
                    if question.due <= now:
                        question.told = True
                        question.due = now + AGAIN_SECONDS
                        self._tell(question.notice())
                nearest = min((question.due for question in self._open), default=None)
                self._changed.wait(None if nearest is None else max(0.0, nearest - now))
