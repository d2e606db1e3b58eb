"""Grouping the lines of a step, for CI systems that fold their log.

Groups can neither nest nor overlap, but steps of several platforms run in parallel. So a step is announced when it
starts, its lines are buffered, and written as one group when it ends. A step with many lines, or of long duration, is
written in several groups, so that the log of a running job is current and memory is bounded.
"""

from __future__ import annotations

from typing import Final

import msgspec

from executor import protocol
from orchestrator.view import events, wording
from orchestrator.view.build_state import BuildState
from orchestrator.view.ci import Groups
from orchestrator.view.untrusted import clean_line

MOST_LINES: Final = 2000
MOST_SECONDS: Final = 30.0
"""A group is written when it has ``MOST_LINES`` lines, or its first line was buffered for this long, in seconds."""


class _PendingGroup(msgspec.Struct):
    """The buffered lines of a running step."""

    title: str
    since: float
    lines: list[str]
    part: int = 1


class StepGrouping:
    """Turns lines into text for a log with groups."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._held: dict[tuple[str, int], _PendingGroup] = {}

    def text(self, state: BuildState, event: events.Event, lines: tuple[str, ...]) -> str:
        """Return the text to write for ``event``, which led to ``state`` and is shown as ``lines``."""
        match event:
            case events.FromExecutor(platform=platform, message=protocol.Log(step=step)):
                return self._hold(state, clean_line(platform), step, event.at, lines) + self._due(event.at)
            case events.FromExecutor(platform=platform, message=protocol.Finished(step=step)):
                held = self._held.pop((clean_line(platform), step), None)
                if held is not None:
                    held.lines += lines
                    return self._group((clean_line(platform), step), held)
            case events.PlatformMoved() | events.PlatformEnded() | events.BuildEnded():
                return self.rest() + self._plain(lines)
        return self._plain(lines) + self._due(event.at)

    def rest(self) -> str:
        """Return all buffered lines as text."""
        text = "".join(self._group(key, held) for key, held in self._held.items() if held.lines)
        self._held.clear()
        return text

    def _plain(self, lines: tuple[str, ...]) -> str:
        return "".join(map(self._groups.line, lines))

    def _hold(self, state: BuildState, platform: str, step: int, at: float, lines: tuple[str, ...]) -> str:
        key = platform, step
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = _PendingGroup(_title(state, platform, step), at, [])
        elif not held.lines:
            held.since = at
        held.lines += lines
        return self._flush(key, held) if len(held.lines) >= MOST_LINES else ""

    def _due(self, now: float) -> str:
        late = [(key, held) for key, held in self._held.items() if held.lines and now - held.since >= MOST_SECONDS]
        return "".join(self._flush(key, held) for key, held in late)

    def _flush(self, key: tuple[str, int], held: _PendingGroup) -> str:
        text = self._group(key, held)
        held.lines = []
        held.part += 1
        return text

    def _group(self, key: tuple[str, int], held: _PendingGroup) -> str:
        title = held.title if held.part == 1 else f"{held.title} (part {held.part})"
        return self._groups.fold(f"{key[0]}_{key[1]}_{held.part}", title, tuple(held.lines))


def _title(state: BuildState, platform: str, step: int) -> str:
    found = state.platform(platform)
    if found is None:
        return platform
    shown = found.steps[found.places[step]].step
    position = wording.position(shown)
    return f"[{platform} {position}] {shown.name}" if position else f"[{platform}] {shown.name}"
