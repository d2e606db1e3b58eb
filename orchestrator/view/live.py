"""The live view: a screen that is painted over and over below what the terminal already shows.

``rich`` lays out and colours the lines; the painting is done here, because a terminal that is resized re-flows the
lines of the last frame and only their widths tell how many rows they now take. Every frame is one write that leaves the
cursor visible, the line wrap on and nothing to restore, so a build that is killed leaves a usable terminal.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Mapping
from typing import Final, Self, TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleRenderable, Group

from orchestrator.view import problems, screen, terminal
from orchestrator.view.events import Event
from orchestrator.view.sink import Sink
from orchestrator.view.state import State, fold

PERIOD: Final = 0.1
"""Seconds between two frames at least."""
CALM_PERIOD: Final = 1.0
"""Seconds between two frames while nothing happens but time."""
SIZE_PERIOD: Final = 0.25
"""Seconds between two looks at the terminal's size."""

# Synchronised output, cursor and line wrap: see XTerm Control Sequences, "DEC Private Mode Set".
_FRAME_START: Final = "\x1b[?2026h\x1b[?25l\x1b[?7l"
_FRAME_END: Final = "\x1b[?7h\x1b[?25h\x1b[?2026l"
_ERASE_LINE_END: Final = "\x1b[K"
_ERASE_BELOW: Final = "\x1b[J"


class Live:
    """A ``Display`` on a terminal.

    ``emit`` only folds and a thread paints, so that a terminal which is slow, or held by Ctrl-S, holds up no build.
    """

    def __init__(self, stream: TextIO, environ: Mapping[str, str]) -> None:
        self._stream = stream
        self._environ = environ
        self._state = State()
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._painter = Painter(Sink(stream), environ)
        self._thread = threading.Thread(target=self._run, name="live view", daemon=True)
        self._thread.start()

    def emit(self, event: Event) -> None:
        """Take ``event`` into the state; from any thread."""
        with self._lock:
            self._state = fold(self._state, event)
        self._changed.set()

    def close(self) -> None:
        """Replace the screen by the summary, the warnings and the errors, which stay. Once; later calls do nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._changed.set()
        self._thread.join()
        state, size, now = self._state, self._size(), time.monotonic()
        lasting: list[ConsoleRenderable] = [
            problems.caution_text(each.problem, each.rule, each.platforms) for each in state.warnings
        ]
        if state.started:
            lasting.append(screen.summary(state, size[0], now))
        lasting += [problems.panel(each.problem, each.platform) for each in state.troubles]
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


class Painter:
    """Puts one frame in the place of the one before."""

    def __init__(self, sink: Sink, environ: Mapping[str, str]) -> None:
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
        """Cells of each line of the frame on the screen."""

    def paint(self, frame: Group, size: tuple[int, int]) -> None:
        """Show ``frame``, whose lines must fit ``size`` (columns, lines), instead of the last one."""
        lines = self._text(frame, size).split("\n")[:-1]
        body = "".join(f"{line}{_ERASE_LINE_END}\r\n" for line in lines)
        self._sink.write(f"{_FRAME_START}{self._back(size)}{body}{_ERASE_BELOW}{_FRAME_END}")
        self._widths = tuple(cell_len(_plain_text(each)) for each in frame.renderables)

    def leave(self, last: Group, size: tuple[int, int]) -> None:
        """Show ``last``, of any height, instead of the last frame, for good."""
        body = self._text(last, size).replace("\n", "\r\n")
        self._sink.write(f"{self._back(size)}{_ERASE_BELOW}{body}")
        self._widths = ()

    def _text(self, what: Group, size: tuple[int, int]) -> str:
        self._console.size = size
        with self._console.capture() as captured:
            self._console.print(what, end="")
        return captured.get()

    def _back(self, size: tuple[int, int]) -> str:
        """To the first cell of the last frame, which a narrower terminal has re-flowed into more rows."""
        columns, height = size
        rows = sum(max(1, -(-width // columns)) for width in self._widths)
        rows = min(rows, height - 1)
        return f"\r\x1b[{rows}A" if rows else "\r"


def _plain_text(line: object) -> str:
    return getattr(line, "plain", "")
