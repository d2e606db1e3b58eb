"""A build's trace: every step and transfer as a slice of the right length, in the form that trace viewers read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import view_story as story
from view_story import START

from executor import protocol
from orchestrator.command import traced
from orchestrator.trace import recorded, trace
from orchestrator.view import events
from orchestrator.view.events import Event, FromExecutor
from platforms.errors import UsageError

AMD64 = "linux/amd64"


def said(message: protocol.Message, at: float, platform: str = AMD64) -> Event:
    return FromExecutor(platform, message, at=START + at)


STEPS = (
    protocol.StepInfo(1, "", "FROM debian", 1),
    protocol.StepInfo(2, "build", "RUN make", 3),
    protocol.StepInfo(3, "test", "RUN test", 5),
)
BUILD: tuple[Event, ...] = (
    events.BuildStarted((story.AMD64,), "app", at=START),
    events.Resolving("debian", at=START + 0.1),
    events.Resolved("debian", "sha256:aa", at=START + 0.3),
    events.PlatformStarted(AMD64, "node", "native", at=START + 0.3),
    said(protocol.Planned(STEPS), 0.4),
    said(protocol.Started(1), 0.5),
    said(protocol.Transfer("pull", "sha256:aa", 1, 4), 0.6),
    said(protocol.Transfer("pull", "sha256:aa", 4, 4), 0.9),
    said(protocol.Finished(1, 0.4), 1.0),
    said(protocol.Started(2), 1.0),
    said(protocol.Started(3), 1.5),
    said(protocol.Finished(3, 0.0, cached=True), 1.5),
    said(protocol.Finished(2, 2.0), 3.0),
    events.PlatformEnded(AMD64, "built", at=START + 3.5),
    events.Publishing("tags", 0, 1, at=START + 3.5),
    events.Published("app:1", "sha256:bb", at=START + 3.75),
    events.BuildEnded("built", "sha256:bb", at=START + 4.0),
)


def slices(happened: Iterable[Event]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in trace(happened)["traceEvents"] if each["ph"] == "X"}


def of_kind(happened: Iterable[Event], kind: str) -> list[dict[str, Any]]:
    return [each for each in trace(happened)["traceEvents"] if each["ph"] == kind]


def names(happened: Iterable[Event], kind: str) -> dict[tuple[int, int], str]:
    """The names that the trace gives to processes or threads."""
    return {
        (each["pid"], each.get("tid", 0)): each["args"]["name"]
        for each in of_kind(happened, "M")
        if each["name"] == kind
    }


def test_a_step_lasts_from_its_start_to_its_end_in_microseconds() -> None:
    run = slices(BUILD)["RUN make"]
    assert (run["ts"], run["dur"]) == (1_000_000, 2_000_000)
    assert run["args"] == {"line": 3, "cached": False, "seconds": 2.0}


def test_a_cached_step_says_so() -> None:
    assert slices(BUILD)["RUN test"]["args"]["cached"] is True


def test_a_failed_step_says_why() -> None:
    failed = slices([*BUILD[:10], said(protocol.Finished(2, 0.1, error="exit code: 2"), 1.1)])["RUN make"]
    assert failed["args"]["error"] == "exit code: 2"


def test_the_build_and_its_platforms_span_everything_of_theirs() -> None:
    found = slices(BUILD)
    assert (found["app"]["ts"], found["app"]["dur"]) == (0, 4_000_000)
    assert (found[AMD64]["ts"], found[AMD64]["dur"]) == (300_000, 3_200_000)
    assert found[AMD64]["args"] == {"node": "node", "how": "native", "outcome": "built", "reason": ""}
    assert found["publish tags"]["dur"] == 500_000


def test_each_output_and_push_has_its_time() -> None:
    happened = (
        events.Publishing("index", 0, 1, at=START),
        events.Publishing("index", 1, 1, at=START + 0.5),
        events.Publishing("out", at=START + 0.5),
        events.Published("out", "sha256:bb", at=START + 1.5),
        events.Publishing("tags", 0, 2, at=START + 1.5),
        events.Published("app:1", "sha256:bb", at=START + 1.75),
        events.Publishing("tags", 1, 2, at=START + 1.75),
        events.Published("app:2", "sha256:bb", at=START + 2.0),
        events.Publishing("tags", 2, 2, at=START + 2.0),
        events.BuildEnded("built", "sha256:bb", at=START + 4.0),
    )
    found = {name: (each["ts"], each["dur"]) for name, each in slices(happened).items()}
    assert found == {
        "publish index": (0, 500_000),
        "publish out": (500_000, 1_000_000),
        "publish tags": (1_500_000, 500_000),
    }


def test_platforms_are_processes_and_stages_are_threads() -> None:
    found, threads = slices(BUILD), names(BUILD, "thread_name")
    assert names(BUILD, "process_name")[found[AMD64]["pid"], 0] == AMD64
    where = {name: threads[found[name]["pid"], found[name]["tid"]] for name in ("FROM debian", "RUN make", "RUN test")}
    assert where == {"FROM debian": "steps", "RUN make": "stage build", "RUN test": "stage test"}


def test_each_node_has_a_lane_with_the_platforms_that_are_built_there() -> None:
    happened = (
        events.PlatformStarted("linux/amd64", "local", "native", at=START),
        events.PlatformStarted("linux/arm64", "arm", "native", at=START),
        events.PlatformStarted("linux/arm/v7", "arm", "native", at=START + 1),
        events.PlatformEnded("linux/amd64", "built", at=START + 2),
        events.PlatformStarted("linux/arm64", "local", "qemu-aarch64", at=START + 2),
        events.PlatformEnded("linux/arm/v7", "failed", "exit code: 1", at=START + 3),
        events.PlatformEnded("linux/arm64", "built", at=START + 4),
    )
    lanes = {pid: name for (pid, _), name in names(happened, "process_name").items()}
    began = {each["id"]: each for each in of_kind(happened, "b")}
    found = {
        (lanes[each["pid"]], each["name"], began[each["id"]]["ts"], each["ts"], began[each["id"]]["args"]["outcome"])
        for each in of_kind(happened, "e")
    }
    assert found == {
        ("node local", "linux/amd64", 0, 2_000_000, "built"),
        ("node arm", "linux/arm64", 0, 2_000_000, "moved"),
        ("node arm", "linux/arm/v7", 1_000_000, 3_000_000, "failed"),
        ("node local", "linux/arm64", 2_000_000, 4_000_000, "built"),
    }


def test_platforms_with_the_same_stages_are_kept_apart() -> None:
    both = [*BUILD[:13], *(said(each.message, 0, "linux/arm64") for each in BUILD if isinstance(each, FromExecutor))]
    runs = [each for each in of_kind(both, "X") if each["name"] == "RUN make"]
    assert len({each["pid"] for each in runs}) == 2


def test_a_transfer_is_one_slice_from_its_first_word_to_its_last() -> None:
    begin, end = ([each for each in of_kind(BUILD, kind) if each["cat"] == "pull"] for kind in "be")
    assert [(each["name"], each["ts"]) for each in begin] == [("pull sha256:aa", 600_000)]
    assert [(each["id"], each["ts"]) for each in end] == [(begin[0]["id"], 900_000)]
    assert begin[0]["args"]["done"] == 4


def test_transfers_at_the_same_time_are_slices_of_their_own() -> None:
    moves = [said(protocol.Transfer("push", f"sha256:{name}", done, 2), done) for done in (1, 2) for name in ("a", "b")]
    assert len({each["id"] for each in of_kind(moves, "b")}) == 2


def test_what_never_ended_ends_with_the_trace_and_says_so() -> None:
    cut = [*BUILD[:7], said(protocol.Transfer("pull", "sha256:aa", 2, 4), 0.8)]
    step = slices(cut)["FROM debian"]
    assert (step["dur"], step["args"]["unfinished"]) == (300_000, True)
    assert of_kind(cut, "e")[0]["ts"] == 800_000


def test_an_end_without_a_beginning_is_not_drawn() -> None:
    assert slices([said(protocol.Finished(7, 1.0), 1.0)]) == {}


def test_a_step_that_was_never_announced_has_a_name() -> None:
    assert "step 7" in slices([said(protocol.Started(7), 0.0), said(protocol.Finished(7), 1.0)])


@pytest.mark.parametrize("name", story.STORIES)
def test_every_story_is_json_with_slices_that_nest(name: str) -> None:
    document = json.loads(json.dumps(trace(story.STORIES[name]())))
    by_thread: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for each in document["traceEvents"]:
        if each["ph"] == "X":
            by_thread.setdefault((each["pid"], each["tid"]), []).append((each["ts"], each["ts"] + each["dur"]))
            assert each["dur"] >= 0
    for spans in by_thread.values():
        spans.sort(key=lambda span: (span[0], -span[1]))
        for (begin, end), (begin_after, end_after) in itertools.pairwise(spans):
            assert begin_after >= end or end_after <= end, f"{begin}..{end} and {begin_after}..{end_after}"


def test_nothing_happened() -> None:
    assert of_kind([], "X") == []


# -- recording --------------------------------------------------------------------------------------------------------


def test_what_passes_is_shown_and_written(tmp_path: Path) -> None:
    shown: list[Event] = []
    with recorded(str(tmp_path / "t.json"), shown.append) as emit:
        for event in BUILD:
            emit(event)
    assert shown == list(BUILD)
    assert json.loads((tmp_path / "t.json").read_text()) == json.loads(json.dumps(trace(BUILD)))


def test_a_build_that_raises_leaves_a_trace(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), recorded(str(tmp_path / "t.json"), lambda _: None) as emit:
        emit(BUILD[0])
        raise ZeroDivisionError
    assert slices(BUILD[:1])["app"] in json.loads((tmp_path / "t.json").read_text())["traceEvents"]


def test_a_place_that_cannot_be_written_is_told_before_the_build(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write the trace"), recorded(str(tmp_path), lambda _: None):
        pytest.fail("the build began")


def test_an_error_of_the_build_is_not_taken_for_one_of_the_trace(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), recorded(str(tmp_path / "t.json"), lambda _: None):
        raise FileNotFoundError


def test_without_a_file_nothing_stands_between() -> None:
    def emit(_: Event) -> None:
        raise AssertionError

    with traced("", emit) as same:
        assert same is emit
