"""Golden files of displays: text files in ``screens/``.

``UPDATE_SCREENS=1 pytest tests/unit/test_view_*.py`` rewrites them; check the differences.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console, RenderableType
from view_story import START

from orchestrator.view.build_state import BuildState, fold
from orchestrator.view.events import Event

SCREENS = Path(__file__).with_name("screens")


def check(name: str, text: str) -> None:
    """Compare ``text`` with ``screens/NAME.txt``."""
    path = SCREENS / f"{name}.txt"
    if os.environ.get("UPDATE_SCREENS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def state_at(story: Iterable[Event], seconds: float = 1e9) -> BuildState:
    """Return the state of a story after ``seconds``."""
    state = BuildState()
    for event in story:
        if event.at <= START + seconds:
            state = fold(state, event)
    return state


def text_of(what: RenderableType, width: int, environ: dict[str, str] | None = None) -> str:
    """Return ``what`` as the terminal would get it; without ``environ``, as plain text."""
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=environ is not None,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
        _environ=environ or {},
    )
    with console.capture() as captured:
        console.print(what)
    return captured.get()
