"""Spans of time as people write them."""

from __future__ import annotations

import pytest

from platforms.durations import seconds


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
