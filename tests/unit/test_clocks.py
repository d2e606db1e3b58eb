"""Warnings of nodes whose clock is wrong."""

from __future__ import annotations

import pytest

from orchestrator.warnings import wrong_clock


@pytest.mark.parametrize(
    ("ahead", "said"),
    [
        (0.0, ""), (299.0, ""), (-299.0, ""), (600.0, "10 minutes fast"), (-600.4, "10 minutes slow"),
        (5 * 3600.0, "5 hours fast"), (-86400.0 * 365 * 3, "1095 days slow"), (1e300, "99999 days fast"),
    ],
)  # fmt: skip
def test_a_clock_that_is_wrong_is_a_warning(ahead: float, said: str) -> None:
    found = wrong_clock("arm", ahead)
    assert [each.problem.what for each in found] == ([f"the clock of node arm is {said}"] if said else [])
