"""The quiet display: errors only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, TextIO

from orchestrator.view.events import BuildEnded, Event


class QuietDisplay:
    """A ``Display`` of errors only. The caller prints results on stdout."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str]) -> None:
        self._stream = stream
        self._environ = environ

    def emit(self, event: Event) -> None:
        """Print the errors of a build that ended."""
        if isinstance(event, BuildEnded) and event.troubles:
            from orchestrator.view import problems

            for trouble in problems.distinct(event.troubles):
                problems.render_problem(trouble.problem, self._stream, self._environ, trouble.platform)

    def close(self) -> None:
        """Do nothing: nothing is buffered."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
