"""What somebody may have meant by a word that is unknown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_FAR: Final = 3
"""An edit distance from which words are no longer alike."""
_LONG: Final = 200


def meant(word: str, options: Iterable[str]) -> str:
    """The option most like ``word`` (fewer than three edits away), or ""; case counts."""
    best, least = "", _FAR
    if len(word) > _LONG:
        return ""
    for option in options:
        if option == word:
            return ""
        if abs(len(option) - len(word)) < least:
            distance = _distance(word, option)
            if distance < least:
                best, least = option, distance
    return best


def hint(word: str, options: Iterable[str]) -> str:
    """`` (did you mean OPTION?)`` to go behind an error's text, or ""."""
    best = meant(word, options)
    return f" (did you mean {best}?)" if best else ""


def hint_any(words: Iterable[str], options: Iterable[str]) -> str:
    """``hint`` for the first of ``words`` that is like an option, or ""."""
    options = tuple(options)
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
