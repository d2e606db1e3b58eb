"""The rows as a drawing: one group of bars a row, each group to a scale of its own, every round a mark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from table import OURS, Row, seconds

_WIDTH, _LEFT, _RIGHT = 760, 130, 90
_BAR, _GAP, _GROUP_GAP, _TOP = 14, 3, 16, 44
_COLOURS = ("#d9480f", "#5c7cfa", "#868e96", "#2f9e44", "#ae3ec9")


def svg(rows: Sequence[Row], builders: Sequence[str]) -> str:
    """An SVG document. Bars are medians; the scale of each group ends at its slowest round."""
    out: list[str] = []
    y = _TOP
    for row in rows:
        present = [each for each in builders if each in row.times]
        scale = (_WIDTH - _LEFT - _RIGHT) / max(max(row.times[each].seconds) for each in present)
        middle = y + len(present) * (_BAR + _GAP) / 2
        out.append(f'<text x="{_LEFT - 10}" y="{middle + 4:.0f}" text-anchor="end">{escape(row.name)}</text>')
        for name in present:
            times = row.times[name]
            colour = _COLOURS[builders.index(name) % len(_COLOURS)]
            width = times.median * scale
            out.append(f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>')
            out += [
                f'<line x1="{_LEFT + each * scale:.1f}" x2="{_LEFT + each * scale:.1f}" y1="{y + 2}" '
                f'y2="{y + _BAR - 2}" stroke="#000" stroke-opacity=".45"/>'
                for each in times.seconds
            ]
            label = f"{seconds(times.median)} s"
            if name == OURS and row.ratio is not None:
                label += f" · {row.ratio:.2f}"
            end = _LEFT + max(width, max(times.seconds) * scale) + 6
            out.append(f'<text x="{end:.1f}" y="{y + _BAR - 3}">{label}</text>')
            y += _BAR + _GAP
        y += _GROUP_GAP
    legend = []
    x = _LEFT
    for position, name in enumerate(builders):
        legend.append(f'<rect x="{x}" y="14" width="12" height="12" fill="{_COLOURS[position % len(_COLOURS)]}"/>')
        legend.append(f'<text x="{x + 18}" y="24">{escape(name)}</text>')
        x += 40 + 8 * len(name)
    style = "text{font:12px sans-serif;fill:#212529}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}" '
        f'role="img" aria-label="seconds per build, by builder">\n<style>{style}</style>\n'
        f'<rect width="{_WIDTH}" height="{y}" fill="#fff"/>\n' + "\n".join((*legend, *out)) + "\n</svg>\n"
    )
