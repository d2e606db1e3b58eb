"""How errors and warnings are shown."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import view_story as story
from view_golden import check, text_of

from orchestrator.view import events, open_display, problems
from orchestrator.view.events import Failure
from orchestrator.view.problems import exit_code, render_problem, render_warning
from platforms.errors import KanifoldError, Location, Problem

TERMINAL = {"TERM": "xterm-256color", "COLUMNS": "80", "FORCE_COLOR": "1"}
HOSTILE = Problem(
    "DockerfileError",
    "unknown instruction: RU\x1b[8mN",
    why="first\nsecond\x1b]0;t\x07",
    remedy="do [red]this[/red]\nthen that",
    where=Location("Docker\x1bfile", 1, 2, ("RU\x1b[8mN x\u202e\r", "\ty"), 1),
    log=("\x1b[2Jlog",),
)


def shown(problem: Problem, environ: dict[str, str], platform: str = "") -> str:
    out = io.StringIO()
    render_problem(problem, out, environ, platform)
    return out.getvalue()


def test_in_a_pipe_the_first_line_says_it_all() -> None:
    lines = shown(story.FAILURE, {}, "linux/arm64").split("\n")
    assert lines[0] == "ERROR: [linux/arm64] RUN make -j$(nproc) all: the command ended with status 2"
    assert shown(Problem("UsageError", "no platform"), {}) == "ERROR: no platform\n"


@pytest.mark.parametrize(("name", "problem"), [("failure", story.FAILURE), ("hostile", HOSTILE)])
def test_golden(name: str, problem: Problem) -> None:
    panel = text_of(problems.panel(problem, "linux/arm64"), 80)
    check(f"problem-{name}", shown(problem, {}, "linux/arm64") + "\n" + panel)


@pytest.mark.parametrize("problem", [story.FAILURE, HOSTILE, story.TRAP])
def test_nothing_in_it_reaches_the_terminal_as_an_order(problem: Problem) -> None:
    assert all(line.isprintable() for line in shown(problem, {}).split("\n"))
    assert all(line.isprintable() for line in text_of(problems.panel(problem), 80).split("\n"))
    assert all(line.isprintable() for line in text_of(problems.warning_text(problem), 80).split("\n"))


def test_the_lines_at_fault_are_marked() -> None:
    where = Location("Dockerfile", 9, 10, ("a", "b", "c", "d"), 8)
    assert problems.excerpt(where) == (" 8 |     a", " 9 | >>> b", "10 | >>> c", "11 |     d")
    assert problems.format_location(where) == "Dockerfile:9-10"


def test_a_terminal_gets_a_panel_of_its_width_and_a_pipe_does_not() -> None:
    assert "╭─" in shown(story.FAILURE, TERMINAL)
    assert "\x1b[" in shown(story.FAILURE, TERMINAL)
    assert "╭─" not in shown(story.FAILURE, {"TERM": "xterm", "COLUMNS": "80"})


def test_no_color_takes_the_colours_and_leaves_the_panel() -> None:
    text = shown(story.FAILURE, TERMINAL | {"NO_COLOR": "1"})
    assert "╭─" in text
    assert "\x1b[31m" not in text


def test_a_stream_that_knows_no_boxes_gets_others() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    render_problem(story.FAILURE, stream, TERMINAL | {"NO_COLOR": "1"})
    top, *_, bottom = re.sub(r"\x1b\[[0-9;]*m", "", raw.getvalue().decode("ascii")).splitlines()
    assert top.startswith("+- error -")
    assert bottom == f"+{'-' * 78}+"


@pytest.mark.parametrize(
    ("kind", "code"),
    [("StepFailed", 1), ("UsageError", 2), ("EnvironmentUnfit", 3), ("Interrupted", 130), ("never heard of", 1)],
)
def test_exit_codes(kind: str, code: int) -> None:
    problem = Problem(kind, "what")
    assert exit_code(problem) == code
    assert render_problem(problem, io.StringIO(), {}) == code


def test_the_exit_codes_are_those_that_are_documented() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "ci.md").read_text()
    documented = {int(each) for each in re.findall(r"^\| (\d+) \|", page, re.M)}
    waiting, codes = [KanifoldError], {0}
    while waiting:
        kind = waiting.pop()
        codes.add(kind.exit_code)
        waiting += kind.__subclasses__()
    assert documented == codes


def test_github_shows_an_error_beside_its_line() -> None:
    problem = Problem("X", "50% off, now", why="a\nb", where=Location("sub/Dockerfile", 3, 4))
    first = shown(problem, {"GITHUB_ACTIONS": "true"}).split("\n")[0]
    assert first == "::error title=50%25 off%2C now,file=sub/Dockerfile,line=3,endLine=4::a%0Ab"


@pytest.mark.parametrize(
    ("wanted", "levels"),
    [("", ["warning", "error"]), ("all", ["warning", "error"]), ("errors", ["error"]), ("none", [])],
)
def test_a_job_annotates_what_it_is_told_to(wanted: str, levels: list[str]) -> None:
    environ = {"GITHUB_ACTIONS": "true", "KANIFOLD_ANNOTATIONS": wanted}
    out = io.StringIO()
    render_warning(story.TRAP, out, environ)
    render_problem(story.FAILURE, out, environ)
    with open_display("plain", out, environ) as display:
        display.emit(events.WarningRaised(problem=story.TRAP))
        display.emit(events.BuildEnded("failed", troubles=(events.Failure(story.FAILURE),)))
    said = [line.split()[0].strip(":") for line in out.getvalue().splitlines() if line.startswith("::")]
    assert said == levels * 2
    assert out.getvalue().count("WARNING: ") == 2, "the log has it all the same"


def test_a_warning_is_a_line_and_its_remedy() -> None:
    out = io.StringIO()
    render_warning(story.TRAP, out, {}, "TargetArchDefault", ("linux/amd64", "linux/arm64"))
    assert out.getvalue() == (
        "WARNING: [linux/amd64, linux/arm64] TARGETARCH has a default, which wins over the platform's own value"
        " (TargetArchDefault, Dockerfile:2)\n  write ARG TARGETARCH without a default\n"
    )


def test_every_kind_of_error_can_be_shown() -> None:
    waiting: list[type[KanifoldError]] = [KanifoldError]
    while waiting:
        kind = waiting.pop()
        waiting += [each for each in kind.__subclasses__() if not each.__name__.startswith("_")]
        problem = kind("what", why="why", remedy="remedy").problem
        assert shown(problem, {}) == "ERROR: what: why\n  remedy: remedy\n"
        assert exit_code(problem) == kind.exit_code


def test_what_failed_for_several_platforms_is_said_once() -> None:
    other = Problem("X", "other")
    troubles = (Failure(story.FAILURE, "a"), Failure(other), Failure(story.FAILURE, "b"))
    assert problems.distinct(troubles) == (Failure(story.FAILURE, "a, b"), Failure(other))
