"""Wound 56 (review): a step takes all of what it shares with the builder: the log, memory, processes."""

from __future__ import annotations

from pathlib import Path

from conftest import Base, Kanifold


def context(kanifold: Kanifold, source: str) -> Path:
    made = kanifold.home / "context"
    made.mkdir(exist_ok=True)
    (made / "Dockerfile").write_text(source)
    return made


def test_a_step_that_writes_without_end_fills_no_log(kanifold: Kanifold, busybox: Base) -> None:
    where = context(kanifold, f"FROM {busybox.ref}\nRUN seq 1 2000000 && echo all; echo last; exit 3\n")
    done = kanifold.run("build", where, "--progress", "plain", BUILDKIT_STEP_LOG_MAX_SPEED="-1")
    assert done.code == 1
    assert "[output clipped, log limit 2MiB reached]" in done.said
    assert 2 << 20 < len(done.said) < 16 << 20  # each line with its step's name before it
    assert "| last" in done.said  # the error shows how it ended


def test_what_is_shown_of_a_step_can_be_set(kanifold: Kanifold, busybox: Base) -> None:
    where = context(kanifold, f"FROM {busybox.ref}\nRUN seq 1 500000\n")
    free = {"BUILDKIT_STEP_LOG_MAX_SPEED": "-1", "BUILDKIT_STEP_LOG_MAX_SIZE": "-1"}
    said = kanifold("build", where, "--progress", "plain", **free).said
    assert "clipped" not in said
    assert " 500000\n" in said
