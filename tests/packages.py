"""The modules of the three packages, for tests of rules that each of them has to keep."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
ROOMS: Final = ("platforms", "executor", "orchestrator")
"""From the bottom up."""
SOURCES: Final[Mapping[str, str]] = {
    str(path.relative_to(ROOT)): path.read_text() for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))
}
"""The text of each module by its path."""


@functools.cache
def parsed(source: str) -> ast.Module:
    """Return the syntax tree of ``source``, which nobody changes: the tests of rules share it."""
    return ast.parse(source)


def violations(rule: Callable[[str, str], Sequence[str]], below: str = "") -> dict[str, Sequence[str]]:
    """Return what ``rule`` blames in each module whose path begins with ``below``; it is given a path and a text."""
    found = {path: rule(path, source) for path, source in SOURCES.items() if path.startswith(below)}
    return {path: what for path, what in found.items() if what}
