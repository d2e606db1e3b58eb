"""The short phrases that all displays share: where a platform is built, what a step is called, the summary's cells."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from executor.protocol import Step
from orchestrator.view import amounts
from orchestrator.view.state import Caution, PlatformState, State, StepState, WaitState
from orchestrator.view.untrusted import clean_line
from platforms.errors import Problem

SUMMARY_HEADINGS: Final = ("platform", "built on", "run", "cached", "size", "time", "digest")


def where(platform: PlatformState) -> str:
    """How and on which node: ``native``, ``qemu-aarch64``, ``native, builder-2``."""
    how = platform.how or "local"
    return f"{how}, {platform.node}" if platform.node not in ("", "local") else how


def position(step: Step) -> str:
    """A step's stage and number, ``build 3/7``; an unnamed stage is called by its number, ``stage-0 3/7``."""
    stage = f"stage-{step.stage}" if step.stage.isdecimal() else step.stage
    number = f"{step.number}/{step.of}" if step.of else f"{step.number or ''}"
    return f"{stage} {number}".strip()


def waited_for(step: StepState) -> str:
    """What a step that waits is waiting for: ``unpack``, ``its turn``."""
    return "its turn" if step.waits == "turn" else step.waits


def brief(name: str) -> str:
    """An instruction for one line of a screen: RUN without its flags, for what it runs is what people look for."""
    keyword, _, rest = name.partition(" ")
    if keyword.upper() != "RUN" or not rest.startswith("--"):
        return name
    words = rest.split(" ")
    while len(words) > 1 and words[0].startswith("--"):
        words.pop(0)
    return f"{keyword} {' '.join(words)}"


def steps(platform: PlatformState) -> str:
    """``14 run, 5 cached``."""
    parts = [f"{platform.ran} run"] if platform.ran or not platform.cached else []
    if platform.cached:
        parts.append(f"{platform.cached} cached")
    return ", ".join(parts)


def short_digest(digest: str) -> str:
    """A digest cut for reading: its algorithm and twelve digits."""
    algorithm, colon, digits = digest.partition(":")
    return f"{algorithm}:{digits[:12]}" if colon else digest[:19]


def plural(count: int, noun: str) -> str:
    """``1 platform``, ``2 platforms``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def summarised(state: State) -> tuple[PlatformState, ...]:
    """The platforms that the summary lists: none when the build failed before any was started."""
    return state.platforms if any(each.started for each in state.platforms) else ()


def summary_row(platform: PlatformState, now: float) -> tuple[str, ...]:
    """The platform's cells under ``SUMMARY_HEADINGS``; one that was not built has its outcome for a digest."""
    return (
        platform.platform,
        where(platform),
        str(platform.ran),
        str(platform.cached),
        amounts.size(platform.size) if platform.size else "-",
        amounts.duration(platform.seconds(now)) if platform.started else "-",
        short_digest(platform.digest) if platform.stage == "built" and platform.digest else platform.stage,
    )


def outcome(state: State, now: float) -> str:
    """The build's last word: what became of it, how long it took, and that no tag moved if none did."""
    took = amounts.duration(state.seconds(now))
    if state.outcome == "built":
        return f"built in {took}"
    word = f"{state.outcome or 'stopped'} after {took}"
    return f"{word}; no tag was moved" if state.tags and not state.published else word


def wait(state: WaitState, now: float) -> str:
    """``waiting for r.example.com (12.0s): resolve r.example.com/app:1; status 503``."""
    why = f"; {state.why}" if state.why else ""
    return f"waiting for {state.registry} ({amounts.duration(now - state.since)}): {state.what}{why}"


def problem_line(problem: Problem) -> str:
    """``what: why`` on one line."""
    return clean_line(f"{problem.what}: {problem.why}" if problem.why else problem.what)


def unsaid(caution: Caution, said: Iterable[Caution]) -> Problem:
    """What is new in ``caution`` after those that were ``said``: of one rule, why and remedy are told once."""
    problem = caution.problem
    if not caution.rule:
        return problem
    of_rule = [each.problem for each in said if each.rule == caution.rule]
    why = "" if any(each.why == problem.why for each in of_rule) else problem.why
    remedy = "" if any(each.remedy == problem.remedy for each in of_rule) else problem.remedy
    return replace(problem, why=why, remedy=remedy)


def folded(cautions: Iterable[Caution]) -> tuple[Caution, ...]:
    """``cautions`` as they are shown together: ``unsaid`` of each, and those that differ in their line alone as one.

    The lines of such are in its ``what``: ``… (also in lines 7, 9)``.
    """
    groups: dict[tuple[str, str, str, str], list[Caution]] = {}
    for each in cautions:
        groups.setdefault((each.rule, each.problem.what, each.problem.why, each.problem.remedy), []).append(each)
    out: list[Caution] = []
    for first, *others in groups.values():
        places = [each.problem.where.line for each in others if each.problem.where]
        also = f" (also in {'line' if len(places) == 1 else 'lines'} {', '.join(map(str, places))})" if places else ""
        platforms = tuple(dict.fromkeys(name for each in (first, *others) for name in each.platforms))
        problem = unsaid(first, out)
        out.append(replace(first, problem=replace(problem, what=problem.what + also), platforms=platforms))
    return tuple(out)


def caution_line(caution: Caution) -> str:
    """``what: why (rule, file:line; platform)`` on one line."""
    problem = caution.problem
    facts = [caution.rule] if caution.rule else []
    if problem.where:
        facts.append(f"{problem.where.file}:{problem.where.line}")
    text = problem_line(problem)
    return f"{text} ({clean_line(', '.join(facts))})" if facts else text
