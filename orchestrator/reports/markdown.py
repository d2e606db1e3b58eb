"""Markdown in which text from outside is text: for summaries of CI systems.

Text is cleaned, then each ASCII character that could be markup becomes an HTML entity. In elements of code nothing else
is recognised either, such as names of users and emoji.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from orchestrator.view.untrusted import clean_line

_MARKUP: Final = re.compile(r"[^A-Za-z0-9 /,;=]", re.ASCII)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a table whose cells are Markdown, and an empty line."""
    names = tuple(head)
    return [_cells(names), _cells(["---"] * len(names)), *map(_cells, rows), ""]


def _cells(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def text_of(text: str) -> str:
    """Return ``text`` as Markdown that shows it, without mentioning a user."""
    return escaped(clean_line(text)).replace("&#64;", "&#64;<!-- -->")


def code(text: str) -> str:
    """Return ``text`` as an element of code."""
    return f"<code>{escaped(clean_line(text))}</code>"


def escaped(text: str) -> str:
    """Return ``text``, cleaned already, with entities."""
    return _MARKUP.sub(_entity, text)


def _entity(match: re.Match[str]) -> str:
    char = match[0]
    return f"&#{ord(char)};" if char.isascii() else char
