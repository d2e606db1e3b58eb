"""Trying again what failed in a way that may pass: how often and how long is data, and the loop exists once.

    attempts = Attempts(policy, pause)
    while True:
        with attempts:
            return ask()

A ``TransientError`` raised inside of ``with`` is waited out, and the loop goes round; once the policy has had enough it
passes, and its ``attempts`` says how often it was tried. Any other exception passes at once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

import msgspec

RETRYABLE_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP statuses that another attempt may cure."""


class TransientError(Exception):
    """A failure that may pass: of a request, when the connection broke, stalled or never came about."""

    def __init__(self, why: str, *, connecting: bool = False, silent: bool = False, delay: float = 0.0) -> None:
        super().__init__(why)
        self.connecting = connecting
        """No byte of the request has left: nothing can have happened on the other side."""
        self.silent = silent
        """The other side was there and said nothing, for as long as is waited."""
        self.delay = delay
        """Seconds that the other side asks to be left alone."""
        self.attempts = 1
        """How often it was tried, once ``Attempts`` gives up."""


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often to try, and how long to wait in between (seconds)."""

    attempts: int = 6
    connect_attempts: int = 3
    """Attempts at a host that does not even take the connection."""
    retry_silence: bool = True
    """Whether to ask a host again that has taken a request and not answered in time."""
    first_delay: float = 0.5
    longest_delay: float = 8.0
    longest_retry_after: float = 90.0
    """The longest wait that the other side may ask for (``Retry-After``): a build is not kept hanging for hours."""
    statuses: frozenset[int] = RETRYABLE_STATUSES
    """The HTTP statuses that are tried again."""

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many ``failures``: doubling, with jitter so that many do not come back at once."""
        return min(self.first_delay * 2.0 ** (failures - 1), self.longest_delay) * random.uniform(0.6, 1.0)

    def attempts_after(self, error: TransientError) -> int:
        """How many attempts there are when they fail with ``error``."""
        if error.connecting:
            return self.connect_attempts
        return 1 if error.silent and not self.retry_silence else self.attempts


class StallClock:
    """The time since something last made progress, of which at most ``limit`` seconds are allowed (0: any)."""

    def __init__(self, limit: float = 0.0) -> None:
        self._limit = limit
        self._since = time.monotonic()

    def progressed(self) -> None:
        """It has made progress just now."""
        self._since = time.monotonic()

    def allows(self, seconds: float) -> bool:
        """Whether so many seconds more are within the limit."""
        return self._limit <= 0 or time.monotonic() - self._since + seconds <= self._limit


Notify = Callable[[TransientError, float], None]
"""Is told of a failed attempt, and of the seconds to wait before the next one."""


class Attempts:
    """The attempts at one thing, by ``policy``, as this module says.

    ``pause`` waits for so many seconds, ``notify`` is told of each failure but the last. ``clock`` bounds how long
    there may be no progress, waits included. ``on`` is the kind of error that is waited out.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        pause: Callable[[float], None],
        *,
        notify: Notify | None = None,
        clock: StallClock | None = None,
        on: type[TransientError] = TransientError,
    ) -> None:
        self.policy = policy
        self._on = on
        self.clock = clock or StallClock()
        self.failures = 0
        """Attempts that have failed since the last progress."""
        self._pause = pause
        self._notify = notify

    def progressed(self) -> None:
        """Something has been achieved: failures count from the start again."""
        self.failures = 0
        self.clock.progressed()

    def __enter__(self) -> None:
        """An attempt begins."""

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> bool:
        """Wait, if the attempt failed and is not the last."""
        if not isinstance(error, self._on):
            return False
        self.failures += 1
        delay = max(error.delay, self.policy.delay(self.failures))
        if (
            self.failures >= self.policy.attempts_after(error)
            or error.delay > self.policy.longest_retry_after
            or not self.clock.allows(delay)
        ):
            error.attempts = self.failures
            return False
        if self._notify is not None:
            self._notify(error, delay)
        self._pause(delay)
        return True
