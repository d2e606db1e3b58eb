"""The capabilities of an output stream, from the stream and the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, TextIO

SIZE_UNKNOWN: Final = (80, 24)
"""Columns and lines that are assumed if unknown."""


def is_terminal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether ``stream`` is a terminal that supports escape sequences (``TERM`` is set and not ``dumb``)."""
    try:
        return stream.isatty() and environ.get("TERM", "") not in ("", "dumb", "unknown")
    except ValueError:
        return False


def same(one: TextIO, other: TextIO) -> bool:
    """Whether both streams write to the same terminal, pipe or file."""
    try:
        return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))
    except (OSError, AttributeError, ValueError):
        return False


def wants_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether to use panels and colours: on a terminal, or with ``FORCE_COLOR`` (force-color.org)."""
    return is_terminal(stream, environ) or environ.get("FORCE_COLOR", "") not in ("", "0", "false")


def in_ci(environ: Mapping[str, str]) -> bool:
    """Whether this is a CI job, where nobody watches a terminal."""
    return any(environ.get(name, "") not in ("", "0", "false") for name in ("CI", "GITHUB_ACTIONS", "GITLAB_CI"))


def size(stream: TextIO, environ: Mapping[str, str]) -> tuple[int, int]:
    """Return columns and lines. ``COLUMNS`` and ``LINES`` are used if smaller than the terminal's, or if it reports
    none."""
    try:
        columns, lines = os.get_terminal_size(stream.fileno())
    except (OSError, AttributeError, ValueError):
        columns, lines = 0, 0
    return (
        _smaller(columns, environ.get("COLUMNS", ""), SIZE_UNKNOWN[0]),
        _smaller(lines, environ.get("LINES", ""), SIZE_UNKNOWN[1]),
    )


def _smaller(real: int, said: str, unknown: int) -> int:
    wish = int(said) if said.isascii() and said.isdecimal() else 0
    if wish and real:
        return min(wish, real)
    return wish or real or unknown
