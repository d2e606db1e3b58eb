"""The live screen: golden pictures, and rules that hold for every picture."""

from __future__ import annotations

import pytest
import view_story as story
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from view_golden import check, state_at, text_of
from view_story import START

from executor import protocol
from orchestrator.view import events, screen
from orchestrator.view.build_state import BuildState, fold
from orchestrator.view.events import Event, FromExecutor, PlatformStarted

STATES = {
    "good": lambda seconds: state_at(story.good(), seconds),
    "eight": lambda seconds: state_at(story.good(story.EIGHT), seconds),
    "failing": lambda seconds: state_at(story.failing(), seconds),
    "cancelled": lambda seconds: state_at(story.cancelled(), seconds),
    "release": lambda seconds: state_at(story.release(), seconds),
    "hostile": lambda seconds: state_at(story.hostile(), seconds),
}


@pytest.mark.parametrize(
    ("name", "seconds", "width", "height"),
    [
        ("good", 0.2, 80, 24),
        ("good", 1.5, 80, 24),
        ("good", 11, 80, 24),
        ("good", 14, 120, 40),
        ("good", 14, 40, 10),
        ("good", 39.9, 80, 24),
        ("eight", 12, 120, 40),
        ("eight", 12, 80, 24),
        ("eight", 26, 80, 24),
        ("eight", 12, 40, 10),
        ("eight", 27, 40, 6),
        ("hostile", 10, 80, 24),
        ("hostile", 10, 40, 10),
        ("release", 0.2, 80, 24),
        ("release", 12, 80, 24),
        ("release", 12, 40, 10),
        ("release", 50, 80, 24),
        ("release", 50, 80, 6),
        ("release", 75, 30, 5),
    ],
)
def test_running(name: str, seconds: float, width: int, height: int) -> None:
    frame = screen.render(STATES[name](seconds), width, height, START + seconds)
    check(f"live-{name}-{seconds:g}s-{width}x{height}", text_of(frame, width))


@pytest.mark.parametrize(
    ("name", "width"),
    [("good", 120), ("good", 80), ("good", 40), ("eight", 80), ("eight", 40), ("failing", 80), ("cancelled", 80)],
)
def test_summary(name: str, width: int) -> None:
    check(f"summary-{name}-{width}", text_of(screen.summary(STATES[name](1e9), width, START + 100), width))


def running(*messages: tuple[float, object], name: str = "RUN make") -> str:
    """The screen, after ten seconds, of a platform whose only step has begun and which says ``messages``."""
    state = fold(BuildState(), PlatformStarted("linux/arm64", at=START))
    plan = protocol.Planned((protocol.StepInfo(1, "build", name, number=1, of=1),))
    for after, message in ((0, plan), (0, protocol.Started(1)), *messages):
        state = fold(state, FromExecutor("linux/arm64", message, at=START + after))
    return text_of(screen.render(state, 80, 24, START + 10), 80)


def test_a_step_that_waits_says_so_in_place_of_its_time() -> None:
    assert "RUN make" in running((4, protocol.Held(1, "unpack")))
    assert "waiting for unpack" in running((4, protocol.Held(1, "unpack")))
    assert "waiting for its turn" in running((4, protocol.Held(1, "turn")))
    assert "7s" in running((4, protocol.Held(1, "unpack")), (7, protocol.Held(1))), "3 of 10 seconds were a wait"


def test_an_executor_that_is_not_there_yet_says_what_it_waits_for() -> None:
    state = fold(BuildState(), PlatformStarted("linux/arm64", at=START))
    state = fold(state, events.PlatformWaiting("linux/arm64", "farm/arm64", "waiting for a node with arm64", at=START))
    assert "waiting for a node with arm64" in text_of(screen.render(state, 80, 24, START + 1), 80)
    state = fold(state, events.PlatformWaiting("linux/arm64", "farm/arm64", "", at=START + 1))
    assert "waiting" not in text_of(screen.render(state, 80, 24, START + 2), 80)


def test_how_far_an_unpacking_is_can_be_seen() -> None:
    assert "unpack 30.0/100.0 MB" in running((1, protocol.Transfer("unpack", "a", 30_000_000, 100_000_000)))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (
            "RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --network=none apt-get update",
            "RUN apt-get update",
        ),
        ("RUN --mount=type=bind,target=. --mount=type=secret,id=x ./build --fast", "RUN ./build --fast"),
        ("RUN make --jobs", "RUN make --jobs"),
        ("COPY --from=build /a /b", "COPY --from=build /a /b"),
    ],
)
def test_of_a_step_with_long_flags_the_command_is_seen(name: str, shown: str) -> None:
    assert f"1/1 {shown} " in running(name=name)


@pytest.mark.parametrize("kind", ["colour", "no-colour"])
def test_colours(kind: str) -> None:
    """Escape sequences written as ``<...>``; without colour, bold and dim stay (no-color.org)."""
    environ = {"TERM": "xterm-256color"} | ({"NO_COLOR": "1"} if kind == "no-colour" else {})
    running = text_of(screen.render(STATES["good"](11), 80, 24, START + 11), 80, environ)
    ended = text_of(screen.summary(STATES["failing"](1e9), 80, START + 100), 80, environ)
    check(f"live-{kind}", (running + ended).replace("\x1b[", "<"))
    colours = [code for code in ("31", "32", "33", "34", "35", "36") if f"\x1b[{code}m" in running + ended]
    assert bool(colours) == (kind == "colour")


@example(name="eight", seconds=1.0, width=8, height=3)
@example(name="eight", seconds=1.0, width=8, height=2)
@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(STATES)),
    seconds=st.floats(0, 60),
    width=st.integers(8, 140),
    height=st.integers(2, 50),
)
def test_every_frame_fits(name: str, seconds: float, width: int, height: int) -> None:
    frame = screen.render(STATES[name](seconds), width, height, START + seconds)
    lines = text_of(frame, width).split("\n")[:-1]
    assert len(lines) <= height - 1
    assert all(cell_len(line) <= width for line in lines)
    assert all(line.isprintable() for line in lines)


def test_eight_platforms_fit_a_small_terminal_each_with_its_own_line() -> None:
    frame = text_of(screen.render(STATES["eight"](12), 40, 10, START + 12), 40)
    assert all(f" {place.platform} " in frame for place in story.EIGHT)


def test_blocks_do_not_move_while_text_does() -> None:
    """From one frame to the next, as long as the same platforms run, each has its lines in the same place."""

    def places(seconds: float) -> list[int]:
        lines = text_of(screen.render(STATES["good"](seconds), 80, 24, START + seconds), 80).split("\n")
        return [number for number, line in enumerate(lines) if line.startswith("●")]

    assert {tuple(places(1 + tenth / 2)) for tenth in range(40)} == {tuple(places(1))}


def test_what_is_waited_for_is_shown_until_there_is_an_answer() -> None:
    waits = (
        events.RegistryWaiting("docker.io", "resolve debian:12", 5.0, at=START + 5),
        FromExecutor("linux/amd64", protocol.Waiting("ghcr.io", "pull sha256:aa", 5.0, "status 503"), at=START + 6),
    )

    def frame(*told: Event) -> str:
        state = STATES["good"](3)
        for event in told:
            state = fold(state, event)
        return text_of(screen.render(state, 100, 24, START + 12), 100)

    assert "waiting for docker.io (12.0s): resolve debian:12" in frame(*waits)
    assert "(and 1 more)" in frame(*waits)
    over = events.RegistryWaiting("docker.io", "resolve debian:12", 7.0, over=True, at=START + 7)
    assert "waiting for ghcr.io (11.0s): pull sha256:aa; status 503" in frame(*waits, over)
    ended = events.PlatformEnded("linux/amd64", "failed", at=START + 8)
    assert "waiting for" not in frame(*waits, over, ended)


def test_markup_in_a_log_is_text() -> None:
    frame = text_of(screen.render(STATES["hostile"](10), 80, 24, START + 10), 80)
    assert "[red]rich markup[/red]" in frame
    assert ":smile:" in frame


def test_a_wide_character_is_never_cut_in_half() -> None:
    for width in range(60, 64):
        frame = text_of(screen.render(STATES["hostile"](10), width, 24, START + 10), width)
        line = next(line for line in frame.split("\n") if "日本語" in line)
        assert cell_len(line) <= width
        assert line.endswith("…")
