"""Pieces of HTML for the report page. Every text goes through ``text``, so nothing of a build can become markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Final

from orchestrator.view.untrusted import clean_log

LINE: Final = 400
"""Maximum number of characters of a text."""
WIDTH: Final = 1000
"""Units of a bar's width."""


def text(value: str, limit: int = LINE) -> str:
    """Return ``value`` as text of an element or of an attribute."""
    shown = value if len(value) <= limit else value[: limit - 1] + "…"
    return html.escape(clean_log(shown))


def element(name: str, content: str, **attributes: str) -> str:
    """Return an element; ``class_`` and ``data_x`` are the attributes ``class`` and ``data-x``."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items())
    return f"<{name}{given}>{content}</{name}>"


def table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Return a table that scrolls by itself; the first cell of each row is its heading. Cells are markup."""
    head = "".join(f'<th scope="col">{each}</th>' for each in headings)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{each}</td>" for each in rest)}</tr>' for first, *rest in rows
    )
    inner = f"<caption>{text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return (
        f'<div class="scroll" role="region" aria-label="{text(caption)}" tabindex="0">'
        f'<table class="{text(kind)}">{inner}</table></div>'
    )


def bar(start: float, length: float, kind: str, label: str) -> str:
    """Return a bar from ``start``, both parts of 1. Readers pass it over: the cells beside it say the same."""
    x = max(0.0, min(1.0, start)) * WIDTH
    width = max(3.0, min(1.0, max(0.0, length)) * WIDTH)
    x = min(x, WIDTH - 3.0)
    width = min(width, WIDTH - x)
    shape = f'<rect class="{text(kind)}" x="{x:.1f}" y="0" width="{width:.1f}" height="10">'
    return (
        f'<svg class="bar" viewBox="0 0 {WIDTH} 10" preserveAspectRatio="none" aria-hidden="true">'
        f"{shape}<title>{text(label)}</title></rect></svg>"
    )


def fold(summary: str, content: str, *, unfolded: bool) -> str:
    """Return content that opens under ``summary``, which is markup."""
    return f"<details{' open' if unfolded else ''}><summary>{summary}</summary>{content}</details>"


def tag(kind: str, label: str = "") -> str:
    """Return a small label, coloured by its kind."""
    return f'<span class="tag {text(kind)}">{text(label or kind)}</span>'
