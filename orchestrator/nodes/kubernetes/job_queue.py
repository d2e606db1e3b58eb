"""The order in which executors get Pods in a namespace whose quota may not suffice for all of them.

The Job controller asks again for a Pod that a quota has refused after a pause that doubles up to a minute, whatever
room there is meanwhile. So Jobs are not left to it: a few of them at a time may be without a Pod, the oldest first; one
that is refused is deleted, and made again when a Pod of an executor is gone, or after a while, as others may use the
quota as well.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec

from orchestrator.nodes.node import Say

_FIRST: Final = 4
_MOST: Final = 16
"""Jobs without a Pod at a time: at first, and when Pods are given without limit."""
_TRIES: Final = (0.3, 0.6, 1.2, 2.5, 5.0, 10.0)
"""Seconds after a refusal until another Pod is asked for, by the number of refusals in a row, while executors have less
Pods than they had: what a quota counts lags behind."""
_PROBES: Final = (5.0, 10.0, 20.0, 30.0)
"""As ``_TRIES`` while executors have as many Pods as when one was refused: somebody else's may end."""
_SHORTEST: Final = 0.1
_LONGEST: Final = 5.0
"""Seconds after the end of a Pod until another one is asked for: as many as it took the last time."""
_UNSEEN: Final = "waiting for its Pod"

Order = tuple[int, int]


class _Waiting(msgspec.Struct, frozen=True, eq=False):
    order: Order
    turn: asyncio.Future[None]
    say: Say


class JobQueue:
    """The executors of a command that want a Pod; ``pods`` returns how many Pods executors have."""

    def __init__(self, pods: Callable[[], int]) -> None:
        self._pods = pods
        self._waiting: list[_Waiting] = []
        """In their order."""
        self._begun = 0
        self._starting = 0
        """Jobs that may have no Pod yet."""
        self._most = _FIRST
        self._limit: int | None = None
        """How many Pods executors had when another one was refused; None if they get as many as they want."""
        self._refusals = 0
        """Since a Pod was given, or ended."""
        self._try_at = self._probe_at = self._ended_at = 0.0
        self._lag = _SHORTEST
        """Seconds from the end of a Pod until its place was another one's, the last time."""
        self._timer: asyncio.TimerHandle | None = None
        self.words = _UNSEEN
        """What those who wait are waiting for."""

    def order(self, *, first: bool = False) -> Order:
        """Return a place in the queue: before all others who do not come ``first``, or after all."""
        self._begun += 1
        return (0 if first else 1, self._begun)

    @contextlib.asynccontextmanager
    async def turn(self, order: Order, say: Say, rest: Callable[[str], float]) -> AsyncIterator[None]:
        """Wait for the turn of ``order``, in which a Job is made and waits for its Pod.

        ``rest`` is told what is waited for, and returns the seconds after which it wants to be asked again, or
        raises an error. The outcome is to be told by ``given`` or ``refused`` within the turn.
        """
        waiting = _Waiting(order, asyncio.get_running_loop().create_future(), say)
        bisect.insort(self._waiting, waiting, key=_order)
        self._admit()
        try:
            if not waiting.turn.done():
                say(self.words)
            while not waiting.turn.done():
                await asyncio.wait({waiting.turn}, timeout=rest(self.words))
            yield
        finally:
            if waiting.turn.done():
                self._starting -= 1
            else:
                self._waiting.remove(waiting)
            self._admit()

    def given(self) -> None:
        """Take note that a Job has got its Pod."""
        if self._limit is not None and self._pods() > self._limit:
            self._limit = None
        if self._limit is None:
            self._most, self.words = min(self._most * 2, _MOST), _UNSEEN
        elif self._refusals:
            self._lag = min(asyncio.get_running_loop().time() - self._ended_at, _LONGEST)
        else:
            self._lag = max(self._lag * 0.9, _SHORTEST)
        self._refusals, self._try_at = 0, 0.0

    def refused(self, words: str) -> None:
        """Take note that a Job was refused by a quota, as ``words`` tell."""
        pods, now = self._pods(), asyncio.get_running_loop().time()
        self._limit = pods if self._limit is None else max(self._limit, pods)
        self._most = _FIRST
        self._try_at = now + _TRIES[min(self._refusals, len(_TRIES) - 1)]
        self._probe_at = now + _PROBES[min(self._refusals, len(_PROBES) - 1)]
        self._refusals += 1
        self.words = words
        for each in self._waiting:
            each.say(words)

    def ended(self) -> None:
        """Take note that a Pod is gone, or that nothing runs in it any more."""
        now = asyncio.get_running_loop().time()
        self._refusals, self._ended_at = 0, now
        self._try_at = now + self._lag if self._try_at < now else min(self._try_at, now + self._lag)
        self._admit()

    def _admit(self) -> None:
        """Let those begin whose turn it is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        while self._waiting and self._starting < self._most:
            opens = self._opens()
            if opens is None:
                return
            if opens > loop.time():
                self._timer = loop.call_at(opens, self._admit)
                return
            self._starting += 1
            self._waiting.pop(0).turn.set_result(None)

    def _opens(self) -> float | None:
        """Return when the next Job may be made; None if not before one of those that are starting has got its Pod."""
        if self._limit is None:
            return 0.0
        if self._pods() + self._starting < self._limit:
            return self._try_at
        return None if self._starting else self._probe_at


def _order(waiting: _Waiting) -> Order:
    return waiting.order
