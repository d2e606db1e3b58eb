#!/usr/bin/env python3
"""Where a build's time went, phase by phase: a summary of what ``kanifold build --trace FILE`` wrote.

    ci/bench/phases.py FILE...

For each phase: how many pieces it had, how long at least one of them was under way on any platform, and how long
nothing else was. The second sum is what a faster phase could save at most; the first ones overlap, and so add up to
more than the build took. A step during which its platform pulls, unpacks or writes is taken to wait for that, and not
counted. What happened before the first event (the interpreter's start, reading flags) is in no trace. Standard library
only.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNTRACED = "(between)"
"""What nothing in the trace accounts for: planning, keys, work between steps, the way of messages."""
_AWAITED = ("pull", "unpack", "write")
"""Transfers that happen because a step wants to look at what they bring."""
_MICRO = 1e-6


@dataclass(frozen=True)
class Piece:
    """Something that was under way from ``began`` to ``ended``, in seconds since the trace began."""

    process: int
    """The platform's number in the trace."""
    kind: str
    """``step``, ``resolve``, ``publish``, ``start``, or a transfer's action."""
    phase: str
    began: float
    ended: float


@dataclass(frozen=True)
class Phase:
    """All pieces of one name. Seconds."""

    name: str
    pieces: int
    busy: float
    alone: float


def pieces(trace: dict[str, Any]) -> tuple[Piece, ...]:
    """What the trace tells of, without the frames around it: steps by instruction, transfers by action, and so on."""
    found = []
    open_: dict[int, dict[str, Any]] = {}
    started: dict[int, float] = {}
    for event in trace["traceEvents"]:
        match event["ph"], event.get("cat", event["name"]):
            case "X", "platform":
                started[event["pid"]] = event["ts"] * _MICRO
            case "X", ("step" | "resolve" | "publish") as kind:
                began = event["ts"] * _MICRO
                found.append(Piece(event["pid"], kind, _name(kind, event), began, began + event["dur"] * _MICRO))
            case _, "node":
                pass  # a platform once more, in the lane of its node
            case "b", _:
                open_[event["id"]] = event
            case "e", action:
                began = open_.pop(event["id"])["ts"] * _MICRO
                found.append(Piece(event["pid"], action, action, began, event["ts"] * _MICRO))
    for event in trace["traceEvents"]:
        if event["ph"] == "i" and event["name"] == "ready" and event["pid"] in started:
            began = started[event["pid"]]
            found.append(Piece(event["pid"], "start", "start executor", began, event["ts"] * _MICRO))
    return tuple(found)


def _name(kind: str, event: dict[str, Any]) -> str:
    if kind != "step":
        return kind
    instruction = event["name"].split()[0].upper()
    return f"{instruction}, cached" if event["args"].get("cached") else instruction


def phases(found: Sequence[Piece], length: float) -> tuple[Phase, ...]:
    """``found`` summed up by phase, in the order in which phases began; last, what is left of ``length`` seconds."""
    order = list(dict.fromkeys(each.phase for each in sorted(found, key=lambda each: each.began)))
    busy = dict.fromkeys(order, 0.0)
    alone = dict.fromkeys(order, 0.0)
    traced = 0.0
    moments = sorted({moment for each in found for moment in (each.began, each.ended)})
    for began, ended in itertools.pairwise(moments):
        active = _active([each for each in found if each.began <= began and each.ended >= ended])
        traced += ended - began if active else 0.0
        for name in active:
            busy[name] += ended - began
        if len(active) == 1:
            alone[active.pop()] += ended - began
    rest = max(0.0, length - traced)
    counted = [Phase(name, sum(each.phase == name for each in found), busy[name], alone[name]) for name in order]
    return (*counted, Phase(UNTRACED, 0, rest, rest))


def _active(under_way: Sequence[Piece]) -> set[str]:
    """The phases of pieces that are ``under_way`` at the same moment, without those that wait for another."""
    awaited = {each.process for each in under_way if each.kind in _AWAITED}
    return {each.phase for each in under_way if each.kind != "step" or each.process not in awaited}


def length(trace: dict[str, Any]) -> float:
    """The seconds from the first event to the last."""
    return max((each["ts"] + each.get("dur", 0) for each in trace["traceEvents"] if "ts" in each), default=0) * _MICRO


def markdown(counted: Iterable[Phase], whole: float) -> str:
    """The phases as a table."""
    lines = [
        "| phase            | pieces | under way (s) | alone (s) | alone |",
        "| ---------------- | -----: | ------------: | --------: | ----: |",
    ]
    for each in counted:
        share = f"{each.alone / whole:.0%}" if whole else "-"
        count = str(each.pieces or "")
        lines.append(f"| {each.name:<16} | {count:>6} | {each.busy:13.2f} | {each.alone:9.2f} | {share:>5} |")
    lines.append(f"| {'whole':<16} |        | {whole:13.2f} |           |       |")
    return "\n".join(lines)


def summary(trace: dict[str, Any]) -> str:
    """The table of a trace."""
    return markdown(phases(pieces(trace), length(trace)), length(trace))


def main(arguments: Sequence[str]) -> int:
    if not arguments:
        print("usage: ci/bench/phases.py TRACE...", file=sys.stderr)
        return 2
    for each in arguments:
        print(f"{each}\n\n{summary(json.loads(Path(each).read_text()))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
