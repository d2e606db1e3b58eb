"""The live screen and the final summary: pure functions of the state, the size of the terminal and the time.

A running platform is a block of lines. All blocks have the same height, as high as the screen allows, so that text
moves and the layout does not. On a low screen a block is one line; if not even that fits, the least important platforms
are counted instead of shown.
"""

from __future__ import annotations

from typing import Final, assert_never

import msgspec
from rich.cells import cell_len
from rich.console import Group
from rich.text import Text

from executor.protocol import Action
from orchestrator.view import release_grid, units, wording
from orchestrator.view.build_state import BuildState, Flow, PlatformState, StepState, StepStatus
from orchestrator.view.screen_lines import SIGNS, STYLES, URGENCY, append_step, empty_line, plain, spread, step_line

BLOCK: Final = 14
"""Maximum lines of a block."""
BAR: Final = 14
"""Width of a progress bar in cells."""

_COLUMN_WORTH: Final = (9, 5, 2, 3, 4, 6, 7)
"""For each column of the summary, its importance: the least important is dropped first on a narrow terminal."""


class _Grid(msgspec.Struct, frozen=True):
    """The widths in cells, and which cells fit, that align the head lines of all platforms."""

    width: int
    platform: int
    where: int
    bar: int
    steps: int
    cached: int


def render(state: BuildState, width: int, height: int, now: float) -> Group:
    """Return the screen of a running build: at most ``height - 1`` lines (the last is the cursor's), none over
    ``width``."""
    room = max(1, height - 1)
    release = release_grid.is_release(state)
    top = [_headline(state, width, now)]
    resolving = [ref for ref, digest in state.pins if not digest]
    if resolving:
        top.append(plain(width, "  resolving " + ", ".join(resolving), "dim"))
    bottom = _footer(state, width, now)
    # On a low screen, the lines of platforms take precedence over those around them.
    needed = 2 if release else len(state.platforms)
    while top and len(top) + needed + len(bottom) > room:
        if bottom:
            bottom.pop(0)
        else:
            top.pop()
    rows = room - len(top) - len(bottom)
    shown = release_grid.lines if release else _platforms
    return Group(*top, *shown(state, width, rows, now), *bottom)


def summary(state: BuildState, width: int, now: float) -> Group:
    """Return the final summary: a table of the platforms, the outcome, and what was published."""
    platforms = wording.platforms_in_summary(state)
    rows = [wording.summary_row(each, now) for each in platforms]
    columns, widths = _fitting([wording.SUMMARY_HEADINGS, *rows], width)
    if len(columns) < len(wording.SUMMARY_HEADINGS):
        rows = [(*row[:-1], row[-1].removeprefix("sha256:")) for row in rows]
        columns, widths = _fitting([wording.SUMMARY_HEADINGS, *rows], width)
    lines = [_summary_line(wording.SUMMARY_HEADINGS, columns, widths, width, "dim")] if rows else []
    for platform, row in zip(platforms, rows, strict=True):
        line = _summary_line(row, columns, widths, width, "")
        line.plain = SIGNS[platform.stage] + line.plain[1:]
        line.stylize(STYLES[platform.stage], 0, 1)
        if not platform.digest or platform.stage != "built":
            line.stylize(STYLES[platform.stage], len(line.plain) - len(row[-1]))
        lines.append(line)
    ended = state.outcome or "cancelled"
    lines.append(plain(width, f"{SIGNS[ended]} {wording.outcome(state, now)}", f"bold {STYLES[ended]}"))
    # Wrapped, not cut, so that they can be copied.
    for text in (state.digest, *(ref for ref, _ in state.published)):
        if text:
            lines.append(Text(f"  {text}", overflow="fold"))
    return Group(*lines)


def _fitting(table: list[tuple[str, ...]], width: int) -> tuple[list[int], list[int]]:
    """Return which columns fit, and the width of each column."""
    widths = [max(cell_len(row[column]) for row in table) for column in range(len(table[0]))]
    columns = list(range(len(widths)))
    while len(columns) > 1 and sum(widths[column] + 2 for column in columns) > width:
        columns.remove(min(columns, key=lambda column: _COLUMN_WORTH[column]))
    return columns, widths


def _summary_line(cells: tuple[str, ...], columns: list[int], widths: list[int], width: int, style: str) -> Text:
    padded = (cells[column] + " " * (widths[column] - cell_len(cells[column])) for column in columns)
    return plain(width, "  " + "  ".join(padded).rstrip(), style)


def _headline(state: BuildState, width: int, now: float) -> Text:
    left = empty_line()
    left.append("building", "bold")
    if state.name:
        left.append(f" {state.name}", "bold")
    images = len({each.image for each in state.platforms if each.image})
    if images:
        left.append(f": {wording.plural(images, 'image')}, {wording.plural(len(state.platforms), 'platform')} in all")
    else:
        left.append(f" for {wording.plural(len(state.platforms), 'platform')}")
    for stage in ("built", "failed", "cancelled"):
        count = sum(1 for each in state.platforms if each.stage == stage)
        if count:
            left.append(f", {count} {stage}", STYLES[stage])
    return spread(width, left, units.elapsed(state.seconds(now)), "bold")


def _footer(state: BuildState, width: int, now: float) -> list[Text]:
    lines = []
    count = len(state.warnings) + state.more_warnings
    if count:
        last = wording.warning_line(state.warnings[-1])
        lines.append(plain(width, f"⚠ {wording.plural(count, 'warning')}: {last}", "yellow"))
    if state.waits:
        more = f" (and {len(state.waits) - 1} more)" if len(state.waits) > 1 else ""
        lines.append(plain(width, f"… {wording.wait(state.waits[0], now)}{more}", "yellow"))
    if state.publishing:
        what, done, total = state.publishing
        progress = f" {done}/{total}" if total else ""
        lines.append(plain(width, f"↑ publishing {what}{progress}", "blue"))
    return lines


def _platforms(state: BuildState, width: int, rows: int, now: float) -> list[Text]:
    grid = _grid(state, width)
    shown = list(state.platforms)
    hidden: list[PlatformState] = []
    if len(shown) > rows:
        by_urgency = sorted(shown, key=lambda each: URGENCY[each.stage])
        hidden = by_urgency[max(0, rows - 1) :]  # the last line counts them
        shown = [each for each in shown if each not in hidden]
        rows -= 1
    running = sum(1 for each in shown if each.stage == "running")
    share = min(BLOCK, (rows - len(shown) + running) // running) if running else 1
    lines: list[Text] = []
    for each in shown:
        lines += _block(each, grid, share, now) if each.stage == "running" else [_single(each, grid, now)]
    if hidden and rows >= 0:
        stages = [each.stage for each in hidden]
        counts = ", ".join(f"{stages.count(stage)} {stage}" for stage in URGENCY if stage in stages)
        lines.append(plain(width, f"  and {len(hidden)} more: {counts}" if shown else f"  {counts}", "dim"))
    return lines


def _grid(state: BuildState, width: int) -> _Grid:
    """Return the widths of the cells that fit beside platform and time: placement, number of steps, bar, cached
    steps."""
    platform = max((cell_len(each.platform) for each in state.platforms), default=0)
    where = max((cell_len(wording.placement_text(each)) for each in state.platforms), default=0)
    most = max((each.counted for each in state.platforms), default=0)
    steps = len(f"{most}/{most}")
    free = width - (2 + platform) - 8
    cells = []
    for wish in (2 + where, 2 + steps, 2 + len(f"{most} cached"), 2 + BAR):
        fits = wish <= free
        free -= wish if fits else 0
        cells.append(wish - 2 if fits else 0)
    return _Grid(width, platform, cells[0], cells[3], cells[1], cells[2])


def _padded(text: str, cells: int) -> str:
    return text + " " * (cells - cell_len(text))


def _name(platform: PlatformState, grid: _Grid) -> Text:
    line = empty_line()
    line.append(f"{SIGNS[platform.stage]} ", STYLES[platform.stage])
    line.append(_padded(platform.platform, grid.platform), "bold" if platform.stage == "running" else "")
    if grid.where:
        line.append("  " + _padded(wording.placement_text(platform), grid.where), "dim")
    return line


def _single(platform: PlatformState, grid: _Grid, now: float) -> Text:
    """Return the line of a platform that is not running."""
    line = _name(platform, grid)
    if platform.stage == "waiting":
        line.append("  waiting", "dim")
        return spread(grid.width, line, "")
    if platform.stage == "built":
        line.append("  built", "green")
        line.append(f"  {wording.steps(platform)}")
        if platform.size:
            line.append(f"  {units.size(platform.size)}")
    else:
        line.append(f"  {platform.stage}", STYLES[platform.stage])
        if platform.reason:
            line.append(f": {platform.reason}")
    return spread(grid.width, line, units.duration(platform.seconds(now)))


def _block(platform: PlatformState, grid: _Grid, share: int, now: float) -> list[Text]:
    """Return a running platform in exactly ``share`` lines."""
    running = [platform.steps[position] for position in platform.running]
    if share == 1:
        return [_one_line(platform, running, grid, now)]
    has_flow = share > 3 and bool(platform.flows)
    lines = [_head(platform, grid, "" if has_flow else _rates(platform.flows, now), now)]
    if has_flow:
        lines.append(_flow_line(platform.flows, grid.width, now))
    free = share - len(lines)
    shown = running[-max(1, free // 2) :]
    rest = free - max(1, len(shown))
    past = _past_steps(platform, rest // 3)
    log = _log_tail(running, rest - len(past))
    lines += [_past_line(each, grid.width) for each in past]
    lines += [step_line(each, len(running) - len(shown) if each is shown[0] else 0, grid.width, now) for each in shown]
    if not running:
        lines.append(plain(grid.width, "  " + _idle_text(platform), "dim"))
    lines += [plain(grid.width, f"  │ {text}", "dim") for text in log]
    lines += [empty_line() for _ in range(share - len(lines))]
    return lines


def _idle_text(platform: PlatformState) -> str:
    if platform.waits:
        return platform.waits
    if not platform.steps:
        return "planning"
    return "finishing" if platform.finished >= platform.counted else "between steps"


def _head(platform: PlatformState, grid: _Grid, rates: str, now: float) -> Text:
    line = _name(platform, grid)
    if grid.bar:
        line.append("  ")
        _append_bar(line, platform, grid.bar)
    if grid.steps:
        line.append("  " + _count(platform).rjust(grid.steps))
    if grid.cached:
        line.append("  " + (f"{platform.cached} cached" if platform.cached else ""), "cyan")
    right = units.elapsed(platform.seconds(now))
    if rates and cell_len(line.plain) + len(rates) + len(right) + 4 <= grid.width:
        right = f"{rates}  {right}"
    return spread(grid.width, line, right)


def _count(platform: PlatformState) -> str:
    return f"{platform.finished}/{platform.counted}" if platform.counted else ""


def _append_bar(line: Text, platform: PlatformState, cells: int) -> None:
    whole = platform.counted or 1
    cached = cells * platform.cached // whole
    over = cells * platform.finished // whole
    line.append("━" * cached, "cyan")
    line.append("━" * (over - cached), "green")
    line.append("─" * (cells - over), "dim")


def _one_line(platform: PlatformState, running: list[StepState], grid: _Grid, now: float) -> Text:
    line = _name(platform, grid)
    if grid.steps:
        line.append("  " + _count(platform).rjust(grid.steps))
    line.append("  ")
    if running:
        append_step(line, running[-1])
    else:
        line.append(_idle_text(platform), "dim")
    return spread(grid.width, line, units.elapsed(platform.seconds(now)))


def _past_steps(platform: PlatformState, count: int) -> list[StepState]:
    """Return the last ``count`` finished steps, in the order of the plan."""
    over = (StepStatus.DONE, StepStatus.CACHED, StepStatus.FAILED)
    found: list[StepState] = []
    for each in reversed(platform.steps):
        if len(found) >= count:
            break
        if each.status in over:
            found.append(each)
    return found[::-1]


def _past_line(step: StepState, width: int) -> Text:
    line = empty_line()
    failed = step.status is StepStatus.FAILED
    line.append("  ✗ " if failed else "  ✓ ", "red" if failed else "green")
    place = wording.position(step.step)
    name = wording.abbreviated_step(step.step.name)
    line.append(f"{place} {name}" if place else name, "dim")
    if step.status is StepStatus.CACHED:
        return spread(width, line, "cached", "cyan")
    return spread(width, line, units.duration(step.seconds), "dim")


def _log_tail(running: list[StepState], count: int) -> list[str]:
    """Return the last lines of the running step that wrote last."""
    if not running or count <= 0:
        return []
    tail = max(running, key=lambda each: each.spoke).tail
    return [text for text in tail if text.strip()][-count:]


def _flow_line(flows: tuple[Flow, ...], width: int, now: float) -> Text:
    parts = []
    for flow in flows:
        verb, moved = _verb(flow.action), units.part(flow.done, flow.total)
        parts.append(f"{verb} {moved} {units.size(flow.rate(now))}/s" if flow.busy else f"{verb} {moved}")
    return plain(width, "  " + "   ".join(parts), "magenta")


def _rates(flows: tuple[Flow, ...], now: float) -> str:
    busy = (flow for flow in flows if flow.busy and flow.action in (Action.PULL, Action.PUSH))
    return " ".join(f"{_verb(flow.action)} {units.size(flow.rate(now))}/s" for flow in busy)


def _verb(action: Action) -> str:
    match action:
        case Action.PULL:
            return "↓"
        case Action.PUSH:
            return "↑"
        case Action.UNPACK | Action.WRITE | Action.COMPRESS | Action.CONTEXT:
            return action
        case _:
            assert_never(action)
