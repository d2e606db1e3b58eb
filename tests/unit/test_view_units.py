"""Bytes and seconds as people read them."""

from __future__ import annotations

import pytest

from orchestrator.view import units


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (48_200_000, "48.2 MB"),
        (5e9, "5.0 GB"),
        (-1, "0 B"),
        (10**20, "100000.0 PB"),
    ],
)
def test_size(count: float, shown: str) -> None:
    assert units.size(count) == shown


@pytest.mark.parametrize(
    ("done", "total", "shown"),
    [
        (12_000_000, 48_200_000, "12.0/48.2 MB"),
        (900_000, 48_200_000, "900.0 kB/48.2 MB"),
        (12_000_000, 0, "12.0 MB"),
        (50, 20, "20/20 B"),
    ],
)
def test_part(done: int, total: int, shown: str) -> None:
    assert units.part(done, total) == shown


@pytest.mark.parametrize(
    ("seconds", "ended", "going"),
    [
        (0.04, "0.0s", "0s"),
        (12.34, "12.3s", "12s"),
        (59.94, "59.9s", "59s"),
        (59.97, "1m00s", "59s"),
        (64, "1m04s", "1m04s"),
        (3599.6, "1h00m", "59m59s"),
        (3720, "1h02m", "1h02m"),
        (-1, "0.0s", "0s"),
    ],
)
def test_times(seconds: float, ended: str, going: str) -> None:
    assert (units.duration(seconds), units.elapsed(seconds)) == (ended, going)
