"""Lines of the live screen, and what they are made of."""

from __future__ import annotations

from typing import Final

from rich.cells import cell_len
from rich.text import Text

from orchestrator.view import units, wording
from orchestrator.view.build_state import StepState

SIGNS: Final = {"waiting": "○", "running": "●", "built": "✓", "failed": "✗", "cancelled": "■"}
STYLES: Final = {"waiting": "dim", "running": "blue", "built": "green", "failed": "red", "cancelled": "yellow"}
URGENCY: Final = {"failed": 0, "running": 1, "cancelled": 2, "waiting": 3, "built": 4}
"""Order in which platforms are shown where not all fit."""


def plain(width: int, text: str, style: str) -> Text:
    """Return a line with ``text``, cut to ``width``."""
    line = Text(text, style=style, no_wrap=True, overflow="ellipsis")
    line.truncate(width, overflow="ellipsis")
    return line


def spread(width: int, left: Text, right: str, style: str = "") -> Text:
    """Return a line with ``left`` and, at its end, ``right``; ``left`` is cut if necessary."""
    if not right:
        left.truncate(width, overflow="ellipsis")
        return left
    space = width - cell_len(right) - 1
    if space < 1:
        left.truncate(width, overflow="ellipsis")
        return left
    left.truncate(space, overflow="ellipsis", pad=True)
    left.append(" ")
    left.append(right, style)
    return left


def empty_line() -> Text:
    """Return a line to append to."""
    return Text(no_wrap=True, overflow="ellipsis")


def append_step(line: Text, step: StepState) -> None:
    """Append the position and the instruction of ``step`` to ``line``."""
    place = wording.position(step.step)
    if place:
        line.append(place + " ", "blue")
    line.append(wording.abbreviated_step(step.step.name))


def step_line(step: StepState, more: int, width: int, now: float) -> Text:
    """Return a line about a running step, with ``more`` beside it."""
    line = empty_line()
    line.append("  ")
    append_step(line, step)
    beside = f"+{more} beside it  " if more else ""
    if step.waits:
        return spread(width, line, f"{beside}waiting for {wording.wait_reason(step)}", "dim")
    return spread(width, line, beside + units.elapsed(step.at_work(now)))
