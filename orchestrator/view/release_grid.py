"""The live screen of a release: its images by its platforms, and below the steps that run.

Every image is a row while there is room; where there is not, the least important ones are counted. Cells are as wide as
all of them fit, and only signs on a narrow screen.

    image     amd64   arm64   arm/v7
    base      ✓ 1.2s  ✓ 8.0s  ✓ 9.1s
    web-3-12  ● 3/7   ● 1/7   ○
    web-3-13  waits for base
      web-3-12 amd64  build 3/7 RUN pip install .                     4s
"""

from __future__ import annotations

from typing import Final

import msgspec
from rich.cells import cell_len
from rich.text import Text

from orchestrator.view import units, wording
from orchestrator.view.build_state import BuildState, PlatformState
from orchestrator.view.screen_lines import SIGNS, STYLES, URGENCY, append_step, empty_line, plain, spread

_HEADING: Final = "image"
_LOG: Final = 3
"""Maximum number of lines of output below the steps."""


class _Row(msgspec.Struct, frozen=True):
    """An image and its platforms by target."""

    image: str
    cells: dict[str, PlatformState]

    @property
    def urgency(self) -> int:
        return min(URGENCY[each.stage] for each in self.cells.values())


class _Widths(msgspec.Struct, frozen=True):
    """The widths in cells of the columns."""

    whole: int
    image: int
    cell: int
    """That of all platforms; 1 for signs alone."""


def is_release(state: BuildState) -> bool:
    """Whether ``state`` is that of a release."""
    return any(each.image for each in state.platforms)


def lines(state: BuildState, width: int, rows: int, now: float) -> list[Text]:
    """Return the grid in at most ``rows`` lines, none over ``width``."""
    if rows <= 0:
        return []
    images = _rows(state)
    targets = list(dict.fromkeys(each.target for each in state.platforms))
    busy = [each for each in state.platforms if each.stage == "running" and (each.running or each.waits)]
    details = min(len(busy), max(0, rows - 1 - len(images)), max(1, rows // 2)) if busy else 0
    room = max(1, rows - details - (1 if rows > 1 else 0))
    shown, hidden = _fitting(images, room)
    widths = _widths(shown, targets, width, now)
    found = [_heading(targets, widths)] if rows > 1 else []
    found += [_row(each, targets, state, widths, now) for each in shown]
    if hidden:
        stages = [cell.stage for each in hidden for cell in each.cells.values()]
        counts = ", ".join(f"{stages.count(stage)} {stage}" for stage in URGENCY if stage in stages)
        more = wording.plural(len(hidden), "more image") if shown else wording.plural(len(hidden), "image")
        found.append(plain(width, f"  {more}: {counts}", "dim"))
    latest = sorted(busy, key=_since)[len(busy) - details :]
    found += [_step(each, width, now) for each in latest]
    found += _log(busy, min(_LOG, rows - len(found)), width)
    return found[:rows]


def _rows(state: BuildState) -> list[_Row]:
    found: dict[str, dict[str, PlatformState]] = {}
    for each in state.platforms:
        found.setdefault(each.image, {})[each.target] = each
    return [_Row(image, cells) for image, cells in found.items()]


def _fitting(images: list[_Row], room: int) -> tuple[list[_Row], list[_Row]]:
    """Return the images that are shown, in order, and those that are counted in a line of their own."""
    if len(images) <= room:
        return images, []
    hidden = sorted(images, key=lambda each: each.urgency)[max(0, room - 1) :]
    return [each for each in images if each not in hidden], hidden


def _widths(images: list[_Row], targets: list[str], width: int, now: float) -> _Widths:
    name = max((cell_len(each.image) for each in images), default=0)
    name = max(name, len(_HEADING))
    texts = [_cell(cell, now) for each in images for cell in each.cells.values()]
    wide = max((cell_len(each) for each in (*texts, *map(_short, targets))), default=1)
    if name + len(targets) * (2 + wide) <= width:
        return _Widths(width, name, wide)
    return _Widths(width, max(1, min(name, width - 2 * len(targets) - 1)), 1)


def _short(target: str) -> str:
    return target.removeprefix("linux/")


def _heading(targets: list[str], widths: _Widths) -> Text:
    if widths.cell == 1:
        return plain(widths.whole, " ".join(map(_short, targets)), "dim")
    cells = "".join(f"  {_short(each):<{widths.cell}}" for each in targets)
    return plain(widths.whole, f"{_HEADING:<{widths.image}}{cells}".rstrip(), "dim")


def _row(row: _Row, targets: list[str], state: BuildState, widths: _Widths, now: float) -> Text:
    line = empty_line()
    name = Text(row.image, no_wrap=True)
    name.truncate(widths.image, overflow="ellipsis", pad=True)
    line.append(name.plain, "bold" if any(each.stage == "running" for each in row.cells.values()) else "")
    waited = _waited(row, state)
    if waited:
        line.append(f"  waits for {', '.join(waited)}", "dim")
        line.truncate(widths.whole, overflow="ellipsis")
        return line
    gap = " " if widths.cell == 1 else "  "
    for each in targets:
        cell = row.cells.get(each)
        text = "" if cell is None else SIGNS[cell.stage] if widths.cell == 1 else _cell(cell, now)
        line.append(gap)
        line.append(text + " " * (widths.cell - cell_len(text)), "" if cell is None else STYLES[cell.stage])
    line.rstrip()
    line.truncate(widths.whole, overflow="ellipsis")
    return line


def _waited(row: _Row, state: BuildState) -> tuple[str, ...]:
    """Return the images that the image of ``row`` waits for: none once a platform of it is at work."""
    if any(each.stage != "waiting" for each in row.cells.values()):
        return ()
    after = dict.fromkeys(name for each in row.cells.values() for name in each.after)
    built = {image for image in after if all(each.digest for each in state.platforms if each.image == image)}
    return tuple(each for each in after if each not in built)


def _cell(platform: PlatformState, now: float) -> str:
    """Return the sign of a platform, and how far it is or how long it took."""
    match platform.stage:
        case "running":
            count = f"{platform.finished}/{platform.counted}" if platform.counted else ""
            return f"{SIGNS['running']} {count}".rstrip()
        case "built" | "failed":
            return f"{SIGNS[platform.stage]} {units.duration(platform.seconds(now))}"
        case _:
            return SIGNS[platform.stage]


def _step(platform: PlatformState, width: int, now: float) -> Text:
    """Return the line of a platform's latest step, or of what its executor waits for."""
    line = empty_line()
    line.append("  ")
    line.append(f"{platform.image} {_short(platform.target)}", "bold")
    line.append("  ")
    if not platform.running:
        line.append(platform.waits, "dim")
        return spread(width, line, units.elapsed(platform.seconds(now)))
    step = platform.steps[platform.running[-1]]
    append_step(line, step)
    if step.waits:
        return spread(width, line, f"waiting for {wording.wait_reason(step)}", "dim")
    return spread(width, line, units.elapsed(step.at_work(now)))


def _since(platform: PlatformState) -> float:
    """Return the time at which its latest step began; that of the platform if there is none."""
    return platform.steps[platform.running[-1]].started if platform.running else platform.started


def _log(busy: list[PlatformState], count: int, width: int) -> list[Text]:
    """Return the last lines of the running step that wrote last."""
    running = [each.steps[position] for each in busy for position in each.running]
    if not running or count <= 0:
        return []
    tail = [text for text in max(running, key=lambda each: each.spoke).tail if text.strip()]
    return [plain(width, f"  │ {text}", "dim") for text in tail[-count:]]
