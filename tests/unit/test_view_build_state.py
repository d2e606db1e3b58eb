"""What events make of the state."""

from __future__ import annotations

import pytest
import view_story as story
from view_golden import state_at

from executor import protocol
from executor.protocol import BuildWarning, Finished, Log, Planned, Started, StepInfo, Transfer
from orchestrator.view import events
from orchestrator.view.build_state import TAIL, WARNINGS, BuildState, Flow, PlatformState, StepState, StepStatus, fold
from orchestrator.view.events import (
    BuildEnded,
    BuildStarted,
    FromExecutor,
    PlatformEnded,
    PlatformPlacement,
    PlatformStarted,
)
from platforms.errors import Problem

STEPS = (
    StepInfo(7, "build", "RUN one", number=1, of=2),
    StepInfo(9, "build", "RUN two", number=2, of=2),
    StepInfo(3, "", "push"),
)


def told(*messages: protocol.Message | tuple[float, protocol.Message]) -> PlatformState:
    """linux/arm64 after its executor said ``messages``, one a second or at the times given."""
    state = fold(BuildState(), BuildStarted((PlatformPlacement("linux/arm64", "node", "native"),), at=100.0))
    state = fold(state, PlatformStarted("linux/arm64", at=100.0))
    for number, message in enumerate(messages):
        at, said = message if isinstance(message, tuple) else (101.0 + number, message)
        state = fold(state, FromExecutor("linux/arm64", said, at=at))
    return state.platforms[0]


def step(platform: PlatformState, number: int) -> StepState:
    return platform.steps[platform.places[number]]


def test_steps_go_from_waiting_over_running_to_an_end() -> None:
    plan = Planned(STEPS, "qemu-aarch64")
    assert [each.status for each in told(plan).steps] == [StepStatus.WAITING] * 3
    assert told(plan).how == "qemu-aarch64"
    running = told(plan, Started(7))
    assert step(running, 7).status is StepStatus.RUNNING
    assert [running.steps[position].step.id for position in running.running] == [7]
    done = told(plan, Started(7), Finished(7, 0.9), Started(9), Finished(9, cached=True), Finished(3))
    assert [each.status for each in done.steps] == [StepStatus.DONE, StepStatus.CACHED, StepStatus.DONE]
    assert done.running == ()
    failed = told(plan, Started(7), Finished(7, error="no"))
    assert (step(failed, 7).status, step(failed, 7).error) == (StepStatus.FAILED, "no")


def test_only_steps_of_stages_are_counted_and_each_once() -> None:
    platform = told(Planned(STEPS), Finished(7), Finished(7), Finished(9, cached=True), Finished(3))
    assert (platform.counted, platform.finished, platform.ran, platform.cached) == (2, 2, 1, 1)


def test_steps_of_a_stage_that_is_the_only_one_are_counted_though_it_is_not_named() -> None:
    steps = (
        StepInfo(1, "", "RUN one", number=1, of=2),
        StepInfo(2, "", "RUN two", number=2, of=2),
        StepInfo(3, "", "push"),
    )
    platform = told(Planned(steps), Finished(1), Finished(2, cached=True), Finished(3))
    assert (platform.counted, platform.finished, platform.ran, platform.cached) == (2, 2, 1, 1)


def test_stages_run_side_by_side() -> None:
    platform = told(Planned(STEPS), Started(9), Started(7))
    assert [platform.steps[position].step.id for position in platform.running] == [9, 7]


def test_how_long_a_step_took_is_what_the_executor_says_or_else_what_we_saw() -> None:
    assert step(told(Planned(STEPS), Started(7), Finished(7, 0.25)), 7).seconds == 0.25
    assert step(told(Planned(STEPS), (110.0, Started(7)), (112.5, Finished(7))), 7).seconds == 2.5


def test_a_second_plan_adds_steps_and_keeps_what_is_known() -> None:
    more = (*STEPS, StepInfo(11, "build", "RUN onbuild", number=3, of=3))
    platform = told(Planned(STEPS), Started(7), Planned(more))
    assert [each.status for each in platform.steps] == [StepStatus.RUNNING, *[StepStatus.WAITING] * 3]
    assert platform.counted == 3


def test_steps_and_platforms_nobody_announced_are_shown_all_the_same() -> None:
    assert step(told(Log(42, "hello")), 42).step.name == "step 42"
    state = fold(BuildState(), FromExecutor("linux/riscv64", Started(1), at=100.0))
    assert [each.platform for each in state.platforms] == ["linux/riscv64"]


def test_the_log_is_a_bounded_tail_that_a_good_end_drops() -> None:
    lines = [Log(7, f"line {number}") for number in range(1000)]
    platform = told(Planned(STEPS), Started(7), *lines)
    assert step(platform, 7).tail == tuple(f"line {number}" for number in range(1000 - TAIL, 1000))
    assert platform.tail[-1] == (0, "line 999")
    assert len(platform.tail) == TAIL
    assert told(Planned(STEPS), Started(7), Log(7, "\n".join(each.text for each in lines))).tail == platform.tail
    assert step(told(Planned(STEPS), Started(7), *lines, Finished(7)), 7).tail == ()
    assert len(step(told(Planned(STEPS), Started(7), *lines, Finished(7, error="x")), 7).tail) == TAIL


def test_text_is_cleaned_when_it_comes_in() -> None:
    platform = told(Planned((StepInfo(1, "b\x1b[m", "RUN \x1b[2J"),), "qemu\x07"), Log(1, "\x1b[31mred"))
    shown = step(platform, 1)
    assert (shown.step.stage, shown.step.name, shown.tail, platform.how) == (
        "b\\x1b[m",
        "RUN \\x1b[2J",
        ("red",),
        "qemu\\x07",
    )


def test_the_end_of_a_platform_skips_what_was_left() -> None:
    state = state_at(story.failing())
    amd64, arm64 = state.platforms
    assert (amd64.stage, amd64.reason) == ("cancelled", "linux/arm64 failed")
    assert (arm64.stage, arm64.reason) == ("failed", "the command ended with status 2")
    assert arm64.problem == story.FAILURE
    assert [each.status.value for each in arm64.steps[3:]] == ["done", "failed", *["skipped"] * 5]
    assert not arm64.running


def test_the_end_of_the_build_ends_every_platform() -> None:
    state = fold(state_at(story.good(), 5), BuildEnded("cancelled", at=story.START + 6))
    assert {each.stage for each in state.platforms} == {"cancelled"}
    assert state.seconds(1e9) == 6


def test_a_platform_that_starts_again_starts_from_nothing() -> None:
    state = state_at(story.good(), 10)
    again = fold(state, PlatformStarted("linux/amd64", "other", at=story.START + 11)).platforms[0]
    assert (again.steps, again.flows, again.finished, again.node, again.how) == ((), (), 0, "other", "native")


def test_the_result_is_authoritative() -> None:
    state = state_at(story.good())
    built = state.platforms[0]
    assert (built.stage, built.digest, built.size) == ("built", story.digest("linux/amd64m"), 67_800_000)
    assert (built.ran, built.cached) == (7, 2)
    assert (state.outcome, state.digest) == ("built", story.digest("index"))
    assert state.published == ((story.PUSH_REF, story.digest("index")),)


def test_pins_are_open_until_they_have_a_digest() -> None:
    state = fold(BuildState(), events.Resolving("debian:12", at=1.0))
    assert state.pins == (("debian:12", ""),)
    state = fold(state, events.Resolved("debian:12", "sha256:aa", at=2.0))
    assert state.pins == (("debian:12", "sha256:aa"),)


def test_a_warning_of_several_platforms_is_one() -> None:
    state = BuildState()
    for platform in ("linux/amd64", "linux/arm64", "linux/amd64"):
        state = fold(state, FromExecutor(platform, BuildWarning(story.TRAP, "Rule"), at=1.0))
    assert [each.platforms for each in state.warnings] == [("linux/amd64", "linux/arm64")]
    state = fold(state, events.WarningRaised(Problem("X", "another"), at=1.0))
    assert len(state.warnings) == 2


def test_warnings_without_end_are_counted() -> None:
    state = BuildState()
    for number in range(WARNINGS + 5):
        state = fold(state, events.WarningRaised(Problem("X", f"warning {number}"), at=1.0))
    assert (len(state.warnings), state.more_warnings) == (WARNINGS, 5)


# -- bytes ----------------------------------------------------------------------------------------------------------


def flow_of(*moves: tuple[float, Transfer]) -> Flow:
    return told(*moves).flows[0]


def test_bytes_add_up_over_transfers() -> None:
    flow = flow_of(
        (101.0, Transfer("pull", "a", 10, 100)),
        (102.0, Transfer("pull", "b", 5, 50)),
        (103.0, Transfer("pull", "a", 100, 100)),
        (104.0, Transfer("pull", "a", 100, 100)),
    )
    assert (flow.done, flow.total, flow.busy) == (105, 150, True)


def test_a_transfer_that_begins_again_is_not_counted_twice() -> None:
    flow = flow_of((101.0, Transfer("push", "a", 80, 100)), (102.0, Transfer("push", "a", 0, 100)))
    assert (flow.done, flow.total) == (0, 100)


def test_a_size_that_is_not_known_is_what_came_so_far() -> None:
    flow = flow_of((101.0, Transfer("context", "a", 80)), (102.0, Transfer("context", "a", 90)))
    assert (flow.done, flow.total, flow.busy) == (90, 90, True)


def test_directions_are_apart_and_the_end_closes_them() -> None:
    platform = told(Transfer("pull", "a", 10, 100), Transfer("push", "a", 20, 100))
    assert [(each.action, each.done) for each in platform.flows] == [("pull", 10), ("push", 20)]
    state = fold(BuildState(platforms=(platform,)), PlatformEnded("linux/arm64", "cancelled", at=200.0))
    assert not any(each.busy for each in state.platforms[0].flows)


def test_the_state_stays_small_whatever_is_moved() -> None:
    moves = [(101.0 + n, Transfer("context", f"file{n}", 10, 10 if n % 2 else 0)) for n in range(2000)]
    flow = flow_of(*moves)
    assert flow.done == 20_000
    assert len(flow.open) <= 64
    assert len(flow.closed) <= 64


@pytest.mark.parametrize("pieces", [10, 100, 1000])
def test_a_steady_stream_has_its_rate_however_often_it_is_reported(pieces: int) -> None:
    moves = [
        (101.0 + 10 * n / pieces, Transfer("pull", "a", 10**7 * n // pieces, 2 * 10**7)) for n in range(pieces + 1)
    ]
    assert flow_of(*moves).rate(111.0) == pytest.approx(1e6, rel=0.3)


def test_a_rate_follows_and_dies_away() -> None:
    flow = flow_of((101.0, Transfer("pull", "a", 0, 9**9)), (102.0, Transfer("pull", "a", 10**6, 9**9)))
    assert flow.rate(102.0) == pytest.approx(1e6, rel=0.3)
    assert flow.rate(120.0) < 1000
    assert Flow("pull").rate(0.0) == 0.0
