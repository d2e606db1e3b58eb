"""The plain display for pipes and CI: one line for each event, with its platform, without control characters.

    [linux/arm64 build 3/7] RUN apt-get update
    [linux/arm64 build 3/7] 0.42 Get:1 ...
    [linux/arm64 build 3/7] DONE 1.2s
    [linux/arm64 build 4/7] CACHED COPY . /src

Log lines have the seconds since their step began. In a CI system that folds its log, the lines of a step go through
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
from orchestrator.view import ci, events, problems, terminal, units, wording
from orchestrator.view.build_state import BuildState, PlatformState, StepState, StepStatus, fold
from orchestrator.view.grouping import StepGrouping
from orchestrator.view.output_stream import OutputStream
from orchestrator.view.untrusted import clean_line, clean_logs

LOG_LIMIT: Final = 64 << 10
"""Maximum length of a log line in characters."""
PROGRESS_SECONDS: Final = 10.0
"""Minimum seconds between lines about the bytes of one platform in one direction."""

_MOVING: Final = {Action.PULL: "pulling", Action.PUSH: "pushing", Action.UNPACK: "unpacking"}


class PlainDisplay:
    """A ``Display`` of lines. ``emit`` writes at once, and blocks if the reader is slow."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str]) -> None:
        self._sink = OutputStream(stream)
        self._stream = stream
        groups = ci.groups_of(environ)
        self._grouping = StepGrouping(groups) if groups else None
        self._environ = environ
        self._lock = threading.Lock()
        self._state = BuildState()
        self._told: dict[tuple[str, str], float] = {}
        """Time of the last line about the bytes of a platform's action."""

    def emit(self, event: events.Event) -> None:
        """Write the lines of ``event``. Safe for threads."""
        if isinstance(event, events.BuildEnded) and terminal.same(self._stream, sys.stdout):
            event = replace(event, digest="")  # the command prints it on stdout, after this
        with self._lock:
            old, self._state = self._state, fold(self._state, event)
            lines = lines_of(old, self._state, event) or self._progress(event)
            if self._grouping:
                self._sink.write(self._grouping.text(self._state, event, lines))
            else:
                self._sink.write("".join(f"{line}\n" for line in lines))
            if old.warnings is not self._state.warnings or isinstance(event, events.BuildEnded):
                self._sink.write("".join(f"{line}\n" for line in annotations_of(old, self._state, self._environ)))

    def close(self) -> None:
        """Write what was buffered."""
        with self._lock:
            if self._grouping:
                self._sink.write(self._grouping.rest())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _progress(self, event: events.Event) -> tuple[str, ...]:
        """Return a line about transferred bytes, if one is due."""
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
        moved, rate = units.part(flow.done, flow.total), units.size(flow.rate(event.at))
        return (f"[{platform.platform}] {_MOVING[action]} {moved}, {rate}/s",)


def lines_of(old: BuildState, new: BuildState, event: events.Event) -> tuple[str, ...]:
    """Return the lines for ``event``, given the states before and after it."""
    match event:
        case events.FromExecutor(message=protocol.BuildWarning()):
            return _new_warnings(old, new)
        case events.FromExecutor(platform=name, message=protocol.Waiting(over=False)):
            return (f"[{clean_line(name)}] {wording.wait(new.waits[-1], event.at)}",)
        case events.RegistryWaiting(over=False):
            return (wording.wait(new.waits[-1], event.at),)
        case events.FromExecutor(platform=name, message=message):
            platform = new.platform(clean_line(name))
            return _message_lines(platform, message, event.at) if platform else ()
        case events.BuildStarted():
            places = ", ".join(f"{each.platform} ({wording.placement_text(each)})" for each in new.platforms)
            return (f"building {new.name} for {places}" if new.name else f"building for {places}",)
        case events.Resolved(ref=ref, digest=digest):
            return (f"resolved {clean_line(ref)} to {clean_line(digest)}",)
        case events.PlatformStarted(platform=name):
            platform = new.platform(clean_line(name))
            return (_started(platform),) if platform else ()
        case events.PlatformWaiting(platform=name, why=why):
            return (f"[{clean_line(name)}] {clean_line(why)}",) if why else ()
        case events.PlatformEnded(platform=name):
            platform = new.platform(clean_line(name))
            return (_ended(platform, event.at),) if platform else ()
        case events.WarningRaised() | events.PlatformMoved():
            return _new_warnings(old, new)
        case events.Publishing() if new.publishing and (old.publishing or ("",))[0] != new.publishing[0]:
            return (f"publishing {new.publishing[0]}",)
        case events.Published(ref=ref, digest=digest):
            return (f"published {clean_line(ref)} {clean_line(digest)}",)
        case events.BuildEnded():
            return _summary(new, event.at)
    return ()


def _started(platform: PlatformState) -> str:
    why = f" ({platform.why})" if platform.why else ""
    return f"[{platform.platform}] started: {wording.placement_text(platform)}{why}"


def annotations_of(old: BuildState, new: BuildState, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return GitHub's commands for the warnings and errors between two states."""
    known = {each.problem for each in old.warnings}
    warnings = tuple(each.problem for each in new.warnings if each.problem not in known)
    errors = () if old.troubles else tuple(each.problem for each in problems.distinct(new.troubles))
    lines = [ci.annotated("warning", each, environ) for each in dict.fromkeys(warnings)]
    lines += [ci.annotated("error", each, environ) for each in errors]
    return tuple(line for each in lines for line in each)


def prefix(platform: PlatformState, step: StepState) -> str:
    """Return ``[linux/arm64 build 3/7]``; a step outside of stages has its name in place of a number."""
    return f"[{platform.platform} {wording.position(step.step) or step.step.name[:60]}]"


def _message_lines(platform: PlatformState, message: protocol.Message, at: float) -> tuple[str, ...]:
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
            return (f"{prefix(platform, step)} waiting for {wording.wait_reason(step)}",)
        case protocol.Finished(step=number):
            step = platform.steps[platform.places[number]]
            return (f"{prefix(platform, step)} {_step_result(step)}",)
        case protocol.Handshake():
            facts = (clean_line(message.kanifold), clean_line(message.host), platform.isolation)
            return (f"[{platform.platform}] executor {', '.join(fact for fact in facts if fact)}",)
        case protocol.Result():
            size = units.size(message.size)
            return (f"[{platform.platform}] image {platform.digest}, {size}, {wording.steps(platform)}",)
    return ()


def _step_result(step: StepState) -> str:
    if step.status is StepStatus.CACHED:
        # A cached step was not announced, so it is named here.
        return "CACHED" if step.started or not wording.position(step.step) else f"CACHED {step.step.name}"
    if step.status is StepStatus.FAILED:
        return f"ERROR {step.error}"
    return f"DONE {units.duration(step.seconds)}"


def _ended(platform: PlatformState, at: float) -> str:
    took = units.duration(platform.seconds(at))
    word = platform.stage.upper()
    if platform.reason and platform.stage != "built":
        return f"[{platform.platform}] {word} {took}: {platform.reason}"
    return f"[{platform.platform}] {word} {took}"


def _new_warnings(old: BuildState, new: BuildState) -> tuple[str, ...]:
    """Return the lines of new warnings. A reason or remedy that was shown before is not repeated."""
    said = old.warnings
    lines: list[str] = []
    for each in new.warnings[len(old.warnings) :]:
        lines += problems.warning_lines(wording.without_repetition(each, said), each.rule, each.platforms)
        said = (*said, each)
    return tuple(lines)


def _summary(state: BuildState, now: float) -> tuple[str, ...]:
    platforms = wording.platforms_in_summary(state)
    rows = [wording.SUMMARY_HEADINGS, *(wording.summary_row(each, now) for each in platforms)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(wording.SUMMARY_HEADINGS))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines = [*(table if platforms else ()), wording.outcome(state, now)]
    lines += [text for text in (state.digest, *(ref for ref, _ in state.published)) if text]
    for trouble in problems.distinct(state.troubles):
        lines += problems.problem_lines(trouble.problem, trouble.platform)
    return tuple(lines)
