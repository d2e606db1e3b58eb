"""The display for pipes and CI: one line a happening, each with its platform, and no control characters.

    [linux/arm64 build 3/7] RUN apt-get update
    [linux/arm64 build 3/7] 0.42 Get:1 ...
    [linux/arm64 build 3/7] DONE 1.2s
    [linux/arm64 build 4/7] CACHED COPY . /src

A log line is preceded by the seconds since its step began. In a CI whose log folds, a step's lines go through
``grouping``.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import Final, Self, TextIO

from msgspec.structs import replace

from executor import protocol
from executor.protocol import Action
from orchestrator.view import amounts, ci, events, problems, terminal, wording
from orchestrator.view.grouping import Grouping
from orchestrator.view.sink import Sink
from orchestrator.view.state import PlatformState, State, Status, StepState, fold
from orchestrator.view.untrusted import clean_line, clean_logs

LOG_LIMIT: Final = 64 << 10
"""Characters of a log line that are printed."""
PROGRESS_SECONDS: Final = 10.0
"""Seconds between two lines about the bytes that one platform moves in one direction."""

_MOVING: Final = {Action.PULL: "pulling", Action.PUSH: "pushing", Action.UNPACK: "unpacking"}


class Plain:
    """A ``Display`` of lines. ``emit`` writes at once, and waits where the reader is slow."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str]) -> None:
        self._sink = Sink(stream)
        self._stream = stream
        groups = ci.groups_of(environ)
        self._grouping = Grouping(groups) if groups else None
        self._annotates = ci.in_actions(environ)
        self._lock = threading.Lock()
        self._state = State()
        self._told: dict[tuple[str, str], float] = {}
        """When the bytes of a platform's action were last told of."""

    def emit(self, event: events.Event) -> None:
        """Write what ``event`` has to say; from any thread."""
        if isinstance(event, events.BuildEnded) and terminal.same(self._stream, sys.stdout):
            event = replace(event, digest="")  # there it follows: it is what the command prints on stdout
        with self._lock:
            old, self._state = self._state, fold(self._state, event)
            lines = lines_of(old, self._state, event) or self._progress(event)
            if self._grouping:
                self._sink.write(self._grouping.text(self._state, event, lines))
            else:
                self._sink.write("".join(f"{line}\n" for line in lines))
            if self._annotates:
                self._sink.write("".join(f"{line}\n" for line in annotations_of(old, self._state)))

    def close(self) -> None:
        """Write what was held back."""
        with self._lock:
            if self._grouping:
                self._sink.write(self._grouping.rest())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _progress(self, event: events.Event) -> tuple[str, ...]:
        """A line about bytes under way, now and then."""
        if not (isinstance(event, events.FromExecutor) and isinstance(event.message, protocol.Transfer)):
            return ()
        action = event.message.action
        told = self._told.setdefault((event.platform, action), event.at)
        if action not in _MOVING or event.at - told < PROGRESS_SECONDS:
            return ()
        self._told[event.platform, action] = event.at
        platform = self._state.platform(clean_line(event.platform))
        flow = next(each for each in platform.flows if each.action == action) if platform else None
        if platform is None or flow is None or not flow.busy:
            return ()
        moved, rate = amounts.part(flow.done, flow.total), amounts.size(flow.rate(event.at))
        return (f"[{platform.platform}] {_MOVING[action]} {moved}, {rate}/s",)


def lines_of(old: State, new: State, event: events.Event) -> tuple[str, ...]:
    """The lines that ``event`` is worth, given the states before and after it."""
    match event:
        case events.FromExecutor(message=protocol.BuildWarning()):
            return _cautions(old, new)
        case events.FromExecutor(platform=name, message=protocol.Waiting(over=False)):
            return (f"[{clean_line(name)}] {wording.wait(new.waits[-1], event.at)}",)
        case events.Waiting(over=False):
            return (wording.wait(new.waits[-1], event.at),)
        case events.FromExecutor(platform=name, message=message):
            platform = new.platform(clean_line(name))
            return _heard(platform, message, event.at) if platform else ()
        case events.BuildStarted():
            places = ", ".join(f"{each.platform} ({wording.where(each)})" for each in new.platforms)
            return (f"building {new.name} for {places}" if new.name else f"building for {places}",)
        case events.Resolved(ref=ref, digest=digest):
            return (f"resolved {clean_line(ref)} to {clean_line(digest)}",)
        case events.PlatformStarted(platform=name):
            platform = new.platform(clean_line(name))
            return (f"[{platform.platform}] started: {wording.where(platform)}",) if platform else ()
        case events.PlatformEnded(platform=name):
            platform = new.platform(clean_line(name))
            return (_ended(platform, event.at),) if platform else ()
        case events.Cautioned():
            return _cautions(old, new)
        case events.Publishing() if new.publishing and (old.publishing or ("",))[0] != new.publishing[0]:
            return (f"publishing {new.publishing[0]}",)
        case events.Published(ref=ref, digest=digest):
            return (f"published {clean_line(ref)} {clean_line(digest)}",)
        case events.BuildEnded():
            return _summary(new, event.at)
    return ()


def annotations_of(old: State, new: State) -> tuple[str, ...]:
    """GitHub's commands for the warnings and errors that came between two states."""
    known = {each.problem for each in old.warnings}
    warnings = tuple(ci.annotation("warning", each.problem) for each in new.warnings if each.problem not in known)
    errors = (
        () if old.troubles else tuple(ci.annotation("error", each.problem) for each in problems.distinct(new.troubles))
    )
    return warnings + errors


def prefix(platform: PlatformState, step: StepState) -> str:
    """``[linux/arm64 build 3/7]``; a step outside of stages has its name in place of a number."""
    return f"[{platform.platform} {wording.position(step.step) or step.step.name[:60]}]"


def _heard(platform: PlatformState, message: protocol.Message, at: float) -> tuple[str, ...]:
    match message:
        case protocol.Log(step=number, text=text):
            step = platform.steps[platform.places[number]]
            head = f"{prefix(platform, step)} {step.at_work(at):.2f} "
            return tuple(head + line for line in clean_logs(text, LOG_LIMIT))
        case protocol.Started(step=number):
            step = platform.steps[platform.places[number]]
            named = wording.position(step.step)
            return (f"{prefix(platform, step)} {step.step.name}" if named else prefix(platform, step),)
        case protocol.Held(step=number) if message.what:
            step = platform.steps[platform.places[number]]
            return (f"{prefix(platform, step)} waiting for {wording.waited_for(step)}",)
        case protocol.Finished(step=number):
            step = platform.steps[platform.places[number]]
            return (f"{prefix(platform, step)} {_verdict(step)}",)
        case protocol.Handshake():
            facts = (clean_line(message.kanifold), clean_line(message.host), platform.isolation)
            return (f"[{platform.platform}] executor {', '.join(fact for fact in facts if fact)}",)
        case protocol.Result():
            size = amounts.size(message.size)
            return (f"[{platform.platform}] image {platform.digest}, {size}, {wording.steps(platform)}",)
    return ()


def _verdict(step: StepState) -> str:
    if step.status is Status.CACHED:
        # A step that was found rather than begun has not been named yet.
        return "CACHED" if step.started or not wording.position(step.step) else f"CACHED {step.step.name}"
    if step.status is Status.FAILED:
        return f"ERROR {step.error}"
    return f"DONE {amounts.duration(step.seconds)}"


def _ended(platform: PlatformState, at: float) -> str:
    took = amounts.duration(platform.seconds(at))
    word = platform.stage.upper()
    if platform.reason and platform.stage != "built":
        return f"[{platform.platform}] {word} {took}: {platform.reason}"
    return f"[{platform.platform}] {word} {took}"


def _cautions(old: State, new: State) -> tuple[str, ...]:
    """The warnings that are new. Reasons and remedies that were given before are not given again."""
    said = old.warnings
    lines: list[str] = []
    for each in new.warnings[len(old.warnings) :]:
        lines += problems.caution_lines(wording.unsaid(each, said), each.rule, each.platforms)
        said = (*said, each)
    return tuple(lines)


def _summary(state: State, now: float) -> tuple[str, ...]:
    platforms = wording.summarised(state)
    rows = [wording.SUMMARY_HEADINGS, *(wording.summary_row(each, now) for each in platforms)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(wording.SUMMARY_HEADINGS))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines = [*(table if platforms else ()), wording.outcome(state, now)]
    lines += [text for text in (state.digest, *(ref for ref, _ in state.published)) if text]
    for trouble in problems.distinct(state.troubles):
        lines += problems.problem_lines(trouble.problem, trouble.platform)
    return tuple(lines)
