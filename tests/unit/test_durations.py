"""Spans of time as people write them."""

from __future__ import annotations

import pytest

from platforms.durations import age, nanoseconds, seconds


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("20s", 20.0),
        ("20", 20.0),
        ("1.5", 1.5),
        ("500ms", 0.5),
        ("1m30s", 90.0),
        ("1.5h", 5400.0),
        (" 2M ", 120.0),
        ("1w", 604800.0),
        ("", None),
        ("s", None),
        ("-1s", None),
        ("1s2", None),
        ("1y", None),
        ("1e3", None),
        ("٣s", None),
        ("1" * 50, None),
    ],
)
def test_a_span_of_time(text: str, found: float | None) -> None:
    assert seconds(text) == found


@pytest.mark.parametrize(("text", "found"), [("90m", 5400.0), (" 7d ", 604800.0), ("7", None), ("7y", None)])
def test_an_age_has_a_unit(text: str, found: float | None) -> None:
    assert age(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1h30m", 5400 * 10**9),
        ("-1.5s", -1_500_000_000),
        (".5s", 500_000_000),
        ("1.us", 1000),
        ("0", 0),
        ("0.1234567890123456789012345s", 123_456_789),
        ("1", None),
        ("", None),
        ("-", None),
        ("1d", None),
        ("1S", None),
        ("1s ", None),
        ("9223372036.854775807s", (1 << 63) - 1),
        ("9223372036.854775808s", None),
        ("9" * 21 + "ns", None),
    ],
)
def test_a_duration_as_go_reads_it(text: str, found: int | None) -> None:
    assert nanoseconds(text) == found
