"""What somebody may have meant by a word that is unknown."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

_FAR: Final = 3
"""An edit distance from which words are no longer alike."""
_LONG: Final = 200
_MANY: Final = 100
"""Options beyond which none is looked for: each costs, and every line of a hostile file may ask."""


def meant(word: str, options: Collection[str]) -> str:
    """The option most like ``word`` (fewer than three edits away), or ""; case counts. None of too many."""
    best, least = "", _FAR
    if len(word) > _LONG or len(options) > _MANY:
        return ""
    for option in options:
        if option == word:
            return ""
        if abs(len(option) - len(word)) < least:
            distance = _distance(word, option)
            if distance < least:
                best, least = option, distance
    return best


def hint(word: str, options: Collection[str]) -> str:
    """`` (did you mean OPTION?)`` to go behind an error's text, or ""."""
    best = meant(word, options)
    return f" (did you mean {best}?)" if best else ""


def hint_any(words: Iterable[str], options: Collection[str]) -> str:
    """``hint`` for the first of ``words`` that is like an option, sorted, or ""."""
    options = sorted(options) if len(options) <= _MANY else ()
    return next(filter(None, (hint(word, options) for word in words)), "")


def _distance(one: str, other: str) -> int:
    """Levenshtein's edit distance."""
    row = list(range(len(other) + 1))
    for at, letter in enumerate(one, 1):
        diagonal, row[0] = row[0], at
        for column, facing in enumerate(other, 1):
            diagonal, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, diagonal + (letter != facing)),
            )
    return row[-1]
