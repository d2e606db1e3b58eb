"""The live display: a screen that is repainted below the earlier content of a terminal.

``rich`` lays out and colours the lines; painting is done here, because a terminal that is resized re-flows the lines of
the last frame, and only their widths tell how many rows they take then. Every frame is one write that leaves the cursor
visible and line wrap on, so a build that is killed leaves a usable terminal.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Mapping
from typing import Final, Self, TextIO

from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console, ConsoleRenderable, Group

from orchestrator.view import problems, screen, terminal, wording
from orchestrator.view.build_state import BuildState, fold
from orchestrator.view.events import Event
from orchestrator.view.output_stream import OutputStream

PERIOD: Final = 0.1
"""Minimum seconds between frames."""
CALM_PERIOD: Final = 1.0
"""Seconds between frames while no event comes."""
SIZE_PERIOD: Final = 0.25
"""Seconds between checks of the terminal's size."""

# Synchronised output, cursor and line wrap: see XTerm Control Sequences, "DEC Private Mode Set".
_FRAME_START: Final = "\x1b[?2026h\x1b[?25l\x1b[?7l"
_FRAME_END: Final = "\x1b[?7h\x1b[?25h\x1b[?2026l"
_ERASE_LINE: Final = "\x1b[2K"
_REMEMBERED: Final = 500
"""Maximum number of lines above the screen whose widths are kept."""
_ERASE_BELOW: Final = "\x1b[J"


class LiveDisplay:
    """A ``Display`` on a terminal.

    ``emit`` only updates the state, and a thread paints, so that a slow or paused (Ctrl-S) terminal does not delay the
    build.
    """

    def __init__(self, stream: TextIO, environ: Mapping[str, str]) -> None:
        self._stream = stream
        self._environ = environ
        self._state = BuildState()
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._painter = FramePainter(OutputStream(stream), environ)
        self._thread = threading.Thread(target=self._run, name="live view", daemon=True)
        self._thread.start()

    def emit(self, event: Event) -> None:
        """Fold ``event`` into the state. Safe for threads."""
        with self._lock:
            self._state = fold(self._state, event)
        self._changed.set()

    def close(self) -> None:
        """Replace the screen by the summary, the warnings and the errors. Idempotent."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._changed.set()
        self._thread.join()
        state, size, now = self._state, self._size(), time.monotonic()
        lasting: list[ConsoleRenderable] = [
            problems.warning_text(each.problem, each.rule, each.platforms)
            for each in wording.merge_warnings(state.warnings)
        ]
        if state.started:
            # The command prints the digest on stdout, after this.
            said = replace(state, digest="") if terminal.same(self._stream, sys.stdout) else state
            lasting.append(screen.summary(said, size[0], now))
        lasting += [problems.panel(each.problem, each.platform) for each in problems.distinct(state.troubles)]
        self._painter.leave(Group(*lasting), size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _size(self) -> tuple[int, int]:
        return terminal.size(self._stream, self._environ)

    def _run(self) -> None:
        painted = 0.0
        size = (0, 0)
        while not self._closing.is_set():
            changed = self._changed.wait(SIZE_PERIOD)
            now = time.monotonic()
            old_size, size = size, self._size()
            if not (changed or size != old_size or now - painted >= CALM_PERIOD):
                continue
            self._changed.clear()
            if self._state.started:
                self._painter.paint(screen.render(self._state, *size, now), size)
            painted = now
            self._closing.wait(PERIOD)


class FramePainter:
    """Replaces one frame by the next."""

    def __init__(self, sink: OutputStream, environ: Mapping[str, str]) -> None:
        self._sink = sink
        self._console = Console(
            file=io.StringIO(),
            force_terminal=True,
            legacy_windows=False,
            highlight=False,
            markup=False,
            emoji=False,
            _environ=environ,
        )
        self._widths: tuple[int, ...] = ()
        """Widths in cells of the lines of the frame on the screen."""
        self._above: tuple[int, ...] = ()
        """Widths in cells of lines of older frames that a smaller screen pushed out at the top; a larger one shows them
        again."""

    def paint(self, frame: Group, size: tuple[int, int]) -> None:
        """Show ``frame``, whose lines must fit ``size`` (columns, lines), in place of the last one."""
        self._sink.write(f"{_FRAME_START}{self._back(size)}{self._text(frame, size)}{_FRAME_END}")
        self._widths = tuple(cell_len(_plain_text(each)) for each in frame.renderables)

    def leave(self, last: Group, size: tuple[int, int]) -> None:
        """Show ``last``, of any height, permanently in place of the last frame."""
        self._sink.write(f"{self._back(size)}{self._text(last, size)}")

    def _text(self, what: Group, size: tuple[int, int]) -> str:
        self._console.size = size
        with self._console.capture() as captured:
            self._console.print(what, end="")
        # Line by line: tmux treats erasing from the first cell as clearing the screen, and saves its content.
        lines = captured.get().splitlines()
        return "".join(f"{_ERASE_LINE}{line}\r\n" for line in lines) + _ERASE_BELOW

    def _back(self, size: tuple[int, int]) -> str:
        """Return the sequence that moves to the first cell of what was painted and is still on the screen.

        A narrower terminal has re-flowed each line into as many rows as its width needs.
        """
        columns, height = size
        painted = self._above + self._widths
        rows = 0
        while painted and rows + _rows(painted[-1], columns) < height:
            rows += _rows(painted[-1], columns)
            painted = painted[:-1]
        # The rest is above the first row of the screen, which the cursor cannot reach.
        rows = height - 1 if painted else rows
        self._above, self._widths = painted[-_REMEMBERED:], ()
        return f"\r\x1b[{rows}A" if rows else "\r"


def _rows(cells: int, columns: int) -> int:
    return max(1, -(-cells // columns))


def _plain_text(line: object) -> str:
    return getattr(line, "plain", "")
