"""Which display is opened where, what it costs, and what it does when its stream misbehaves."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest
import view_story as story
from view_story import START

from executor.protocol import Log
from orchestrator.view import MODES, Display, events, open_display, terminal, wording
from orchestrator.view.build_state import PlatformState
from orchestrator.view.output_stream import OutputStream
from platforms.errors import UsageError

ROOT = Path(__file__).parents[2]
XTERM = {"TERM": "xterm"}


@contextmanager
def a_terminal() -> Iterator[TextIO]:
    """A terminal that somebody reads."""
    master, slave = pty.openpty()
    reader = threading.Thread(target=_drain, args=(master,))
    reader.start()
    with open(slave, "w", encoding="utf-8") as stream:
        yield stream
    reader.join()
    os.close(master)


def _drain(master: int) -> None:
    try:
        while os.read(master, 65536):
            pass
    except OSError:
        """Linux answers EIO when the other side is closed."""


def kind(mode: str, stream: TextIO, environ: dict[str, str]) -> str:
    with open_display(mode, stream, environ) as display:
        return type(display).__name__


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (XTERM, "LiveDisplay"),
        ({}, "PlainDisplay"),
        ({"TERM": "dumb"}, "PlainDisplay"),
        (XTERM | {"CI": "true"}, "PlainDisplay"),
        (XTERM | {"CI": "false"}, "LiveDisplay"),
        (XTERM | {"GITHUB_ACTIONS": "true"}, "PlainDisplay"),
        (XTERM | {"GITLAB_CI": "true"}, "PlainDisplay"),
        (XTERM | {"NO_COLOR": "1"}, "LiveDisplay"),
        (XTERM | {"KANIFOLD_PROGRESS": "quiet"}, "QuietDisplay"),
        (XTERM | {"KANIFOLD_PROGRESS": ""}, "LiveDisplay"),
        ({"KANIFOLD_PROGRESS": "live"}, "PlainDisplay"),
    ],
)
def test_auto_on_a_terminal(environ: dict[str, str], expected: str) -> None:
    with a_terminal() as stream:
        assert kind("auto", stream, environ) == expected


def test_auto_in_a_pipe_is_plain_even_with_colour_forced() -> None:
    assert kind("auto", io.StringIO(), XTERM | {"FORCE_COLOR": "1"}) == "PlainDisplay"


def test_a_flag_wins_over_the_variable() -> None:
    assert kind("rawjson", io.StringIO(), {"KANIFOLD_PROGRESS": "quiet"}) == "RawJsonDisplay"


def test_live_without_a_terminal_is_refused() -> None:
    with pytest.raises(UsageError) as refused:
        open_display("live", io.StringIO(), XTERM)
    assert refused.value.problem.remedy == "use --progress plain"


@pytest.mark.parametrize(("mode", "environ"), [("tty", {}), ("auto", {"KANIFOLD_PROGRESS": "tty"})])
def test_an_unknown_display_is_refused_and_the_known_ones_are_named(mode: str, environ: dict[str, str]) -> None:
    with pytest.raises(UsageError) as refused:
        open_display(mode, io.StringIO(), environ)
    assert all(name in refused.value.problem.why for name in MODES)


def test_only_the_live_view_loads_rich() -> None:
    code = """
import io, sys
from orchestrator.view import events, open_display
from orchestrator.view.problems import render_problem
from platforms.errors import Problem
for mode in ("auto", "plain", "rawjson", "quiet"):
    with open_display(mode, io.StringIO(), {}) as display:
        display.emit(events.BuildEnded("failed", troubles=(events.Failure(Problem("X", "what")),)))
render_problem(Problem("X", "what"), io.StringIO(), {})
loaded = {"rich", "httpx", "asyncio"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)


def test_quiet_says_nothing_but_errors() -> None:
    for name, tell in story.STORIES.items():
        out = io.StringIO()
        with open_display("quiet", out, {}) as display:
            for event in tell():
                display.emit(event)
        first = out.getvalue().partition("\n")[0]
        assert first == {
            "failing": "ERROR: [linux/arm64] RUN make -j$(nproc) all: the command ended with status 2",
            "cancelled": "ERROR: the build was interrupted",
        }.get(name, "")


@pytest.mark.parametrize("mode", ["plain", "rawjson", "quiet"])
def test_a_reader_that_went_away_does_not_fail_the_build(mode: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stream, open_display(mode, stream, {}) as display:
        for event in story.failing():
            display.emit(event)


def test_a_stream_that_does_not_block_loses_nothing() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    got: list[bytes] = []

    def read() -> None:
        while piece := os.read(reader, 4096):
            got.append(piece)

    thread = threading.Thread(target=read)
    with open(writer, "w", encoding="utf-8") as stream:
        sink = OutputStream(stream)
        thread.start()
        sink.write("x" * 1_000_000)
    thread.join()
    os.close(reader)
    assert sum(map(len, got)) == 1_000_000


def test_events_may_come_from_many_threads() -> None:
    out = io.StringIO()

    def tell(display: Display, platform: str) -> None:
        for number in range(200):
            display.emit(events.FromExecutor(platform, Log(1, f"line {number}"), at=START))

    with open_display("plain", out, {}) as display:
        names = [place.platform for place in story.EIGHT]
        threads = [threading.Thread(target=tell, args=(display, name)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = out.getvalue().splitlines()
    for name in names:
        own = [line for line in lines if line.startswith(f"[{name} step 1] ")]
        assert [line.rpartition(" ")[2] for line in own] == [str(number) for number in range(200)]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (80, 24)),
        ({"COLUMNS": "100", "LINES": "50"}, (100, 50)),
        ({"COLUMNS": "wide", "LINES": "-3"}, (80, 24)),
        ({"COLUMNS": "0"}, (80, 24)),
    ],
)
def test_the_size_where_there_is_no_terminal(environ: dict[str, str], expected: tuple[int, int]) -> None:
    assert terminal.size(io.StringIO(), environ) == expected


def test_a_terminal_is_never_taken_for_larger_than_it_is() -> None:
    with a_terminal() as stream:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(stream, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        assert terminal.size(stream, {}) == (100, 30)
        assert terminal.size(stream, {"COLUMNS": "200", "LINES": "20"}) == (100, 20)


@pytest.mark.parametrize(
    ("node", "how", "text"),
    [
        ("", "", "local"), ("", "native", "native"), ("arm", "native", "native, arm"), ("arm", "", "arm"),
        ("local", "", "local"),
    ],
)  # fmt: skip
def test_a_node_that_runs_no_program_is_named_alone(node: str, how: str, text: str) -> None:
    assert wording.placement_text(PlatformState("linux/arm64", node, how)) == text
