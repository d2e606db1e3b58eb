"""The patterns of ``${name#pattern}`` and related substitutions: ``*`` is any run, ``?`` any character, except
newlines.

There are no bracket expressions. A backslash makes ``*``, ``?`` and itself literal; before ``}`` and ``/`` it keeps
them from ending the substitution. The literal pieces between stars are matched one after the other, from the left for
the shortest match and from the right for the longest. So a match takes at most pattern times value, where backtracking
would be exponential.

Source: Dockerfile reference, "Environment replacement"; what it leaves open is as in BuildKit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

_ANY: Final = "?"
_RUN: Final = "*"
# Compiled when used, which few builds do:
_ESCAPED_OR_NOT: Final = r"(?s:\\.|.)"
_NAME: Final = r"\$(?:\$|(\w+)|\{(\w+)\})"


class BadPatternError(ValueError):
    """A backslash before a character that it cannot escape."""


Token = tuple[str, bool]
"""A character and whether it is a wildcard."""


def without_prefix(pattern: str, value: str, *, longest: bool) -> str:
    """Return ``value`` without the prefix that matches ``pattern``; unchanged if none does."""
    return value[_anchored(_tokens(pattern), value, longest) :]


def without_suffix(pattern: str, value: str, *, longest: bool) -> str:
    """Return ``value`` without the suffix that matches ``pattern``; unchanged if none does."""
    backwards = value[::-1]
    turned = "".join(reversed(re.findall(_ESCAPED_OR_NOT, pattern)))  # reversed, a backslash follows what it escapes
    return backwards[_anchored(_tokens(turned), backwards, longest) :][::-1]


def replaced(pattern: str, value: str, replacement: str) -> str:
    """Return ``value`` with the first, longest match of ``pattern`` replaced."""
    for start, end in _matches(_tokens(pattern), value):
        return value[:start] + replacement + value[end:]
    return value


def replaced_all(pattern: str, value: str, replacement: str, limit: int) -> str:
    """Return ``value`` with every match replaced; in ``replacement``, ``$0`` is the match, ``$$`` a dollar, ``$x``
    nothing.

    What follows ``limit`` characters may be missing; the caller rejects such a result as too long.
    """
    parts: list[str] = []
    done = size = 0
    for start, end in _matches(_tokens(pattern), value):
        parts += (value[done:start], _filled(replacement, value[start:end]))
        done = end
        size += len(parts[-2]) + len(parts[-1])
        if size > limit:
            break
    parts.append(value[done:])
    return "".join(parts)


def _filled(template: str, match: str) -> str:
    def fill(found: re.Match[str]) -> str:
        name = found.group(1) or found.group(2)
        if name is None:
            return "$"
        return match if name.strip("0") == "" else ""

    return re.sub(_NAME, fill, template) if "$" in template else template


def _tokens(pattern: str) -> list[Token]:
    tokens: list[Token] = []
    letters = iter(range(len(pattern)))
    for at in letters:
        letter = pattern[at]
        if letter != "\\":
            tokens.append((letter, letter in "*?"))
            continue
        following = pattern[at + 1 : at + 2]
        if following in ("}", "/"):
            continue
        if not following or following not in "*?\\":
            raise BadPatternError(f"invalid escape '\\{following}'")
        tokens.append((following, False))
        next(letters)
    return tokens


def _pieces(tokens: list[Token]) -> list[list[Token]]:
    """Return the tokens between stars: one piece more than there are stars (runs of stars count once)."""
    pieces: list[list[Token]] = [[]]
    starred = False
    for token in tokens:
        if token == (_RUN, True):
            if not starred:
                pieces.append([])
            starred = True
        else:
            pieces[-1].append(token)
            starred = False
    return pieces


def _compiled(piece: list[Token]) -> re.Pattern[str]:
    return re.compile("".join("[^\n]" if wild else re.escape(letter) for letter, wild in piece))


def _groups(tokens: list[Token]) -> list[list[Token]]:
    """Return the tokens between newlines: one group more than there are newlines, each for one line of the value."""
    groups: list[list[Token]] = [[]]
    for token in tokens:
        if token == ("\n", False):
            groups.append([])
        else:
            groups[-1].append(token)
    return groups


def _anchored(tokens: list[Token], value: str, longest: bool) -> int:
    """Return the end of the match that starts at 0; 0 when there is none."""
    groups = [_Group(each) for each in _groups(tokens)]
    lines = value.split("\n", len(groups))
    if len(lines) < len(groups):
        return 0
    at = 0
    for group, line in zip(groups[:-1], lines, strict=False):  # nothing but a newline matches a newline
        if group.to_the_end(line, 0, anchored=True) is None:
            return 0
        at += len(line) + 1
    end = groups[-1].prefix(lines[len(groups) - 1], longest)
    return 0 if end is None else at + end


def _candidates(tokens: list[Token], value: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of the matches: leftmost first, each as long as possible, not overlapping."""
    groups = [_Group(each) for each in _groups(tokens)]
    if len(groups) == 1:
        yield from groups[0].matches(value)
        return
    lines = value.split("\n")
    ends = list(accumulate(len(line) + 1 for line in lines))
    first, start = 0, 0  # the line at which the rest begins, and the index in it
    while first + len(groups) <= len(lines):
        last = first + len(groups) - 1
        begin = groups[0].to_the_end(lines[first], start, anchored=False)
        between = zip(groups[1:-1], lines[first + 1 : last], strict=True)
        if begin is not None and all(group.to_the_end(line, 0, anchored=True) is not None for group, line in between):
            end = groups[-1].prefix(lines[last], longest=True)
            if end is not None:
                yield ends[first] - len(lines[first]) - 1 + begin, ends[last] - len(lines[last]) - 1 + end
                first, start = last, end
                continue
        first, start = first + 1, 0


class _Group:
    """A pattern without newlines: pieces of characters and ``?``, separated by stars."""

    __slots__ = ("lengths", "pieces")

    def __init__(self, tokens: list[Token]) -> None:
        pieces = _pieces(tokens)
        self.pieces = [_compiled(piece) for piece in pieces]
        self.lengths = [len(piece) for piece in pieces]

    def prefix(self, line: str, longest: bool) -> int | None:
        """Return the end of a match that starts at 0."""
        head = self.pieces[0].match(line)
        if head is None or len(self.pieces) == 1:
            return None if head is None else head.end()
        if longest:
            placed = _from_the_right(self.pieces[1:], line, head.end())
            return None if placed is None else placed[1]
        end = head.end()
        for piece in self.pieces[1:]:
            found = piece.search(line, end)
            if found is None:
                return None
            end = found.end()
        return end

    def to_the_end(self, line: str, start: int, *, anchored: bool) -> int | None:
        """Return the start of a match that ends at the end of ``line``: ``start`` if ``anchored``, else the first from
        there."""
        last = len(line) - self.lengths[-1]
        if last < start or self.pieces[-1].match(line, last) is None:
            return None
        if len(self.pieces) == 1:
            return last if last == start or not anchored else None
        tail = _from_the_right(self.pieces[1:-1], line[:last], start)
        if tail is None:
            return None
        limit = last if len(self.pieces) == 2 else tail[0]
        head = self.pieces[0].match(line, start, limit) if anchored else self.pieces[0].search(line, start, limit)
        return None if head is None else head.start()

    def matches(self, value: str) -> Iterator[tuple[int, int]]:
        """Yield every leftmost, longest match."""
        if len(self.pieces) == 1:
            for found in self.pieces[0].finditer(value):
                yield found.span()
            return
        begin = 0
        for line in value.split("\n"):  # a star matches to the end of its line: at most one match a line
            tail = _from_the_right(self.pieces[1:], line, 0)
            head = self.pieces[0].search(line, 0, tail[0]) if tail is not None else None
            if tail is not None and head is not None:
                yield begin + head.start(), begin + tail[1]
            begin += len(line) + 1


def _from_the_right(pieces: list[re.Pattern[str]], line: str, start: int) -> tuple[int, int] | None:
    """Match every piece as far right in ``line`` as possible, not before ``start``: start of the first, end of the
    last."""
    limit, end = len(line), -1
    for piece in reversed(pieces):
        for at in range(limit, start - 1, -1):
            found = piece.match(line, at, limit)
            if found is not None:
                break
        else:
            return None
        limit = at
        end = found.end() if end < 0 else end
    return limit, end


def _matches(tokens: list[Token], value: str) -> Iterator[tuple[int, int]]:
    """Yield the matches that count: an empty one directly after another does not."""
    previous = -1
    for start, end in _candidates(tokens, value):
        if start == end == previous:
            continue
        previous = end
        yield start, end
