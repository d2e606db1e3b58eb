"""Suggestions for misspelt words in error messages."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

_FAR: Final = 3
"""The edit distance from which words are no longer similar."""
_LONG: Final = 200
_MANY: Final = 100
"""Maximum number of options that are compared: every line of a hostile file may ask."""


def closest(word: str, options: Collection[str]) -> str:
    """Return the option most similar to ``word`` (fewer than three edits), or ""; case-sensitive."""
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
    """Return `` (did you mean OPTION?)`` to append to an error message, or ""."""
    best = closest(word, options)
    return f" (did you mean {best}?)" if best else ""


def hint_any(words: Iterable[str], options: Collection[str]) -> str:
    """Return ``hint`` for the first of the sorted ``words`` that resembles an option, or ""."""
    options = sorted(options) if len(options) <= _MANY else ()
    return next(filter(None, (hint(word, options) for word in words)), "")


def _distance(one: str, other: str) -> int:
    """Return the Levenshtein distance."""
    row = list(range(len(other) + 1))
    for at, letter in enumerate(one, 1):
        diagonal, row[0] = row[0], at
        for column, facing in enumerate(other, 1):
            diagonal, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, diagonal + (letter != facing)),
            )
    return row[-1]
