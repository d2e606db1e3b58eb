"""Retries: the loop, and the policy of how often and how long as data.

    attempts = Attempts(policy, pause)
    while True:
        with attempts:
            return request()

A ``TransientError`` raised in the ``with`` block is followed by a pause, and suppressed. Once the policy allows no
further attempt it is raised, and its ``attempts`` is the number of failures. Any other exception is raised at once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

import msgspec

RETRYABLE_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP statuses of failures that may pass."""


class TransientError(Exception):
    """A failure that may pass: the connection could not be made, broke or stalled, or the peer is overloaded."""

    def __init__(self, why: str, *, connecting: bool = False, silent: bool = False, delay: float = 0.0) -> None:
        super().__init__(why)
        self.connecting = connecting
        """No byte of the request has been sent: it has had no effect."""
        self.silent = silent
        """The peer accepted the request and did not answer in time."""
        self.delay = delay
        """Seconds that the peer asks to wait."""
        self.attempts = 1
        """The number of failed attempts, set when there is no further one."""


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often to try, and how long to wait in between. Times are in seconds."""

    attempts: int = 6
    connect_attempts: int = 3
    """Attempts to connect to a host that does not accept the connection."""
    retry_silence: bool = True
    """Whether to try again when the peer accepted the request and did not answer in time."""
    first_delay: float = 0.5
    longest_delay: float = 8.0
    longest_retry_after: float = 90.0
    """Maximum wait that the peer may ask for (``Retry-After``). If it asks for more, there is no further attempt."""
    statuses: frozenset[int] = RETRYABLE_STATUSES
    """HTTP statuses after which there is another attempt."""

    def delay(self, failures: int) -> float:
        """Return the wait after so many ``failures``: exponential, with jitter so that clients do not come back
        together."""
        return min(self.first_delay * 2.0 ** (failures - 1), self.longest_delay) * random.uniform(0.6, 1.0)

    def attempts_after(self, error: TransientError) -> int:
        """Return the maximum number of attempts if they fail with ``error``."""
        if error.connecting:
            return self.connect_attempts
        return 1 if error.silent and not self.retry_silence else self.attempts


class StallClock:
    """The time since the last progress, which is limited to ``limit`` seconds (0: unlimited)."""

    def __init__(self, limit: float = 0.0) -> None:
        self._limit = limit
        self._since = time.monotonic()

    def progressed(self) -> None:
        """There was progress."""
        self._since = time.monotonic()

    def allows(self, seconds: float) -> bool:
        """Whether the limit allows to wait for so many seconds."""
        return self._limit <= 0 or time.monotonic() - self._since + seconds <= self._limit


Notify = Callable[[TransientError, float], None]
"""Receives a failure, and the seconds until the next attempt."""


class Attempts:
    """The attempts at one thing, as the module's docstring shows.

    ``pause`` waits for so many seconds; ``notify`` receives each failure that is followed by another attempt. ``clock``
    limits the time without progress, waits included. ``on``: the kind of error that is retried.
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
        """Failures since the last progress."""
        self._pause = pause
        self._notify = notify

    def progressed(self) -> None:
        """There was progress: start counting failures again."""
        self.failures = 0
        self.clock.progressed()

    def __enter__(self) -> None:
        """Begin an attempt."""

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> bool:
        """After a failure that is retried, wait and suppress it."""
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
