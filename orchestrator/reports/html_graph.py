"""The graph of stages as a drawing, beside the table that says the same in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from executor.protocol import StageInfo
from orchestrator.reports.html_elements import text

STAGES: Final = 120
"""Maximum number of stages that are drawn."""
_BOX: Final = (190, 34)
_GAP: Final = (64, 16)
_NAME: Final = 22
"""Maximum number of characters of a name in a box."""


def drawing(stages: Sequence[StageInfo]) -> str:
    """Return an SVG of the stages, in columns: each right of all that it needs."""
    shown = stages[:STAGES]
    columns = _columns(shown)
    rows: dict[int, int] = {}
    places: dict[str, tuple[int, int]] = {}
    for stage in shown:
        column = columns[stage.label]
        row = rows.get(column, 0)
        rows[column] = row + 1
        places[stage.label] = column * (_BOX[0] + _GAP[0]) + 8, row * (_BOX[1] + _GAP[1]) + 8
    width = (max(columns.values(), default=0) + 1) * (_BOX[0] + _GAP[0]) - _GAP[0] + 16
    height = max(rows.values(), default=1) * (_BOX[1] + _GAP[1]) - _GAP[1] + 16
    edges = [_edge(places[need], places[each.label]) for each in shown for need in each.needs if need in places]
    boxes = [_box(each, *places[each.label], last=each is shown[-1]) for each in shown]
    return (
        f'<svg class="graph" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Graph of {len(shown)} stages; the table below has the same.">{"".join(edges + boxes)}</svg>'
    )


def _columns(stages: Sequence[StageInfo]) -> dict[str, int]:
    """Return the column of each stage. A stage needs only earlier ones; anything else is not drawn."""
    found: dict[str, int] = {}
    for each in stages:
        found[each.label] = 1 + max((found[need] for need in each.needs if need in found), default=-1)
    return found


def _box(stage: StageInfo, x: int, y: int, *, last: bool) -> str:
    name = stage.label if len(stage.label) <= _NAME else stage.label[: _NAME - 1] + "…"
    kind = "box last" if last else "box"
    shape = f'<rect class="{kind}" x="{x}" y="{y}" width="{_BOX[0]}" height="{_BOX[1]}" rx="6"/>'
    label = f'<text x="{x + _BOX[0] // 2}" y="{y + 22}" text-anchor="middle">{text(name)}</text>'
    return f"<g><title>{text(stage.label)}</title>{shape}{label}</g>"


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    x, y = start[0] + _BOX[0], start[1] + _BOX[1] // 2
    to_x, to_y = end[0], end[1] + _BOX[1] // 2
    middle = (x + to_x) // 2
    return f'<path class="edge" d="M{x} {y}C{middle} {y} {middle} {to_y} {to_x} {to_y}"/>'
