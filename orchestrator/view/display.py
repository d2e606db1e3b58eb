"""Selecting and opening a display."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Final, Protocol, Self, TextIO

from orchestrator.view import terminal
from orchestrator.view.events import Event
from platforms import debug
from platforms.errors import UsageError

MODES: Final = ("auto", "live", "plain", "rawjson", "quiet")
VARIABLE: Final = "KANIFOLD_PROGRESS"
"""The environment variable that replaces ``auto``."""


class Display(Protocol):
    """A display of a build. No method raises because of the stream, whose reader may go away at any time."""

    def emit(self, event: Event) -> None:
        """Process the next event. Safe for threads, and from an event loop."""
        ...

    def close(self) -> None:
        """Show the summary and release the stream. Idempotent."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def open_display(mode: str = "auto", stream: TextIO | None = None, environ: Mapping[str, str] | None = None) -> Display:
    """Return the display ``mode`` (one of ``MODES``) on ``stream`` (default: stderr).

    ``auto`` is ``KANIFOLD_PROGRESS`` if set; else live on a capable terminal outside of CI, unless ``--debug`` writes
    there, and plain elsewhere. Raises ``UsageError`` for an unknown mode, and for ``live`` without a capable terminal,
    unless the variable asked for it: then the display is plain.
    """
    stream = stream or sys.stderr
    environ = os.environ if environ is None else environ
    chosen = _resolve_mode(mode, stream, environ)
    # Imported late: loading rich takes longer than a cached build.
    if chosen == "live":
        from orchestrator.view.live import LiveDisplay

        return LiveDisplay(stream, environ)
    if chosen == "rawjson":
        from orchestrator.view.rawjson import RawJsonDisplay

        return RawJsonDisplay(stream)
    if chosen == "quiet":
        from orchestrator.view.quiet import QuietDisplay

        return QuietDisplay(stream, environ)
    from orchestrator.view.plain_lines import PlainDisplay

    return PlainDisplay(stream, environ)


def _resolve_mode(mode: str, stream: TextIO, environ: Mapping[str, str]) -> str:
    wish = environ.get(VARIABLE, "") or "auto" if mode == "auto" else mode
    if wish not in MODES:
        source = f"{VARIABLE}={wish}" if mode == "auto" else f"--progress {wish}"
        raise UsageError(
            f"unknown progress display: {source}",
            why=f"{wish!r} is not one of {', '.join(MODES)}",
            remedy="use --progress auto, which picks the live view on a terminal and plain lines elsewhere",
        )
    capable = terminal.is_terminal(stream, environ)
    if wish == "auto":
        return "live" if capable and not terminal.in_ci(environ) and not debug.on else "plain"
    if wish == "live" and not capable:
        if mode == "auto":
            return "plain"
        raise UsageError(
            "cannot show the live view",
            why="the error output is not a terminal that understands escape sequences",
            remedy="use --progress plain",
        )
    return wish
