"""The live view on a real terminal: tmux shows what a person would see."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import view_story as story
from rich.console import Group
from rich.text import Text

from orchestrator.view.live import FramePainter
from orchestrator.view.output_stream import OutputStream

ROOT = Path(__file__).parents[2]
SCRIPT = Path(story.__file__)


class Tmux:
    """A terminal of its own, with a shell in it."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._run("new-session", "-d", "-x", "80", "-y", "24", "env PS1='$ ' PYTHONPATH=. sh")

    def _run(self, *words: str) -> str:
        command = ["tmux", "-S", str(self._socket), "-f", "/dev/null", *words]
        environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {"LC_ALL": "C.UTF-8"}
        return subprocess.run(
            command, check=True, text=True, capture_output=True, cwd=ROOT, env=environ, timeout=10
        ).stdout

    def type(self, line: str) -> None:
        self._run("send-keys", line, "Enter")

    def resize(self, width: int, height: int) -> None:
        self._run("resize-window", "-x", str(width), "-y", str(height))

    def screen(self) -> str:
        return self._run("capture-pane", "-p")

    def wait_for(self, seen: Callable[[str], bool]) -> str:
        """The screen as soon as it satisfies ``seen``."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            screen = self.screen()
            if seen(screen):
                return screen
            time.sleep(0.02)
        raise AssertionError(f"never seen; the screen is\n{screen}")

    def close(self) -> None:
        self._run("kill-server")


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    if not shutil.which("tmux"):
        pytest.skip("tmux is not installed")
    terminal = Tmux(tmp_path / "s")
    yield terminal
    terminal.close()


def play(tmux: Tmux, name: str, *options: str) -> None:
    """Stdout is elsewhere, as in ``digest=$(kanifold build …)``; what is typed is not echoed."""
    words = " ".join((sys.executable, str(SCRIPT), name, "--speed 40", *options))
    tmux.type(f"clear; stty -echo; echo before; {words} >/dev/null; echo status $?")


def test_the_summary_takes_the_screens_place(tmux: Tmux) -> None:
    play(tmux, "good", "--pause 15")
    during = tmux.wait_for(lambda screen: screen.count("build 5/6") == 2)
    assert "● linux/amd64  native" in during
    tmux.type("")
    after = tmux.wait_for(lambda screen: "status 0" in screen).split("\n")
    assert not any(line.startswith("building") for line in after)
    assert any(line.startswith("✓ linux/arm64  qemu-aarch64  7    2       67.8 MB") for line in after)
    assert f"  {story.digest('index')}" in after
    assert "before" in after


def test_a_failed_build_ends_with_the_panel(tmux: Tmux) -> None:
    tmux.resize(100, 40)
    play(tmux, "failing")
    after = tmux.wait_for(lambda screen: "status 0" in screen)
    assert "✗ failed after" in after
    assert ">>> RUN make -j$(nproc) all" in after
    assert "before" in after


def test_a_resized_terminal_shows_one_whole_frame(tmux: Tmux) -> None:
    play(tmux, "good", "--pause 5")
    tmux.wait_for(lambda screen: screen.count("build 2/6") == 2)
    for width, height in ((50, 24), (100, 30), (60, 12), (80, 24)):
        tmux.resize(width, height)
        headline = f"{'building registry.example/team/app:1.4 for 2 platforms'[: width - 5]}"
        screen = tmux.wait_for(
            lambda screen, width=width, start=headline[:30]: any(
                line.startswith(start) and len(line) == width for line in screen.split("\n")
            )
        )
        lines = screen.split("\n")
        first = next(number for number, line in enumerate(lines) if len(line) == width and line.startswith("building"))
        frame = "\n".join(lines[first:])
        assert frame.count("linux/amd64") == frame.count("linux/arm64  ") == 1
        assert max(map(len, lines)) <= width


class Screen(OutputStream):
    """Collects what is painted."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    def write(self, text: str) -> None:
        self.pieces.append(text)


def frame(*lines: str) -> Group:
    return Group(*(Text(line) for line in lines))


def painted(*frames: tuple[Group, tuple[int, int]]) -> list[str]:
    screen = Screen()
    painter = FramePainter(screen, {"TERM": "xterm"})
    for each, size in frames:
        painter.paint(each, size)
    return screen.pieces


def test_a_frame_is_one_write_that_leaves_the_terminal_as_it_was() -> None:
    (piece,) = painted((frame("one", "two"), (80, 24)))
    for mode in ("?25", "?7"):
        assert piece.index(f"\x1b[{mode}l") < piece.index("one")
        assert piece.index(f"\x1b[{mode}h") > piece.index("two")
    assert piece.endswith("\x1b[?2026l")


def test_the_next_frame_begins_where_the_last_one_did() -> None:
    pieces = painted((frame("a", "b", "c"), (80, 24)), (frame("x"), (80, 24)), (frame("y"), (80, 24)))
    assert "\r\x1b[3A\x1b[2Kx\r\n\x1b[J" in pieces[1]
    assert "\r\x1b[1A\x1b[2Ky" in pieces[2]


def test_lines_that_a_narrower_terminal_folded_are_counted_as_often() -> None:
    pieces = painted((frame("a" * 80, "b" * 41, "c" * 40), (80, 24)), (frame("x"), (40, 24)))
    assert "\r\x1b[5A" in pieces[1]


def test_the_cursor_goes_no_higher_than_the_screen_and_reaches_the_rest_when_it_grows() -> None:
    tall = frame(*"abcdefghij")
    pieces = painted((tall, (80, 24)), (frame("x", "y"), (80, 5)), (frame("z"), (80, 24)))
    assert "\r\x1b[4A" in pieces[1]
    # Six lines of the first frame were above the small screen; with the two of the second they are below its top now.
    assert "\r\x1b[8A" in pieces[2]


def test_wide_characters_count_twice() -> None:
    pieces = painted((frame("日" * 20), (80, 24)), (frame("x"), (20, 24)))
    assert "\r\x1b[2A" in pieces[1]
