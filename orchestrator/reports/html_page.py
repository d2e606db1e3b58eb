"""A build as a page: ``--report FILE.html``.

One file without scripts and without anything from elsewhere, which its content security policy forbids. It is made for
keyboards and screen readers: what bars and drawings show is in tables, too, and what is long is folded.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from executor.protocol import StageInfo
from orchestrator.reports import html_graph
from orchestrator.reports.html_elements import bar, element, fold, table, tag, text
from orchestrator.reports.html_style import STYLE
from orchestrator.view import problems, units, wording
from orchestrator.view.build_state import BuildState, Flow, PlatformState, StepState, StepStatus, WarningState
from orchestrator.view.events import Failure
from platforms.errors import Location

STEPS: Final = 5000
"""Maximum number of steps of a platform that are listed."""
LONGEST: Final = 10
"""Number of steps among the longest."""
_UNFOLDED: Final = 60
"""A stage with at most so many steps is unfolded."""
_STATUSES: Final = {
    StepStatus.DONE: ("ran", "ran"),
    StepStatus.CACHED: ("cached", "cached"),
    StepStatus.FAILED: ("failed", "failed"),
    StepStatus.RUNNING: ("stopped", "did not end"),
    StepStatus.WAITING: ("stopped", "not started"),
    StepStatus.SKIPPED: ("stopped", "skipped"),
}
"""The class and the word of each status."""


def render(state: BuildState, _environ: Mapping[str, str]) -> str:
    """Return the page of a build that has ended."""
    sections = [
        ("overview", "Overview", _overview(state)),
        ("errors", "Errors", _errors(state)),
        ("timeline", "Timeline", _timeline(state)),
        ("steps", "Steps", _steps(state)),
        ("warnings", "Warnings", _warnings(state)),
        ("layers", "Layers", _layers(state)),
        ("index", "Image", _image(state)),
        ("stages", "Stages", _stages(state)),
    ]
    shown = [each for each in sections if each[2]]
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title, _ in shown)
    body = "".join(f'<section id="{key}"><h2>{title}</h2>{content}</section>' for key, title, content in shown)
    name = text(state.name if state.name not in ("", ".") else "image")
    outcome = state.outcome or "stopped"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">'
        f"<title>{text(outcome)}: {name} - kanifold</title><style>{STYLE}</style></head><body>"
        f'<a class="skip" href="#overview">Skip to the report</a><header><p class="brand">kanifold</p><h1>{name}</h1>'
        f"<p>{tag(outcome)} {text(wording.outcome(state, state.ended))}</p>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main>{body}</main></body></html>\n'
    )


def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    return text(f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'")


def _overview(state: BuildState) -> str:
    ran, cached = (sum(getattr(each, name) for each in state.platforms) for name in ("ran", "cached"))
    pulled, pushed = (
        sum(flow.done for each in state.platforms for flow in each.flows if flow.action == action)
        for action in ("pull", "push")
    )
    warnings = len(state.warnings) + state.more_warnings
    facts = [
        ("Time", units.duration(state.seconds(state.ended))),
        ("Steps run", str(ran)),
        ("Steps cached", str(cached)),
        ("Pulled", units.size(pulled)),
        ("Pushed", units.size(pushed)),
        ("Warnings", str(warnings)),
    ]
    tiles = "".join(f"<div><dt>{text(key)}</dt><dd>{text(value)}</dd></div>" for key, value in facts)
    return f'<dl class="tiles">{tiles}</dl>{_platform_table(state)}{_longest(state)}'


def _platform_table(state: BuildState) -> str:
    platforms = wording.platforms_in_summary(state)
    if not platforms:
        return ""
    headings = [text(each) for each in wording.SUMMARY_HEADINGS]
    rows = (
        [text(cell) for cell in (*wording.summary_row(each, state.ended)[:-1],)]
        + [tag(each.stage) if each.stage != "built" else f"<code>{text(wording.short_digest(each.digest))}</code>"]
        for each in platforms
    )
    return table("Platforms", headings, rows)


def _longest(state: BuildState) -> str:
    steps = [(step.seconds, each, step) for each in state.platforms for step in each.steps if step.seconds >= 0.1]
    steps.sort(key=lambda found: -found[0])
    if len(steps) < 2:
        return ""
    most = steps[0][0]
    rows = (
        (
            _step_name(step),
            text(each.platform),
            text(units.duration(seconds)),
            bar(0, seconds / most, _kind(step), _step_title(step)),
        )
        for seconds, each, step in steps[:LONGEST]
    )
    return table("Longest steps", ("step", "platform", "time", ""), rows, "timed")


def _errors(state: BuildState) -> str:
    return "".join(map(_failure, problems.distinct(state.troubles)))


def _failure(trouble: Failure) -> str:
    problem = trouble.problem
    where = f" <small>{text(trouble.platform)}</small>" if trouble.platform else ""
    parts = [f"<h3>{text(problem.what)}{where}</h3>"]
    parts += [f"<p>{text(problem.why)}</p>"] if problem.why else []
    parts += [f"<p><strong>Remedy:</strong> {text(problem.remedy)}</p>"] if problem.remedy else []
    parts += [_excerpt(problem.where)] if problem.where else []
    if problem.log:
        log = "\n".join(text(each) for each in problem.log)
        parts.append(f'<pre class="log" tabindex="0" aria-label="Output">{log}</pre>')
    return element("article", "".join(parts), class_="problem failed")


def _excerpt(where: Location) -> str:
    """Return the lines around a place; those that it is about are marked, also for readers."""
    if not where.source:
        return f"<p><code>{text(where.file)}:{where.line}</code></p>"
    lines = []
    for number, line in enumerate(where.source, where.first):
        inner = f"<b>{number:>5}</b> {text(line)}"
        lines.append(f"<mark>{inner}</mark>" if where.line <= number <= where.end_line else f"<span>{inner}</span>")
    name = f"{where.file}:{where.line}"
    source = "\n".join(lines)
    return (
        f"<figure><figcaption><code>{text(name)}</code></figcaption>"
        f'<pre tabindex="0" aria-label="{text(name)}">{source}</pre></figure>'
    )


def _timeline(state: BuildState) -> str:
    start, length = state.started, state.seconds(state.ended) or 1.0
    rows: list[tuple[str, ...]] = []
    for each in state.platforms:
        if not each.started:
            continue
        rows.append(_span(text(each.platform), each.started - start, each.seconds(state.ended), length, each.stage))
        rows += (_stage_span(*found, start, length) for found in _spans(each))
        rows += (_flow_span(flow, start, length) for flow in each.flows)
    return table("From the start to the end of the build", ("what", "from", "time", ""), rows, "timed") if rows else ""


def _span(name: str, begin: float, seconds: float, length: float, kind: str) -> tuple[str, ...]:
    drawn = bar(begin / length, seconds / length, kind, units.duration(seconds))
    return name, text(units.duration(max(0.0, begin))), text(units.duration(seconds)), drawn


def _spans(platform: PlatformState) -> Iterable[tuple[str, float, float, str]]:
    """Yield the stages of a platform, with begin, end and kind."""
    found: dict[str, list[StepState]] = {}
    for step in platform.steps:
        if step.started:
            found.setdefault(step.step.stage, []).append(step)
    for stage, steps in found.items():
        end = max(each.started + each.waited + each.seconds for each in steps)
        ran = any(_kind(each) == "ran" for each in steps)
        failed = any(each.status is StepStatus.FAILED for each in steps)
        kind = "failed" if failed else "ran" if ran else "cached"
        yield stage, min(each.started for each in steps), end, kind


def _stage_span(stage: str, begin: float, end: float, kind: str, start: float, length: float) -> tuple[str, ...]:
    name = f'<span class="inner">{text(_stage_title(stage))}</span>'
    return _span(name, begin - start, end - begin, length, kind)


def _flow_span(flow: Flow, start: float, length: float) -> tuple[str, ...]:
    name = f'<span class="inner">{text(flow.action)} <small>{text(units.size(flow.done))}</small></span>'
    return _span(name, flow.first - start, flow.at - flow.first, length, "moved")


def _stage_title(stage: str) -> str:
    return f"stage {stage}" if stage else "steps"


def _steps(state: BuildState) -> str:
    start, length = state.started, state.seconds(state.ended) or 1.0
    several = len(state.platforms) > 1
    parts: list[str] = []
    for platform in state.platforms:
        stages: dict[str, list[StepState]] = {}
        for step in platform.steps[:STEPS]:
            stages.setdefault(step.step.stage, []).append(step)
        inner = "".join(_stage_steps(name, each, start, length) for name, each in stages.items())
        more = len(platform.steps) - STEPS
        inner += f"<p>{more} more steps are not listed.</p>" if more > 0 else ""
        if not inner:
            continue
        title = f"<h3>{text(platform.platform)}</h3> <small>{text(wording.steps(platform))}</small>"
        unfolded = platform.stage == "failed" or sum(len(each.steps) for each in state.platforms) <= _UNFOLDED
        parts.append(fold(title, inner, unfolded=unfolded) if several else inner)
    return "".join(parts)


def _stage_steps(name: str, steps: Sequence[StepState], start: float, length: float) -> str:
    rows = (
        (
            _step_name(each),
            tag(_kind(each), _status(each)),
            text(units.duration(each.seconds)) if each.status in (StepStatus.DONE, StepStatus.FAILED) else "",
            _step_bar(each, start, length),
            text(each.missed or each.error),
        )
        for each in steps
    )
    title = _stage_title(name)
    listed = table(
        f"{title}: {wording.plural(len(steps), 'step')}", ("step", "", "time", "", "why it was made"), rows, "timed"
    )
    failed = any(each.status is StepStatus.FAILED for each in steps)
    return fold(_stage_summary(title, steps), listed, unfolded=failed or len(steps) <= _UNFOLDED)


def _stage_summary(title: str, steps: Sequence[StepState]) -> str:
    counts = {kind: sum(1 for each in steps if _kind(each) == kind) for kind in ("ran", "cached", "failed")}
    tags = " ".join(tag(kind, f"{count} {kind}") for kind, count in counts.items() if count)
    seconds = units.duration(sum(each.seconds for each in steps))
    return f"<strong>{text(title)}</strong> {tags} <small>{text(seconds)}</small>"


def _kind(step: StepState) -> str:
    """Return the class of a step; a base image that was looked up was neither run nor cached."""
    if step.status is StepStatus.DONE and step.step.name[:5].upper() == "FROM ":
        return "base"
    return _STATUSES[step.status][0]


def _status(step: StepState) -> str:
    kind = _kind(step)
    return kind if kind == "base" else _STATUSES[step.status][1]


def _step_title(step: StepState) -> str:
    return f"{step.step.name} ({units.duration(step.seconds)})"


def _step_name(step: StepState) -> str:
    number = f"<small>{text(wording.position(step.step))}</small> " if step.step.number else ""
    line = f" <small>line {step.step.line}</small>" if step.step.line else ""
    return f'{number}<code class="name">{text(step.step.name)}</code>{line}'


def _step_bar(step: StepState, start: float, length: float) -> str:
    if not step.started:
        return ""
    begin = (step.started + step.waited - start) / length
    return bar(begin, step.seconds / length, _kind(step), _step_title(step))


def _warnings(state: BuildState) -> str:
    found = "".join(map(_warning, wording.merge_warnings(state.warnings)))
    more = f"<p>{state.more_warnings} more warnings are not listed.</p>" if state.more_warnings else ""
    return found + more


def _warning(warning: WarningState) -> str:
    problem = warning.problem
    facts = " ".join(tag("rule", each) for each in (warning.rule, *warning.platforms) if each)
    parts = [f"<h3>{text(problem.what)} {facts}</h3>"]
    parts += [f"<p>{text(problem.why)}</p>"] if problem.why else []
    parts += [f"<p><strong>Remedy:</strong> {text(problem.remedy)}</p>"] if problem.remedy else []
    parts += [_excerpt(problem.where)] if problem.where else []
    return element("article", "".join(parts), class_="problem warned")


def _layers(state: BuildState) -> str:
    parts: list[str] = []
    for each in state.platforms:
        if not each.layers:
            continue
        most = max(size for _, size in each.layers) or 1
        rows = (
            (
                f"{at}",
                text(units.size(size)),
                bar(0, size / most, "moved", units.size(size)),
                f"<code>{text(digest)}</code>",
            )
            for at, (digest, size) in enumerate(each.layers, 1)
        )
        total = units.size(sum(size for _, size in each.layers))
        title = f"{each.platform}: {wording.plural(len(each.layers), 'layer')}, {total}"
        listed = table(title, ("layer", "size", "", "digest"), rows, "sized")
        parts.append(fold(f"<strong>{text(title)}</strong>", listed, unfolded=len(parts) < 3))
    return "".join(parts)


def _image(state: BuildState) -> str:
    images = _by_image(state)
    if state.outcome != "built" or not (state.digest or any(images)):
        return ""
    if any(images):
        tree = "".join(
            f"<li>{tag('rule', 'image')} {text(name)}<ul>{_manifests(platforms)}</ul></li>"
            for name, platforms in images.items()
        )
    else:
        several = len(state.platforms) > 1
        manifests = _manifests(state.platforms)
        root = f"<code>{text(state.digest)}</code>"
        tree = f"<li>{tag('rule', 'index')} {root}<ul>{manifests}</ul></li>" if several else manifests
    tags = "".join(
        f"<li>{tag('built', 'published')} <code>{text(ref)}</code> <code>{text(digest)}</code></li>"
        for ref, digest in state.published
    )
    return f'<ul class="tree">{tree}</ul>' + (f'<ul class="tree">{tags}</ul>' if tags else "")


def _by_image(state: BuildState) -> dict[str, list[PlatformState]]:
    """Return the platforms by the image of a release that they are of, which is "" in a build of one."""
    found: dict[str, list[PlatformState]] = {}
    for each in state.platforms:
        found.setdefault(each.image, []).append(each)
    return found


def _manifests(platforms: Iterable[PlatformState]) -> str:
    return "".join(_manifest(each) for each in platforms if each.digest)


def _manifest(platform: PlatformState) -> str:
    layers = "".join(
        f"<li><code>{text(digest)}</code> <small>{text(units.size(size))}</small></li>"
        for digest, size in platform.layers
    )
    title = f"{tag('rule', 'manifest')} {text(platform.platform)} <code>{text(platform.digest)}</code>"
    if not layers:
        return f"<li>{title}</li>"
    return f"<li>{fold(title, f'<ul>{layers}</ul>', unfolded=False)}</li>"


def _stages(state: BuildState) -> str:
    parts = []
    for name, platforms in _by_image(state).items():
        stages = next((each.stages for each in platforms if len(each.stages) > 1), ())
        if stages:
            parts.append((f"<h3>{text(name)}</h3>" if name else "") + _graph(name, stages))
    return "".join(parts)


def _graph(image: str, stages: Sequence[StageInfo]) -> str:
    of = f" of {image}" if image else ""
    drawn = html_graph.drawing(stages)
    rows = (
        (
            text(each.label),
            text(", ".join(each.needs)) or "-",
            " ".join(f"<code>{text(base)}</code>" for base in each.bases) or "-",
        )
        for each in stages
    )
    label = text(f"Drawing of the stages{of}")
    region = f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">{drawn}</div>'
    return region + table(f"Stages{of} and what they use", ("stage", "stages", "images"), rows)
