"""A trace summed up by phase: what was under way, what nothing else was beside, and what nobody accounts for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import view_story as story
from view_story import START

from executor import protocol
from orchestrator.trace import trace
from orchestrator.view import events
from orchestrator.view.events import Event, FromExecutor

ONE, TWO = "linux/amd64", "linux/arm64"


@pytest.fixture(scope="module")
def phases() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "ci" / "bench" / "phases.py"
    spec = importlib.util.spec_from_file_location("bench_phases", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_phases"] = module
    spec.loader.exec_module(module)
    return module


def said(message: protocol.Message, at: float, platform: str = ONE) -> Event:
    return FromExecutor(platform, message, at=START + at)


STEPS = (protocol.StepInfo(1, "", "FROM base", 1), protocol.StepInfo(2, "", "RUN make", 2))
BUILD: tuple[Event, ...] = (
    events.BuildStarted((story.AMD64,), "app", at=START),
    events.Resolving("base", at=START + 1),
    events.Resolved("base", "sha256:aa", at=START + 2),
    events.PlatformStarted(ONE, "node", "native", at=START + 2),
    events.PlatformStarted(TWO, "node", "qemu", at=START + 2),
    said(protocol.Handshake(1, "0.1", "linux/amd64"), 3),
    said(protocol.Planned(STEPS), 3),
    said(protocol.Planned(STEPS), 3, TWO),
    said(protocol.Started(2), 3),
    said(protocol.Transfer("unpack", "sha256:bb", 0, 4), 3),
    said(protocol.Started(2), 4, TWO),
    said(protocol.Transfer("unpack", "sha256:bb", 4, 4), 5),
    said(protocol.Finished(2, 1.0, cached=True), 6, TWO),
    said(protocol.Transfer("compress", "sha256:cc", 0), 6),
    said(protocol.Transfer("compress", "sha256:cc", 7, 7), 8),
    said(protocol.Finished(2, 7.0), 10),
    events.BuildEnded("built", "sha256:bb", at=START + 11),
)


def summed(phases: ModuleType, happened: tuple[Event, ...]) -> dict[str, tuple[int, float, float]]:
    """By phase: pieces, seconds under way, seconds alone."""
    document: dict[str, Any] = trace(happened)
    found = phases.phases(phases.pieces(document), phases.length(document))
    return {each.name: (each.pieces, round(each.busy, 3), round(each.alone, 3)) for each in found}


def test_every_second_is_somebodys_or_told_to_be_nobodys(phases: ModuleType) -> None:
    assert summed(phases, BUILD) == {
        "resolve": (1, 1.0, 1.0),
        "start executor": (1, 1.0, 1.0),
        "RUN": (1, 5.0, 2.0),  # not from 3 to 5, when it waits for its layers
        "unpack": (1, 2.0, 1.0),
        "RUN, cached": (1, 2.0, 0.0),
        "compress": (1, 2.0, 0.0),
        phases.UNTRACED: (0, 2.0, 2.0),
    }


def test_the_table_says_what_a_phase_could_save(phases: ModuleType) -> None:
    lines = phases.summary(trace(BUILD)).splitlines()
    (run,) = [line.split("|")[1:-1] for line in lines if line.startswith("| RUN  ")]
    assert [cell.strip() for cell in run] == ["RUN", "1", "5.00", "2.00", "18%"]
    assert "11.00" in lines[-1]


@pytest.mark.parametrize("name", story.STORIES)
def test_every_story_has_a_summary(phases: ModuleType, name: str) -> None:
    assert "whole" in phases.summary(trace(story.STORIES[name]()))
