"""Trying again: what is waited out, for how long, and when enough is enough."""

from __future__ import annotations

import time

import pytest
from msgspec.structs import replace

from executor.retry import Attempts, RetryPolicy, StallClock, TransientError

POLICY = RetryPolicy(attempts=4, connect_attempts=2, first_delay=1.0, longest_delay=3.0, longest_retry_after=30.0)


class Call:
    """Fails with each of ``errors`` in turn, and then succeeds; ``waits`` are the pauses that were made."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.asked = 0
        self.waits: list[float] = []

    def __call__(self) -> str:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"

    def attempts(self, policy: RetryPolicy = POLICY) -> Attempts:
        return Attempts(policy, self.waits.append)


def persist(call: Call, attempts: Attempts) -> str:
    while True:
        with attempts:
            return call()


def test_what_may_pass_is_waited_out() -> None:
    call = Call(*(TransientError("broken") for _ in range(3)))
    assert persist(call, call.attempts()) == "answer"
    assert [0.6 * wait <= got <= wait for got, wait in zip(call.waits, (1.0, 2.0, 3.0), strict=True)] == [True] * 3


def test_the_last_failure_says_how_many_there_were() -> None:
    call = Call(*(TransientError(f"broken {number}") for number in range(9)))
    with pytest.raises(TransientError, match="broken 3") as caught:
        persist(call, call.attempts())
    assert caught.value.attempts == call.asked == 4


def test_a_host_that_takes_no_connection_is_asked_less_often() -> None:
    call = Call(*(TransientError("refused", connecting=True) for _ in range(9)))
    with pytest.raises(TransientError):
        persist(call, call.attempts())
    assert call.asked == 2


def test_silence_is_asked_again_unless_the_policy_says_otherwise() -> None:
    call = Call(TransientError("silent", silent=True))
    assert persist(call, call.attempts()) == "answer"
    call = Call(TransientError("silent", silent=True))
    with pytest.raises(TransientError):
        persist(call, call.attempts(replace(POLICY, retry_silence=False)))


def test_a_wait_that_is_asked_for_is_kept_if_it_is_bearable() -> None:
    call = Call(TransientError("busy", delay=30.0))
    assert persist(call, call.attempts()) == "answer"
    assert call.waits == [30.0]
    call = Call(TransientError("busy", delay=30.1))
    with pytest.raises(TransientError):
        persist(call, call.attempts())
    assert call.waits == []


def test_any_other_error_passes_at_once() -> None:
    call = Call(ValueError("wrong"))
    with pytest.raises(ValueError, match="wrong"):
        persist(call, call.attempts())
    assert call.asked == 1


def test_progress_makes_failures_count_anew() -> None:
    call = Call(*(TransientError("broken") for _ in range(9)))
    attempts = call.attempts()
    while call.errors:
        with attempts:
            if call.asked % 2:
                attempts.progressed()
            call()
    assert call.asked == 9
    assert max(call.waits) <= 2.0


def test_the_users_limit_counts_from_the_last_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = StallClock(limit=10.0)
    assert clock.allows(10.0)
    now += 8.0
    assert not clock.allows(3.0)
    call = Call(TransientError("broken", delay=3.0))
    with pytest.raises(TransientError):
        persist(call, Attempts(POLICY, call.waits.append, clock=clock))
    clock.progressed()
    call = Call(TransientError("broken", delay=3.0))
    assert persist(call, Attempts(POLICY, call.waits.append, clock=clock)) == "answer"
    assert StallClock().allows(1e9)


def test_only_the_kind_that_was_named_is_waited_out() -> None:
    class Worse(TransientError):
        pass

    call = Call(TransientError("broken"))
    with pytest.raises(TransientError):
        persist(call, Attempts(POLICY, call.waits.append, on=Worse))
    call = Call(Worse("broken"))
    told: list[str] = []

    def notify(error: TransientError, delay: float) -> None:
        told.append(f"{error} {delay}")

    assert persist(call, Attempts(POLICY, call.waits.append, on=Worse, notify=notify)) == "answer"
    assert told == [f"broken {call.waits[0]}"]
