"""The lines for pipes and CI logs."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import sys
from collections.abc import Iterable

import pytest
import view_story as story
from view_golden import check
from view_story import START

from executor import protocol as executor
from executor.protocol import BuildWarning, Finished, Held, Log, Planned, Started, StepInfo, Transfer
from orchestrator.view import ci, grouping, open_display
from orchestrator.view.events import (
    BuildEnded,
    BuildStarted,
    Event,
    Failure,
    FromExecutor,
    PlatformEnded,
    PlatformPlacement,
    PlatformStarted,
    RegistryWaiting,
)
from platforms.errors import Location, Problem

GITHUB = {"GITHUB_ACTIONS": "true"}
GITLAB = {"GITLAB_CI": "true"}
PLAN = (StepInfo(1, "build", "RUN one", number=1, of=2), StepInfo(2, "build", "RUN two", number=2, of=2))


def lines_for(told: Iterable[Event], environ: dict[str, str] | None = None) -> list[str]:
    out = io.StringIO()
    with open_display("plain", out, environ or {}) as display:
        for event in told:
            display.emit(event)
    text = out.getvalue()
    assert not text or text.endswith("\n")
    return text.split("\n")[:-1]


def one_platform(*messages: tuple[float, object], name: str = "linux/arm64") -> list[Event]:
    """The platform starts, plans and says ``messages``, each after so many seconds."""
    told: list[Event] = [PlatformStarted(name, at=START), FromExecutor(name, Planned(PLAN), at=START)]
    return told + [FromExecutor(name, message, at=START + after) for after, message in messages]


def test_a_platform_begins_with_where_and_why() -> None:
    placed = PlatformPlacement("linux/arm64", "arm", "native", "runs it natively, before 1 more")
    told = (BuildStarted((placed,), at=START), PlatformStarted("linux/arm64", "arm", "native", at=START))
    assert lines_for(told)[1] == "[linux/arm64] started: native, arm (runs it natively, before 1 more)"


@pytest.mark.parametrize("name", ["good", "failing", "cancelled", "hostile"])
def test_golden(name: str) -> None:
    check(f"plain-{name}", "\n".join(lines_for(story.STORIES[name]())) + "\n")


@pytest.mark.parametrize("name", sorted(story.STORIES))
def test_there_is_no_control_character_in_a_pipe(name: str) -> None:
    assert all(line.isprintable() for line in lines_for(story.STORIES[name]()))


def test_what_is_waited_for_is_a_line_each_time_it_is_told() -> None:
    told = [
        RegistryWaiting("docker.io", "resolve debian:12", 5.0, at=START + 5),
        RegistryWaiting("docker.io", "resolve debian:12", 20.0, "status 503, tried again in 4 s", at=START + 20),
        RegistryWaiting("docker.io", "resolve debian:12", 24.0, over=True, at=START + 24),
        *one_platform((9, executor.Waiting("r.exam\x1bple", "push sha256:aa to r.example/app", 6.0))),
    ]
    found = [line for line in lines_for(told) if "waiting" in line]
    assert found == [
        "waiting for docker.io (5.0s): resolve debian:12",
        "waiting for docker.io (20.0s): resolve debian:12; status 503, tried again in 4 s",
        "[linux/arm64] waiting for r.exam\\x1bple (6.0s): push sha256:aa to r.example/app",
    ]


def test_every_line_of_a_step_says_whose_it_is() -> None:
    told = one_platform(
        (0, Started(1)), (0.42, Log(1, "hello")), (1.2, Finished(1, 1.2)), (1.3, Finished(2, cached=True))
    )
    assert lines_for(told)[1:] == [
        "[linux/arm64 build 1/2] RUN one",
        "[linux/arm64 build 1/2] 0.42 hello",
        "[linux/arm64 build 1/2] DONE 1.2s",
        "[linux/arm64 build 2/2] CACHED RUN two",
    ]


def test_a_step_says_what_it_waits_for_and_that_is_none_of_its_time() -> None:
    told = one_platform((0, Started(1)), (1, Held(1, "unpack")), (5, Held(1)), (6, Held(1, "turn")), (7, Held(1)))
    told += one_platform((9, Finished(1)))[2:]
    assert lines_for(told)[1:] == [
        "[linux/arm64 build 1/2] RUN one",
        "[linux/arm64 build 1/2] waiting for unpack",
        "[linux/arm64 build 1/2] waiting for its turn",
        "[linux/arm64 build 1/2] DONE 4.0s",
    ]


def test_unpacking_is_told_of_now_and_then() -> None:
    moves = [(float(second), Transfer("unpack", "a", second * 10**6, 10**8)) for second in range(12)]
    (line,) = (line for line in lines_for(one_platform(*moves)) if "unpacking" in line)
    assert line.startswith("[linux/arm64] unpacking 10.0/100.0 MB, ")


def test_reasons_and_remedies_of_a_rule_are_given_once() -> None:
    def warning(line: int, what: str = "wrong") -> BuildWarning:
        return BuildWarning(
            Problem("Check", what, "A long reason.", "A remedy.", Location("Dockerfile", line, line)), "Rule"
        )

    told = one_platform((0, warning(3)), (1, warning(7)), (2, warning(9, "worse")))
    told += one_platform((3, warning(7)), name="linux/amd64")[2:]
    assert [line for line in lines_for(told) if "started" not in line] == [
        "WARNING: [linux/arm64] wrong: A long reason. (Rule, Dockerfile:3)",
        "  A remedy.",
        "WARNING: [linux/arm64] wrong (Rule, Dockerfile:7)",
        "WARNING: [linux/arm64] worse (Rule, Dockerfile:9)",
    ]


@pytest.mark.parametrize("one_terminal", [True, False])
def test_a_terminal_shows_the_digest_once(monkeypatch: pytest.MonkeyPatch, one_terminal: bool) -> None:
    ours, theirs = pty.openpty(), pty.openpty()
    with contextlib.ExitStack() as stack:
        for fd in (ours[0], theirs[0]):
            stack.callback(os.close, fd)
        err = stack.enter_context(open(ours[1], "w", closefd=True))
        out = stack.enter_context(open(theirs[1], "w", closefd=True))
        monkeypatch.setattr(sys, "stdout", err if one_terminal else out)
        with open_display("plain", err, {}) as display:
            display.emit(BuildEnded("built", "sha256:aa", at=START))
        assert (b"sha256:aa" in os.read(ours[0], 1 << 16)) is not one_terminal


def test_the_only_stage_goes_by_no_name() -> None:
    plan = Planned((StepInfo(1, "", "RUN one", number=1, of=2),))
    told = [PlatformStarted("linux/arm64", at=START), FromExecutor("linux/arm64", plan, at=START)]
    assert lines_for([*told, FromExecutor("linux/arm64", Started(1), at=START)])[1:] == ["[linux/arm64 1/2] RUN one"]


def test_bytes_are_told_of_now_and_then() -> None:
    moves = [(float(second), Transfer("pull", "a", second * 10**6, 10**8)) for second in range(26)]
    progress = [line for line in lines_for(one_platform(*moves)) if "pulling" in line]
    assert len(progress) == 2
    assert progress[0].startswith("[linux/arm64] pulling 10.0/100.0 MB, ")


def test_a_warning_of_every_platform_is_printed_once() -> None:
    told = [FromExecutor(name, BuildWarning(story.TRAP, "Rule"), at=START) for name in ("linux/amd64", "linux/arm64")]
    assert [line for line in lines_for(told) if "WARNING" in line] == [
        "WARNING: [linux/amd64] TARGETARCH has a default, which wins over the platform's own value (Rule, Dockerfile:2)"
    ]


def test_a_long_log_line_is_whole() -> None:
    assert lines_for(one_platform((0, Log(1, "x" * 50_000))))[-1].endswith("x" * 50_000)


def test_many_lines_at_once_are_lines_each() -> None:
    shown = lines_for(one_platform((0, Started(1)), (0.5, Log(1, "a\n\x1b[31mred\n\nend"))))[-4:]
    assert [line.partition(" 0.50 ")[2] for line in shown] == ["a", "red", "", "end"]


def test_a_build_that_failed_before_any_platform_has_no_table() -> None:
    told = [
        BuildStarted((story.AMD64,), "app", at=START),
        BuildEnded("failed", troubles=(Failure(story.TRAP),), at=START),
    ]
    assert lines_for(told)[1:3] == [
        "failed after 0.0s",
        "ERROR: TARGETARCH has a default, which wins over the platform's own value",
    ]


# -- groups ---------------------------------------------------------------------------------------------------------


def side_by_side() -> list[Event]:
    """Two platforms whose steps overlap in time."""
    arm = one_platform((0.1, Started(1)), (0.3, Log(1, "arm a")), (0.5, Log(1, "arm b")), (0.9, Finished(1, 0.8)))
    amd = one_platform((0.2, Started(1)), (0.4, Log(1, "amd a")), (0.6, Finished(1, 0.4)), name="linux/amd64")
    return sorted(arm + amd, key=lambda event: event.at)


@pytest.mark.parametrize(("kind", "environ"), [("github", GITHUB), ("gitlab", GITLAB)])
def test_groups_golden(kind: str, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * (2 * size))
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.0)
    monkeypatch.setattr(ci.GitLabGroups.__init__, "__defaults__", (lambda: 1_700_000_000.0,))
    lines = lines_for(
        [*side_by_side(), BuildEnded("failed", troubles=(Failure(story.FAILURE),), at=START + 1)], environ
    )
    check(f"plain-{kind}", "\n".join(lines).replace("\x1b", "<ESC>").replace("\r", "<CR>") + "\n")


def test_groups_neither_nest_nor_overlap() -> None:
    depth = 0
    for line in lines_for(story.good(story.EIGHT), GITHUB):
        if line.startswith("::group::"):
            depth += 1
        elif line == "::endgroup::":
            depth -= 1
        assert depth in (0, 1)
    assert depth == 0


def test_a_running_step_is_announced_before_its_group() -> None:
    lines = lines_for(one_platform((0, Started(1))), GITHUB)
    assert lines[-1] == "[linux/arm64 build 1/2] RUN one"


def test_a_step_that_takes_long_comes_out_in_parts() -> None:
    logs = [(float(second), Log(1, f"line {second}")) for second in range(100)]
    titles = [line for line in lines_for(one_platform((0, Started(1)), *logs), GITHUB) if line.startswith("::group::")]
    assert titles == [
        f"::group::[linux/arm64 build 1/2] RUN one{part}" for part in ("", " (part 2)", " (part 3)", " (part 4)")
    ]


def test_a_step_that_writes_much_comes_out_in_parts() -> None:
    logs = [(1.0, Log(1, f"line {number}")) for number in range(2 * grouping.MOST_LINES + 1)]
    lines = lines_for(one_platform((0, Started(1)), *logs), GITHUB)
    assert sum(line.startswith("::group::") for line in lines) == 3
    assert sum(bool(re.search(r" line \d+$", line)) for line in lines) == len(logs)


def test_what_was_held_back_comes_before_the_platforms_end() -> None:
    told = [
        *one_platform((0, Started(1)), (1, Log(1, "last words"))),
        PlatformEnded("linux/arm64", "failed", at=START + 2),
    ]
    lines = lines_for(told, GITHUB)
    assert lines.index("[linux/arm64 build 1/2] 1.00 last words") < lines.index("[linux/arm64] FAILED 2.0s")


def orders(lines: list[str]) -> list[str]:
    """The workflow commands that GitHub's runner would obey (ActionCommand.cs), outside of stop-commands."""
    found: list[str] = []
    token = ""
    for line in lines:
        bare = line.lstrip()
        command = re.match(r"::([\w-]+)(?: [^:]*)?::", bare) or re.search(r"##\[([\w-]+)", line)
        if token:
            token = "" if bare == f"::{token}::" else token
        elif command and command[1] == "stop-commands":
            token = bare.removeprefix("::stop-commands::")
        elif command:
            found.append(command[1])
    assert not token
    return found


EVIL = (
    "::set-output name=a::b",
    "  ::add-mask::x",
    "a ##[add-mask]x",
    "\r::error::x",
    "::endgroup::",
    "::stop-commands::t",
)


@pytest.mark.parametrize("evil", EVIL)
def test_nobody_but_us_gives_orders_to_github(evil: str) -> None:
    problem = Problem("X", evil, why=f"why\n{evil}", remedy=evil, where=Location(evil, 1, 1, (evil,), 1), log=(evil,))
    steps = (StepInfo(1, evil, evil, number=1, of=1),)
    told: list[Event] = [
        PlatformStarted(evil, evil, evil, at=START),
        FromExecutor(evil, Planned(steps), at=START),
        FromExecutor(evil, Started(1), at=START),
        FromExecutor(evil, Log(1, evil), at=START),
        FromExecutor(evil, Finished(1, error=evil), at=START),
        FromExecutor(evil, BuildWarning(problem, evil), at=START),
        PlatformEnded(evil, "failed", evil, at=START),
        BuildEnded("failed", evil, (Failure(problem, evil),), at=START),
    ]
    lines = lines_for(told, GITHUB)
    # A platform's name stands at the front of some lines; it is ours, but must not matter either.
    assert orders(lines) == ["group", "endgroup", "warning", "error"]


def test_the_token_that_gives_github_its_ears_back_is_new_each_time() -> None:
    lines = lines_for(side_by_side(), GITHUB)
    tokens = [line for line in lines if line.startswith("::stop-commands::")]
    assert len(tokens) == len(set(tokens)) == 2


def test_gitlab_sections_have_names_it_accepts_and_each_its_own() -> None:
    text = "\n".join(lines_for(side_by_side(), GITLAB))
    starts = re.findall(r"\x1b\[0Ksection_start:\d+:([A-Za-z0-9_.-]+)\[collapsed=true\]\r\x1b\[0K", text)
    ends = re.findall(r"\x1b\[0Ksection_end:\d+:([A-Za-z0-9_.-]+)\r\x1b\[0K", text)
    assert starts == ends == ["linux_amd64_1_1", "linux_arm64_1_1"]
    rest = re.sub(r"\x1b\[0Ksection_(start|end):[^\r]*\r\x1b\[0K", "", text)
    assert all(line.isprintable() for line in rest.split("\n"))
