"""The display that says nothing but why a build failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, TextIO

from orchestrator.view.events import BuildEnded, Event


class Quiet:
    """A ``Display`` of errors only. What a caller prints on stdout is its own."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str]) -> None:
        self._stream = stream
        self._environ = environ

    def emit(self, event: Event) -> None:
        """Show the troubles of a build that ended."""
        if isinstance(event, BuildEnded) and event.troubles:
            from orchestrator.view import problems

            for trouble in problems.distinct(event.troubles):
                problems.render_problem(trouble.problem, self._stream, self._environ, trouble.platform)

    def close(self) -> None:
        """Nothing is held back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
