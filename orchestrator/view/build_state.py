"""The state of a build for display: events are folded into it, displays are functions of it.

All objects are frozen and shared between one state and the next; what could grow without bound (log lines, transfers,
warnings) is kept as a bounded tail. Folding an event takes a few microseconds. All untrusted text was cleaned by
``untrusted`` when it entered.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec.structs import replace

from executor import protocol
from orchestrator.view import events
from orchestrator.view.untrusted import clean_line, clean_log, clean_name
from platforms.errors import Problem

TAIL: Final = 24
"""Number of log lines that are kept of a running or failed step, and of a platform."""
WARNINGS: Final = 50
"""Maximum number of different warnings; further ones are counted."""
WAITS: Final = 16
"""Maximum number of waits for registries."""
OPEN_TRANSFERS: Final = 64
"""Maximum number of transfers that are tracked for each direction; also of finished ones that are remembered."""
LAYERS: Final = 512
"""Maximum number of layers of an image, and of what a stage uses, that are kept."""
_HERE: Final = "local"
"""The name of this machine where it is one of several nodes; else it is not named."""
RATE_SECONDS: Final = 2.0
"""Time constant of the rates: what was transferred this long ago has the weight 1/e."""


class StepStatus(enum.StrEnum):
    """The status of a step."""

    WAITING = "waiting"
    RUNNING = "running"
    CACHED = "cached"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


class StepState(msgspec.Struct, frozen=True):
    """One step of one platform."""

    step: protocol.StepInfo
    status: StepStatus = StepStatus.WAITING
    started: float = 0.0
    seconds: float = 0.0
    """Duration, once it has ended."""
    error: str = ""
    tail: tuple[str, ...] = ()
    """The last lines of its output; dropped when it succeeds."""
    spoke: float = 0.0
    """Time of its last line."""
    missed: str = ""
    """Why its result was not found in a cache (``protocol.Finished``)."""
    waits: str = ""
    """What it waits for (``protocol.Held``); "" while it runs."""
    since: float = 0.0
    """Time at which it began to wait."""
    waited: float = 0.0
    """Seconds that it has waited before."""

    def at_work(self, now: float) -> float:
        """Return the seconds that it has run, without waits, up to ``now``."""
        return max(0.0, (self.since if self.waits else now) - self.started - self.waited)


class Flow(msgspec.Struct, frozen=True):
    """Bytes transferred by one kind of action, over all its transfers."""

    action: protocol.Action
    done: int = 0
    total: int = 0
    """Sum of the known totals; for a transfer of unknown size, the bytes transferred so far."""
    first: float = 0.0
    at: float = 0.0
    """Time of the first report and of the latest."""
    weight: float = 0.0
    open: Mapping[str, tuple[int, int]] = MappingProxyType({})
    """Bytes done and total of the running transfers, by name."""
    closed: tuple[str, ...] = ()
    """Names of transfers that ended recently, so that a repeated last report is counted once."""

    def rate(self, now: float) -> float:
        """Return bytes per second, an exponentially weighted mean since the first report."""
        age = now - self.first
        if age <= 0:
            return 0.0
        weight = self.weight * math.exp(-max(0.0, now - self.at) / RATE_SECONDS)
        return weight / (1 - math.exp(-age / RATE_SECONDS))

    @property
    def busy(self) -> bool:
        """Whether a transfer is running."""
        return bool(self.open)


class PlatformState(msgspec.Struct, frozen=True):
    """The build of one platform."""

    platform: str
    node: str = ""
    how: str = ""
    """``native``, or the name of the emulator."""
    why: str = ""
    """Why it is built there; "" if there was no choice."""
    isolation: str = ""
    stage: str = "waiting"
    """``waiting``, ``running``, or the outcome: ``built``, ``failed``, ``cancelled``."""
    reason: str = ""
    waits: str = ""
    """What its executor waits for before it is there; "" if it is."""
    started: float = 0.0
    ended: float = 0.0
    steps: tuple[StepState, ...] = ()
    places: Mapping[int, int] = MappingProxyType({})
    """Index in ``steps`` by step id."""
    running: tuple[int, ...] = ()
    """Indices of the running steps, in the order in which they began."""
    finished: int = 0
    """Number of steps of stages that have ended: cached, done or failed."""
    counted: int = 0
    """Number of steps of stages, without others (export, push)."""
    cached: int = 0
    ran: int = 0
    flows: tuple[Flow, ...] = ()
    tail: tuple[tuple[int, str], ...] = ()
    """The last lines of all steps, each with the index of its step."""
    problem: Problem | None = None
    digest: str = ""
    size: int = 0
    stages: tuple[protocol.StageInfo, ...] = ()
    layers: tuple[tuple[str, int], ...] = ()
    """Digests and compressed sizes of the layers of the image, from the lowest."""
    after: tuple[str, ...] = ()
    """The images of a release that it is built from, until it is placed."""

    @property
    def image(self) -> str:
        """The image of a release that it is a platform of; "" in a build of one."""
        return self.platform.rpartition(" ")[0]

    @property
    def target(self) -> str:
        """The platform alone."""
        return self.platform.rpartition(" ")[2]

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.stage not in ("waiting", "running")

    def seconds(self, now: float) -> float:
        """Return its duration up to ``now`` or its end."""
        if not self.started:
            return 0.0
        return (self.ended or now) - self.started


class WarningState(msgspec.Struct, frozen=True):
    """A warning and the platform that raised it; "" for the orchestrator."""

    problem: Problem
    rule: str = ""
    platforms: tuple[str, ...] = ()


class WaitState(msgspec.Struct, frozen=True):
    """A registry that has not responded for a while; the platform is "" if the orchestrator waits."""

    platform: str
    registry: str
    what: str
    since: float
    why: str = ""


class BuildState(msgspec.Struct, frozen=True):
    """The state of a build."""

    name: str = ""
    tags: tuple[str, ...] = ()
    platforms: tuple[PlatformState, ...] = ()
    pins: tuple[tuple[str, str], ...] = ()
    """Base images that were looked up, each with its digest, or "" until it is known."""
    waits: tuple[WaitState, ...] = ()
    publishing: tuple[str, int, int] | None = None
    """What is being published, parts done, parts in total."""
    published: tuple[tuple[str, str], ...] = ()
    warnings: tuple[WarningState, ...] = ()
    more_warnings: int = 0
    """Number of warnings beyond ``WARNINGS``."""
    started: float = 0.0
    ended: float = 0.0
    outcome: str = ""
    """"" while the build runs."""
    digest: str = ""
    troubles: tuple[events.Failure, ...] = ()

    def seconds(self, now: float) -> float:
        """Return the duration of the build up to ``now`` or its end."""
        return (self.ended or now) - self.started if self.started else 0.0

    def platform(self, name: str) -> PlatformState | None:
        """Return the platform ``name``."""
        return next((each for each in self.platforms if each.platform == name), None)


def fold(state: BuildState, event: events.Event) -> BuildState:
    """Return the state after ``event``."""
    match event:
        case events.FromExecutor(platform=platform, message=message):
            if isinstance(message, protocol.BuildWarning):
                return _with_warning(state, message.problem, message.rule, platform)
            if isinstance(message, protocol.Waiting):
                return _with_wait(state, clean_line(platform), message, event.at)
            return _with_platform(state, platform, lambda old: _fold_message(old, message, event.at))
        case events.BuildStarted():
            here = _HERE if any(each.node for each in event.platforms) else ""
            places = tuple(
                PlatformState(
                    clean_line(each.platform),
                    clean_line(each.node) or here,
                    clean_line(each.how),
                    clean_line(each.why),
                    after=tuple(map(clean_line, each.after)),
                )
                for each in event.platforms
            )
            return replace(
                state,
                name=clean_line(event.name),
                tags=tuple(clean_line(tag) for tag in event.tags),
                platforms=places,
                started=event.at,
            )
        case events.ImagePlaced():
            for each in event.platforms:
                state = _with_platform(state, each.platform, partial(_placed, place=each))
            return state
        case events.Resolving(ref=ref):
            return replace(state, pins=_pinned(state.pins, clean_line(ref), ""))
        case events.Resolved(ref=ref, digest=digest):
            return replace(state, pins=_pinned(state.pins, clean_line(ref), clean_line(digest)))
        case events.PlatformStarted(platform=platform):
            return _with_platform(
                state,
                platform,
                lambda old: PlatformState(
                    old.platform,
                    old.node if event.node == _HERE and not old.node else clean_line(event.node) or old.node,
                    clean_line(event.how) or old.how,
                    "" if old.started else old.why,
                    stage="running",
                    started=event.at,
                ),
            )
        case events.PlatformWaiting(platform=platform, why=why):
            return _with_platform(state, platform, lambda old: replace(old, waits=clean_line(why)))
        case events.PlatformMoved(platform=platform):
            state = replace(state, waits=tuple(each for each in state.waits if each.platform != clean_line(platform)))
            return _with_warning(state, event.warning, type(event).__name__, "")
        case events.PlatformEnded(platform=platform):
            state = replace(state, waits=tuple(each for each in state.waits if each.platform != clean_line(platform)))
            return _with_platform(state, platform, lambda old: _ended(old, event))
        case events.RegistryWaiting():
            return _with_wait(state, "", event, event.at)
        case events.WarningRaised(problem=problem, rule=rule):
            return _with_warning(state, problem, rule, "")
        case events.Publishing(what=what, done=done, total=total):
            return replace(state, publishing=(clean_line(what), done, total))
        case events.Published(ref=ref, digest=digest):
            return replace(state, published=(*state.published, (clean_line(ref), clean_line(digest))))
        case events.BuildEnded():
            return _build_ended(state, event)
    return state


def _with_platform(state: BuildState, name: str, change: Callable[[PlatformState], PlatformState]) -> BuildState:
    name = clean_line(name)
    for position, old in enumerate(state.platforms):
        if old.platform == name:
            new = change(old)
            if new is old:
                return state
            kept = state.platforms
            return replace(state, platforms=(*kept[:position], new, *kept[position + 1 :]))
    return replace(state, platforms=(*state.platforms, change(PlatformState(name))))


def _placed(old: PlatformState, place: events.PlatformPlacement) -> PlatformState:
    return replace(old, node=clean_line(place.node), how=clean_line(place.how), why=clean_line(place.why))


def _pinned(pins: tuple[tuple[str, str], ...], ref: str, digest: str) -> tuple[tuple[str, str], ...]:
    if any(known == ref for known, _ in pins):
        return tuple((known, digest if known == ref else found) for known, found in pins)
    return (*pins, (ref, digest))


def _with_warning(state: BuildState, problem: Problem, rule: str, platform: str) -> BuildState:
    named = (platform,) if platform else ()
    for position, old in enumerate(state.warnings):
        if old.problem == problem and old.rule == rule:
            if platform in old.platforms or not platform:
                return state
            new = replace(old, platforms=old.platforms + named)
            return replace(state, warnings=(*state.warnings[:position], new, *state.warnings[position + 1 :]))
    if len(state.warnings) >= WARNINGS:
        return replace(state, more_warnings=state.more_warnings + 1)
    return replace(state, warnings=(*state.warnings, WarningState(problem, rule, named)))


def _with_wait(
    state: BuildState, platform: str, wait: protocol.Waiting | events.RegistryWaiting, at: float
) -> BuildState:
    what = clean_line(wait.what)
    others = tuple(each for each in state.waits if (each.platform, each.what) != (platform, what))
    if wait.over:
        return replace(state, waits=others)
    new = WaitState(platform, clean_line(wait.registry), what, at - max(0.0, wait.seconds), clean_line(wait.why))
    return replace(state, waits=(*others[1 - WAITS :], new))


def _ended(old: PlatformState, event: events.PlatformEnded) -> PlatformState:
    problem = old.problem
    reason = event.reason or (problem.why or problem.what if problem else "")
    steps = tuple(_cancelled_step(each, event.at) for each in old.steps)
    return replace(
        old,
        stage=event.outcome,
        reason=clean_line(reason),
        waits="",
        ended=event.at,
        steps=steps,
        running=(),
        flows=_idle(old),
    )


def _cancelled_step(step: StepState, at: float) -> StepState:
    if step.status is StepStatus.RUNNING:
        return replace(step, status=StepStatus.SKIPPED, seconds=step.at_work(at), waits="")
    return replace(step, status=StepStatus.SKIPPED) if step.status is StepStatus.WAITING else step


def _idle(old: PlatformState) -> tuple[Flow, ...]:
    return tuple(replace(flow, open=MappingProxyType({})) for flow in old.flows)


def _build_ended(state: BuildState, event: events.BuildEnded) -> BuildState:
    platforms = tuple(
        each if each.over else _ended(each, events.PlatformEnded(each.platform, "cancelled", at=event.at))
        for each in state.platforms
    )
    return replace(
        state,
        platforms=platforms,
        waits=(),
        publishing=None,
        outcome=event.outcome,
        digest=clean_line(event.digest),
        troubles=event.troubles,
        ended=event.at,
    )


def _fold_message(old: PlatformState, message: protocol.Message, at: float) -> PlatformState:
    match message:
        case protocol.Log(step=step, text=text):
            return _logged(old, step, tuple(map(clean_log, text.rsplit("\n", TAIL)[-TAIL:])), at)
        case protocol.Transfer():
            return _moved(old, message, at)
        case protocol.Started(step=step):
            return _started(old, step, at)
        case protocol.Held(step=step, what=what):
            return _waits(old, step, clean_line(what), at)
        case protocol.Finished():
            return _finished(old, message, at)
        case protocol.Planned(steps=steps, emulation=emulation, stages=stages):
            planned = _planned(old, steps, clean_line(emulation))
            return replace(planned, stages=tuple(map(_clean_stage, stages))) if stages else planned
        case protocol.Handshake(isolation=isolation):
            return replace(old, isolation=clean_line(isolation))
        case protocol.Result():
            counts = (message.cached, message.ran)
            cached, ran = counts if any(counts) else (old.cached, old.ran)
            layers = tuple((clean_line(each.digest), each.size) for each in message.layers[:LAYERS])
            digest = clean_line(message.manifest.digest)
            return replace(old, digest=digest, size=message.size, cached=cached, ran=ran, layers=layers)
        case protocol.Failed(problem=problem):
            return replace(old, problem=problem)
    return old


def _clean_stage(stage: protocol.StageInfo) -> protocol.StageInfo:
    needs, bases = (tuple(map(clean_line, each[:LAYERS])) for each in (stage.needs, stage.bases))
    return protocol.StageInfo(clean_line(stage.label), needs, bases)


def _planned(old: PlatformState, steps: tuple[protocol.StepInfo, ...], emulation: str) -> PlatformState:
    known = {each.step.id: each for each in old.steps}
    for step in steps:
        shown = replace(step, stage=clean_line(step.stage), name=clean_name(step.name))
        known[step.id] = replace(known[step.id], step=shown) if step.id in known else StepState(shown)
    return _with_steps(replace(old, how=emulation or old.how), tuple(known.values()))


def _with_steps(old: PlatformState, steps: tuple[StepState, ...]) -> PlatformState:
    places = {each.step.id: position for position, each in enumerate(steps)}
    counted = sum(1 for each in steps if each.step.number)
    return replace(old, steps=steps, places=MappingProxyType(places), counted=counted)


def _place(old: PlatformState, step: int) -> tuple[PlatformState, int]:
    """Return the index of ``step``, and the platform with that step added if it was not planned."""
    position = old.places.get(step)
    if position is not None:
        return old, position
    return _with_steps(old, (*old.steps, StepState(protocol.StepInfo(step, "", f"step {step}")))), len(old.steps)


def _put(old: PlatformState, position: int, new: StepState) -> tuple[StepState, ...]:
    return (*old.steps[:position], new, *old.steps[position + 1 :])


def _started(old: PlatformState, step: int, at: float) -> PlatformState:
    old, position = _place(old, step)
    new = StepState(old.steps[position].step, StepStatus.RUNNING, started=at, spoke=old.steps[position].spoke)
    running = tuple(each for each in old.running if each != position)
    return replace(old, steps=_put(old, position, new), running=(*running, position))


def _waits(old: PlatformState, step: int, what: str, at: float) -> PlatformState:
    old, position = _place(old, step)
    known = old.steps[position]
    waited = known.waited + (max(0.0, at - known.since) if known.waits else 0.0)
    return replace(old, steps=_put(old, position, replace(known, waits=what, since=at, waited=waited)))


def _finished(old: PlatformState, message: protocol.Finished, at: float) -> PlatformState:
    old, position = _place(old, message.step)
    step = old.steps[position]
    well = StepStatus.CACHED if message.cached else StepStatus.DONE
    status = StepStatus.FAILED if message.error else well
    seconds = message.seconds or (step.at_work(at) if step.started else 0.0)
    tail = step.tail if status is StepStatus.FAILED else ()
    error, missed = clean_line(message.error), clean_line(message.missed)
    new = replace(step, status=status, seconds=seconds, error=error, missed=missed, tail=tail, waits="")
    counts = bool(step.step.number) and step.status in (StepStatus.WAITING, StepStatus.RUNNING)
    return replace(
        old,
        steps=_put(old, position, new),
        running=tuple(each for each in old.running if each != position),
        finished=old.finished + counts,
        cached=old.cached + (counts and status is StepStatus.CACHED),
        ran=old.ran + (counts and status is StepStatus.DONE),
    )


def _logged(old: PlatformState, step: int, lines: tuple[str, ...], at: float) -> PlatformState:
    old, position = _place(old, step)
    speaker = old.steps[position]
    new = replace(speaker, tail=(*speaker.tail, *lines)[-TAIL:], spoke=at)
    tail = (*old.tail, *((position, line) for line in lines))[-TAIL:]
    return replace(old, steps=_put(old, position, new), tail=tail)


def _moved(old: PlatformState, message: protocol.Transfer, at: float) -> PlatformState:
    for position, flow in enumerate(old.flows):
        if flow.action == message.action:
            return replace(old, flows=(*old.flows[:position], _flowed(flow, message, at), *old.flows[position + 1 :]))
    return replace(old, flows=(*old.flows, _flowed(Flow(message.action, first=at, at=at), message, at)))


def _flowed(flow: Flow, message: protocol.Transfer, at: float) -> Flow:
    name = message.name[:256]
    if name in flow.closed:
        return flow
    was_done, was_total = flow.open.get(name, (0, 0))
    done, total = max(0, message.done), max(message.total, message.done, 0)
    moved = max(0, done - was_done)
    still = dict(flow.open)
    still[name] = (done, total)
    closed = flow.closed
    if 0 < message.total <= message.done:
        del still[name]
        closed = (*closed[1 - OPEN_TRANSFERS :], name)
    elif len(still) > OPEN_TRANSFERS:
        del still[next(iter(still))]
    return replace(
        flow,
        done=flow.done + done - was_done,
        total=flow.total + total - was_total,
        at=at,
        weight=flow.weight * math.exp(-max(0.0, at - flow.at) / RATE_SECONDS) + moved / RATE_SECONDS,
        open=MappingProxyType(still),
        closed=closed,
    )
