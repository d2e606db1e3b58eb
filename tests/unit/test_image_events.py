"""The events of a release: those of its builds, with the image before the platform."""

from __future__ import annotations

import msgspec

from executor import protocol
from orchestrator.release.image_events import ImageEvents, StepEvents
from orchestrator.view import events
from orchestrator.view.events import Event
from platforms.errors import Problem

PROBLEM = Problem("BuildError", "it failed")
OF_PLATFORMS = (
    events.FromExecutor(platform="linux/arm64", message=protocol.Started(1)),
    events.PlatformStarted(platform="linux/arm64"),
    events.PlatformWaiting(platform="linux/arm64", why="pulling"),
    events.PlatformMoved(platform="linux/arm64", old="a", node="b", how="native", problem=PROBLEM),
    events.PlatformEnded(platform="linux/arm64", outcome="built"),
)


def test_every_event_of_a_platform_names_the_image() -> None:
    kinds = [each for each in events.Event.__subclasses__() if "platform" in each.__struct_fields__]
    assert {type(each) for each in OF_PLATFORMS} == set(kinds), "a new kind of event is to be passed on as well"
    seen: list[Event] = []
    for each in OF_PLATFORMS:
        ImageEvents(seen.append, "web", tested=False)(each)
    assert [getattr(each, "platform", "") for each in seen] == ["web linux/arm64"] * len(OF_PLATFORMS)


def test_the_start_of_a_build_is_the_placement_of_an_image() -> None:
    seen: list[Event] = []
    places = (events.PlatformPlacement("linux/arm64", "arm", "native"),)
    ImageEvents(seen.append, "web", tested=False)(events.BuildStarted(places, at=1.0))
    assert seen == [events.ImagePlaced((events.PlatformPlacement("web linux/arm64", "arm", "native"),), at=1.0)]


def test_an_image_that_is_tested_has_not_ended_when_it_is_built() -> None:
    seen: list[Event] = []
    show = ImageEvents(seen.append, "web", tested=True)
    show(events.PlatformEnded(platform="linux/arm64", outcome="built"))
    assert seen == []
    show(events.PlatformEnded(platform="linux/arm64", outcome="failed", at=1.0))
    assert seen == [events.PlatformEnded(platform="web linux/arm64", outcome="failed", at=1.0)]


def test_a_test_is_shown_as_steps_of_the_platform() -> None:
    seen: list[Event] = []
    lines: list[str] = []
    started: list[bool] = []
    show = StepEvents(seen.append, "web linux/arm64", 2, "test runs", lambda: started.append(True), lines.append)

    def say(message: protocol.Message) -> list[protocol.Message]:
        seen.clear()
        show(events.FromExecutor(platform="linux/arm64", message=message))
        assert all(isinstance(each, events.FromExecutor) and each.platform == "web linux/arm64" for each in seen)
        return [each.message for each in seen if isinstance(each, events.FromExecutor)]

    show(events.PlatformStarted(platform="linux/arm64"))
    show(events.PlatformEnded(platform="linux/arm64", outcome="built"))
    assert (seen, started) == ([], [True])
    step = protocol.StepInfo(1, "", "RUN x", number=2, of=2)
    moved = msgspec.structs.replace(step, id=2_000_001, stage="test runs")
    assert say(protocol.Planned((step,), "native", (protocol.StageInfo("0"),))) == [protocol.Planned((moved,))]
    assert say(protocol.Log(1, "text")) == [protocol.Log(2_000_001, "text")]
    assert lines == ["text"]
    assert say(protocol.Finished(1, 0.5)) == [protocol.Finished(2_000_001, 0.5)]
    assert say(protocol.Handshake(1, "0")) == [], "the image has had its own"
