"""Waiting until files that change get times that no earlier change has."""

from __future__ import annotations

import time

import pytest

from executor.snapshotter import inplace


@pytest.mark.parametrize(
    ("since", "ticks", "waits"),
    [
        (0, (900, 1000, 1004), 2),  # just now, which is 1000
        (1000, (1000, 1004), 1),
        (1003, (1000, 1004), 1),
        (999, (1000,), 0),
        (500, (900,), 0),  # before the last tick
    ],
)
def test_the_time_is_later_than_all_changes(
    since: int, ticks: tuple[int, ...], waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list(ticks)
    slept: list[float] = []
    monkeypatch.setattr(time, "time_ns", lambda: 1000)
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _clock: told.pop(0))
    monkeypatch.setattr(time, "sleep", slept.append)
    assert (inplace.wait_for_clock_tick(since), len(slept)) == (ticks[-1], waits)
