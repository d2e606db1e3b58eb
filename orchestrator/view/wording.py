"""Phrases that all displays share: placement, names of steps, cells of the summary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from executor.protocol import StepInfo
from orchestrator.view import units
from orchestrator.view.build_state import BuildState, PlatformState, StepState, WaitState, WarningState
from orchestrator.view.untrusted import clean_line
from platforms.errors import Problem

SUMMARY_HEADINGS: Final = ("platform", "built on", "run", "cached", "size", "time", "digest")


def placement_text(platform: PlatformState) -> str:
    """Return how and on which node a platform is built: ``native``, ``qemu-aarch64``, ``native, builder-2``; without
    how if no program is run."""
    return ", ".join(filter(None, (platform.how, platform.node))) or "local"


def position(step: StepInfo) -> str:
    """Return the stage and number of a step, ``build 3/7``; an unnamed stage is ``stage-0``."""
    stage = f"stage-{step.stage}" if step.stage.isdecimal() else step.stage
    number = f"{step.number}/{step.of}" if step.of else f"{step.number or ''}"
    return f"{stage} {number}".strip()


def wait_reason(step: StepState) -> str:
    """Return what a waiting step waits for: ``unpack``, ``its turn``."""
    return "its turn" if step.waits == "turn" else step.waits


def abbreviated_step(name: str) -> str:
    """Return an instruction for one line of a screen: RUN without its flags."""
    keyword, _, rest = name.partition(" ")
    if keyword.upper() != "RUN" or not rest.startswith("--"):
        return name
    words = rest.split(" ")
    while len(words) > 1 and words[0].startswith("--"):
        words.pop(0)
    return f"{keyword} {' '.join(words)}"


def steps(platform: PlatformState) -> str:
    """Return ``14 run, 5 cached``."""
    parts = [f"{platform.ran} run"] if platform.ran or not platform.cached else []
    if platform.cached:
        parts.append(f"{platform.cached} cached")
    return ", ".join(parts)


def short_digest(digest: str) -> str:
    """Return a shortened digest: its algorithm and twelve digits."""
    algorithm, colon, digits = digest.partition(":")
    return f"{algorithm}:{digits[:12]}" if colon else digest[:19]


def plural(count: int, noun: str) -> str:
    """Return ``1 platform``, ``2 platforms``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def platforms_in_summary(state: BuildState) -> tuple[PlatformState, ...]:
    """Return the platforms of the summary: none if the build failed before any was started."""
    return state.platforms if any(each.started for each in state.platforms) else ()


def summary_row(platform: PlatformState, now: float) -> tuple[str, ...]:
    """Return the cells of a platform under ``SUMMARY_HEADINGS``; one that was not built has its outcome for a
    digest."""
    return (
        platform.platform,
        placement_text(platform),
        str(platform.ran),
        str(platform.cached),
        units.size(platform.size) if platform.size else "-",
        units.duration(platform.seconds(now)) if platform.started else "-",
        short_digest(platform.digest) if platform.stage == "built" and platform.digest else platform.stage,
    )


def outcome(state: BuildState, now: float) -> str:
    """Return the final line: the outcome, the duration, and that no tag moved if none did."""
    took = units.duration(state.seconds(now))
    if state.outcome == "built":
        return f"built in {took}"
    word = f"{state.outcome or 'stopped'} after {took}"
    return f"{word}; no tag was moved" if state.tags and not state.published else word


def wait(state: WaitState, now: float) -> str:
    """Return ``waiting for r.example.com (12.0s): resolve r.example.com/app:1; status 503``."""
    why = f"; {state.why}" if state.why else ""
    return f"waiting for {state.registry} ({units.duration(now - state.since)}): {state.what}{why}"


def problem_line(problem: Problem) -> str:
    """Return ``what: why`` on one line."""
    return clean_line(f"{problem.what}: {problem.why}" if problem.why else problem.what)


def without_repetition(warning: WarningState, said: Iterable[WarningState]) -> Problem:
    """Return the problem of a warning without the reason and remedy that were shown before for the same rule."""
    problem = warning.problem
    if not warning.rule:
        return problem
    of_rule = [each.problem for each in said if each.rule == warning.rule]
    why = "" if any(each.why == problem.why for each in of_rule) else problem.why
    remedy = "" if any(each.remedy == problem.remedy for each in of_rule) else problem.remedy
    return replace(problem, why=why, remedy=remedy)


def merge_warnings(warnings: Iterable[WarningState]) -> tuple[WarningState, ...]:
    """Return warnings for display together: repeated reasons removed, and those that differ only in their line merged.

    Their lines are then in ``what``: ``… (also in lines 7, 9)``.
    """
    groups: dict[tuple[str, str, str, str], list[WarningState]] = {}
    for each in warnings:
        groups.setdefault((each.rule, each.problem.what, each.problem.why, each.problem.remedy), []).append(each)
    out: list[WarningState] = []
    for first, *others in groups.values():
        places = [each.problem.where.line for each in others if each.problem.where]
        also = f" (also in {'line' if len(places) == 1 else 'lines'} {', '.join(map(str, places))})" if places else ""
        platforms = tuple(dict.fromkeys(name for each in (first, *others) for name in each.platforms))
        problem = without_repetition(first, out)
        out.append(replace(first, problem=replace(problem, what=problem.what + also), platforms=platforms))
    return tuple(out)


def warning_line(warning: WarningState) -> str:
    """Return ``what: why (rule, file:line; platform)`` on one line."""
    problem = warning.problem
    facts = [warning.rule] if warning.rule else []
    if problem.where:
        facts.append(f"{problem.where.file}:{problem.where.line}")
    text = problem_line(problem)
    return f"{text} ({clean_line(', '.join(facts))})" if facts else text
