"""``--report junit=FILE``: the steps as test cases, for CI systems that show test reports.

A suite is a platform, a case is a step; what failed without a step is a case of its own. The elements are those that
GitLab, Jenkins and Azure Pipelines read in common (Apache Ant's junitreport).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape  # xml.sax.saxutils loads all of urllib

from orchestrator.view import problems, wording
from orchestrator.view.build_state import BuildState, PlatformState, StepState, StepStatus
from orchestrator.view.untrusted import clean_line
from platforms.errors import Problem


def render(state: BuildState, _environ: Mapping[str, str]) -> str:
    """Return the XML document. All text in it was cleaned, so it has no character that XML forbids."""
    suites = [_suite(each, state) for each in state.platforms if each.started or each.steps]
    whole = [each.problem for each in problems.distinct(state.troubles) if not _is_of_platform(each.problem, state)]
    if whole:
        suites.append(_element("build", [_failed("build", f"build {at}", each) for at, each in enumerate(whole, 1)]))
    seconds = state.seconds(state.ended)
    head = f'<testsuites name={_quoted(clean_line(state.name) or "build")} time="{seconds:.3f}">'
    return "\n".join(('<?xml version="1.0" encoding="UTF-8"?>', head, *suites, "</testsuites>", ""))


def _is_of_platform(problem: Problem, state: BuildState) -> bool:
    return any(problem == each.problem for each in state.platforms)


def _suite(platform: PlatformState, state: BuildState) -> str:
    cases = [_case(platform, each) for each in platform.steps]
    if platform.problem and not any(each.status is StepStatus.FAILED for each in platform.steps):
        cases.append(_failed(platform.platform, "build", platform.problem))
    elif platform.stage == "cancelled" and not platform.steps:
        cases.append(_line(platform.platform, "build", 0.0, '<skipped message="cancelled"/>'))
    return _element(platform.platform, cases, platform.seconds(state.ended))


def _element(name: str, cases: Iterable[str], seconds: float = 0.0) -> str:
    body = list(cases)
    counts = " ".join(
        f'{word}="{sum(element in each for each in body)}"'
        for word, element in (("failures", "<failure "), ("skipped", "<skipped "))
    )
    head = f'  <testsuite name={_quoted(name)} tests="{len(body)}" {counts} errors="0" time="{seconds:.3f}">'
    return "\n".join((head, *body, "  </testsuite>"))


def _case(platform: PlatformState, step: StepState) -> str:
    position = wording.position(step.step)
    name = f"[{position}] {step.step.name}" if position else step.step.name
    match step.status:
        case StepStatus.FAILED if platform.problem:
            return _failed(platform.platform, name, platform.problem, step.seconds)
        case StepStatus.FAILED:
            return _failed(platform.platform, name, Problem("StepFailed", step.error, log=step.tail), step.seconds)
        case StepStatus.SKIPPED | StepStatus.WAITING | StepStatus.RUNNING:
            return _line(platform.platform, name, step.seconds, '<skipped message="cancelled"/>')
        case StepStatus.CACHED:
            return _line(platform.platform, name, step.seconds, "<system-out>CACHED</system-out>")
        case StepStatus.DONE:
            return _line(platform.platform, name, step.seconds)


def _failed(suite: str, name: str, problem: Problem, seconds: float = 0.0) -> str:
    text = "\n".join(problems.problem_lines(problem))
    kind = _quoted(clean_line(problem.kind))
    failure = f"<failure type={kind} message={_quoted(wording.problem_line(problem))}>{escape(text)}</failure>"
    return _line(suite, name, seconds, failure)


def _line(suite: str, name: str, seconds: float, inside: str = "") -> str:
    head = f'    <testcase classname={_quoted(suite)} name={_quoted(clean_line(name))} time="{seconds:.3f}"'
    return f"{head}>{inside}</testcase>" if inside else f"{head}/>"


def _quoted(text: str) -> str:
    """Return ``text`` as the value of an attribute."""
    return f'"{escape(text)}"'
