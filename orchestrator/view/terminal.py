"""What a stream can show, asked of the stream and of the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, TextIO

SIZE_UNKNOWN: Final = (80, 24)
"""Columns and lines assumed where nothing says."""


def is_terminal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether ``stream`` is a terminal that understands escape sequences (``TERM`` is set and not ``dumb``)."""
    try:
        return stream.isatty() and environ.get("TERM", "") not in ("", "dumb", "unknown")
    except ValueError:
        return False


def same(one: TextIO, other: TextIO) -> bool:
    """Whether what is written to either comes to the same terminal, pipe or file."""
    try:
        return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))
    except (OSError, AttributeError, ValueError):
        return False


def wants_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether panels and colours are welcome: on a terminal, or where ``FORCE_COLOR`` says so (force-color.org)."""
    return is_terminal(stream, environ) or environ.get("FORCE_COLOR", "") not in ("", "0", "false")


def in_ci(environ: Mapping[str, str]) -> bool:
    """Whether this is a CI job, where a terminal, if there is one at all, has no one in front of it."""
    return any(environ.get(name, "") not in ("", "0", "false") for name in ("CI", "GITHUB_ACTIONS", "GITLAB_CI"))


def size(stream: TextIO, environ: Mapping[str, str]) -> tuple[int, int]:
    """Columns and lines. ``COLUMNS`` and ``LINES`` count where they are smaller than the terminal, or it is silent."""
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
