"""Works that are done at once: all of them end, whoever does them, and the first error is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from executor.solver.lifetime import together


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_works_are_done_at_the_same_time(background: ThreadPoolExecutor) -> None:
    meeting = threading.Barrier(2, timeout=10)
    together(background, [meeting.wait, meeting.wait])


def test_a_background_that_waits_for_us_is_not_waited_for(background: ThreadPoolExecutor) -> None:
    done = threading.Event()
    background.submit(done.wait, 10)
    seen: list[str] = []
    together(background, [lambda: seen.append("first"), lambda: seen.append("second"), done.set])
    assert seen == ["first", "second"]
    assert done.is_set()


def test_the_first_error_is_raised_when_all_have_ended(background: ThreadPoolExecutor) -> None:
    seen: list[str] = []

    def fail(why: str) -> None:
        raise ValueError(why)

    with pytest.raises(ValueError, match="one"):
        together(background, [lambda: fail("one"), lambda: fail("two"), lambda: seen.append("three")])
    assert seen == ["three"]


def test_nothing_is_done_at_once(background: ThreadPoolExecutor) -> None:
    together(background, [])
