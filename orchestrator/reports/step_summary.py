"""The summary of a build as Markdown: what GitHub shows on the page of a run (``GITHUB_STEP_SUMMARY``), and
``--report markdown=FILE``.

Text of a Dockerfile, a registry or a step is text (``markdown``); names and output of steps are elements of code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from orchestrator.reports.markdown import code, escaped, table, text_of
from orchestrator.view import problems, units, wording
from orchestrator.view.build_state import BuildState, PlatformState, StepState, StepStatus, WarningState
from orchestrator.view.events import Failure
from orchestrator.view.untrusted import clean_line, clean_log

STEPS: Final = 200
"""Maximum number of steps that are listed: GitHub takes 1 MiB from all commands of a step."""
_NAME: Final = 200
"""Maximum number of characters of a step's name."""
_FAILURES: Final = 8
_LINE: Final = 400
"""Maximum number of errors, and of characters of a line of one."""


def render(state: BuildState, _environ: Mapping[str, str]) -> str:
    """Return the Markdown of a build that has ended."""
    title = text_of(state.name or "image")
    lines = [f"### kanifold: {title}", "", text_of(wording.outcome(state, state.ended)), ""]
    platforms = wording.platforms_in_summary(state)
    if platforms:
        lines += table(wording.SUMMARY_HEADINGS, (_row(each, state.ended) for each in platforms))
    if state.outcome == "built":
        lines += [f"Digest: {code(state.digest)}", ""]
        lines += [f"- {code(ref)}" for ref, _ in state.published]
        lines += [""] if state.published else []
    for trouble in problems.distinct(state.troubles)[:_FAILURES]:
        lines += _failure(trouble)
    lines += _warnings(state)
    lines += _steps(platforms)
    return "\n".join(lines) + "\n"


def _row(platform: PlatformState, now: float) -> tuple[str, ...]:
    return tuple(map(text_of, wording.summary_row(platform, now)))


def _failure(trouble: Failure) -> list[str]:
    first, *rest = problems.problem_lines(trouble.problem, trouble.platform)
    block = "\n".join(escaped(clean_log(line, _LINE)) or " " for line in rest)
    return [f"**{text_of(first)}**", "", *([f"<pre>{block}</pre>", ""] if rest else [])]


def _warnings(state: BuildState) -> list[str]:
    found = wording.merge_warnings(state.warnings)
    if not found:
        return []
    count = len(state.warnings) + state.more_warnings
    return [f"**{wording.plural(count, 'warning')}**", "", *map(_warning, found), ""]


def _warning(warning: WarningState) -> str:
    platforms = f" [{', '.join(warning.platforms)}]" if warning.platforms else ""
    return f"- {text_of(wording.warning_line(warning) + platforms)}"


def _steps(platforms: Iterable[PlatformState]) -> list[str]:
    rows = [_step(platform, step) for platform, step in _ended(platforms)]
    if not rows:
        return []
    more = f" (the first {STEPS} of {len(rows)})" if len(rows) > STEPS else ""
    listed = table(("platform", "step", "", "time"), rows[:STEPS])
    return [f"<details><summary>Steps{more}</summary>", "", *listed, "</details>", ""]


def _ended(platforms: Iterable[PlatformState]) -> Iterator[tuple[PlatformState, StepState]]:
    for platform in platforms:
        for step in platform.steps:
            if step.status in (StepStatus.CACHED, StepStatus.DONE, StepStatus.FAILED):
                yield platform, step


def _step(platform: PlatformState, step: StepState) -> tuple[str, ...]:
    name = f"[{wording.position(step.step)}] {step.step.name}" if step.step.number else step.step.name
    seconds = units.duration(step.seconds) if step.status is not StepStatus.CACHED else ""
    return text_of(platform.platform), code(clean_line(name, _NAME)), str(step.status), seconds
