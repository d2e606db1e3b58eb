"""Shell patterns of ``${name#pattern}`` and its kin: ``*`` any run, ``?`` one character, neither crossing a newline.

There are no bracket expressions. A backslash makes ``*``, ``?`` and itself ordinary; before ``}`` and ``/`` it only
protects them from ending the substitution. Matching places the literal pieces between the stars one after the other,
from the left for the shortest match and from the right for the longest, so hostile patterns cost no more than
pattern times value, where backtracking would be exponential.

Source: Dockerfile reference, "Environment replacement"; what is left open there is as BuildKit does it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_ANY: Final = "?"
_RUN: Final = "*"
_ESCAPED_OR_NOT: Final = re.compile(r"\\.|.", re.DOTALL)
_NAME: Final = re.compile(r"\$(?:\$|(\w+)|\{(\w+)\})")


class BadPatternError(ValueError):
    """A backslash before a character that it cannot escape."""


Token = tuple[str, bool]
"""A character and whether it is a wildcard."""


def without_prefix(pattern: str, value: str, *, longest: bool) -> str:
    """``value`` without the part at its start that ``pattern`` matches; ``value`` when nothing matches."""
    return value[_anchored(_tokens(pattern), value, longest) :]


def without_suffix(pattern: str, value: str, *, longest: bool) -> str:
    """``value`` without the part at its end that ``pattern`` matches."""
    backwards = value[::-1]
    turned = "".join(reversed(_ESCAPED_OR_NOT.findall(pattern)))  # a backslash at its end protects what is before it
    return backwards[_anchored(_tokens(turned), backwards, longest) :][::-1]


def replaced(pattern: str, value: str, replacement: str) -> str:
    """``value`` with the first, longest match of ``pattern`` replaced."""
    for start, end in _matches(_tokens(pattern), value):
        return value[:start] + replacement + value[end:]
    return value


def replaced_all(pattern: str, value: str, replacement: str) -> str:
    """``value`` with every match replaced; ``$0`` in ``replacement`` is the match, ``$$`` a dollar, ``$x`` nothing."""
    parts: list[str] = []
    done = 0
    for start, end in _matches(_tokens(pattern), value):
        parts += (value[done:start], _filled(replacement, value[start:end]))
        done = end
    parts.append(value[done:])
    return "".join(parts)


def _filled(template: str, match: str) -> str:
    def fill(found: re.Match[str]) -> str:
        name = found.group(1) or found.group(2)
        if name is None:
            return "$"
        return match if name.strip("0") == "" else ""

    return _NAME.sub(fill, template) if "$" in template else template


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
    """The tokens between the stars: one piece more than there are stars (runs of stars count once)."""
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


def _anchored(tokens: list[Token], value: str, longest: bool) -> int:
    """Where the match that starts at 0 ends; 0 when there is none."""
    if ("\n", False) in tokens:
        return _with_newlines(tokens, value, longest)
    line = value.partition("\n")[0]
    pieces = [_compiled(piece) for piece in _pieces(tokens)]
    head = pieces[0].match(line)
    if head is None:
        return 0
    if len(pieces) == 1:
        return head.end()
    if longest:
        placed = _from_the_right(pieces[1:], line, head.end())
        return 0 if placed is None else placed[1]
    end = head.end()
    for piece in pieces[1:]:
        found = piece.search(line, end)
        if found is None:
            return 0
        end = found.end()
    return end


def _from_the_right(pieces: list[re.Pattern[str]], line: str, start: int) -> tuple[int, int] | None:
    """Every piece as far right in ``line`` as it can be, not before ``start``: begin of the first, end of the last."""
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
    """Leftmost-longest matches that do not overlap; an empty match right after another does not count."""
    previous = -1
    for start, end in _candidates(tokens, value):
        if start == end == previous:
            continue
        previous = end
        yield start, end


def _candidates(tokens: list[Token], value: str) -> Iterator[tuple[int, int]]:
    pieces = [_compiled(piece) for piece in _pieces(tokens)]
    if len(pieces) == 1 or ("\n", False) in tokens:
        whole = pieces[0] if len(pieces) == 1 else _regex(tokens, greedy=True)
        for found in whole.finditer(value):
            yield found.span()
        return
    begin = 0
    for line in value.split("\n"):  # a star takes in all that its line can give: one match a line, at most
        tail = _from_the_right(pieces[1:], line, 0)
        head = pieces[0].search(line, 0, tail[0]) if tail is not None else None
        if tail is not None and head is not None:
            yield begin + head.start(), begin + tail[1]
        begin += len(line) + 1


def _with_newlines(tokens: list[Token], value: str, longest: bool) -> int:
    """The rare pattern that names a newline itself: left to the regular expression engine."""
    found = _regex(tokens, greedy=longest).match(value)
    return found.end() if found is not None else 0


def _regex(tokens: list[Token], *, greedy: bool) -> re.Pattern[str]:
    star = "[^\n]*" if greedy else "[^\n]*?"
    pieces = ["".join("[^\n]" if wild else re.escape(letter) for letter, wild in piece) for piece in _pieces(tokens)]
    return re.compile(star.join(pieces))
