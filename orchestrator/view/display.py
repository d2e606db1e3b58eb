"""Choosing and opening a display."""

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
"""The environment variable that stands in for ``auto``."""


class Display(Protocol):
    """Shows a build while it happens. Nothing here raises because of the stream: a reader may go away at any time."""

    def emit(self, event: Event) -> None:
        """Take the next event; from any thread, and from an event loop."""
        ...

    def close(self) -> None:
        """Show what stays, and let go of the stream. May be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def open_display(mode: str = "auto", stream: TextIO | None = None, environ: Mapping[str, str] | None = None) -> Display:
    """The display that ``mode`` (one of ``MODES``) names, on ``stream`` (stderr).

    ``auto`` is ``KANIFOLD_PROGRESS`` if that is set; else live on a capable terminal outside of CI, unless lines of
    ``--debug`` go there, and plain elsewhere. Raises ``UsageError`` for an unknown mode, and for ``live`` where no
    capable terminal is; only a live display that the variable wishes for gives way to plain.
    """
    stream = stream or sys.stderr
    environ = os.environ if environ is None else environ
    chosen = _chosen(mode, stream, environ)
    # Imported here: rich costs more than a build that has nothing to do.
    if chosen == "live":
        from orchestrator.view.live import Live

        return Live(stream, environ)
    if chosen == "rawjson":
        from orchestrator.view.rawjson import RawJson

        return RawJson(stream)
    if chosen == "quiet":
        from orchestrator.view.quiet import Quiet

        return Quiet(stream, environ)
    from orchestrator.view.plain import Plain

    return Plain(stream, environ)


def _chosen(mode: str, stream: TextIO, environ: Mapping[str, str]) -> str:
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
