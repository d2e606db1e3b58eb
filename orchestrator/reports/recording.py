"""Folding the events of a build for its reports (``--report``, ``GITHUB_STEP_SUMMARY``), and writing these."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, assert_never

from orchestrator.request import Report, ReportKind
from orchestrator.view import events
from orchestrator.view.build_state import BuildState, fold
from orchestrator.view.events import Emit
from platforms.errors import StoreError
from platforms.replacing import replacing

SUMMARY_LIMIT: Final = 1 << 20
"""Maximum number of bytes of a step summary: of a larger one, GitHub shows nothing."""
Render = Callable[[BuildState, Mapping[str, str]], str]
"""Returns the text of a report for the state at the end of a build."""


def renderer(kind: ReportKind) -> Render:
    """Return what renders reports of ``kind``; only its module is loaded."""
    match kind:
        case "junit":
            from orchestrator.reports import junit

            return junit.render
        case "dotenv":
            from orchestrator.reports import dotenv

            return dotenv.render
        case "codequality":
            from orchestrator.reports import code_quality

            return code_quality.render
        case "markdown" | "step-summary":
            from orchestrator.reports import step_summary

            return step_summary.render
        case "html":
            from orchestrator.reports import html_page

            return html_page.render
        case _:
            assert_never(kind)


@contextlib.contextmanager
def reported(reports: Sequence[Report], emit: Emit) -> Iterator[Emit]:
    """Yield a function that passes events to ``emit``, and writes ``reports`` before the last of them.

    Raises ``StoreError`` for a file that cannot be written, unless the build failed, too: then it is a warning, as it
    always is for a step summary, which nobody has asked for.
    """
    recorder = _Recorder(reports, emit)
    yield recorder.emit
    if recorder.failure is not None:
        raise recorder.failure


class _Recorder:
    """Folds events, and writes the reports at the last. Safe for threads."""

    def __init__(self, reports: Sequence[Report], emit: Emit) -> None:
        self._reports = reports
        self._emit = emit
        self._lock = threading.Lock()
        self._state = BuildState()
        self.failure: StoreError | None = None

    def emit(self, event: events.Event) -> None:
        with self._lock:
            self._state = fold(self._state, event)
        if isinstance(event, events.BuildEnded):
            for each in self._reports:
                self._write(each, event.outcome)
        self._emit(event)

    def _write(self, report: Report, outcome: events.Outcome) -> None:
        try:
            write(report, renderer(report.kind)(self._state, os.environ))
        except StoreError as error:
            if outcome == "built" and report.kind != "step-summary":
                self.failure = self.failure or error
            else:
                self._emit(events.WarningRaised(problem=error.problem))


def write(report: Report, text: str) -> None:
    """Write the ``text`` of ``report``; a step summary is appended, as several commands of a CI step share the file.

    Raises ``StoreError``, also for a step summary that would become larger than ``SUMMARY_LIMIT``.
    """
    try:
        if report.kind == "step-summary":
            with open(report.path, "ab") as file:
                data = text.encode()
                if file.tell() + len(data) > SUMMARY_LIMIT:
                    raise StoreError(
                        "nothing is added to the step summary",
                        why=f"it would be larger than {SUMMARY_LIMIT >> 20} MiB, and GitHub then shows nothing of it",
                    )
                file.write(data)
        else:
            with replacing(report.path) as file:
                file.write(text.encode())
    except OSError as error:
        raise StoreError(f"cannot write the report {report.path}", why=error.strerror or str(error)) from error
