"""One logical line, taken apart: keyword, flags, arguments, words, JSON arrays.

Nothing here knows what an instruction means; the functions are the few ways in which the Dockerfile reference lets an
instruction's text be divided. All of them are linear in the length of the text.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from platforms import decoding

SPACE: Final = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""White space as BuildKit (Go's unicode.IsSpace) has it; Python's own notion also counts four control characters."""

_BLANKS: Final = "\t\n\v\f\r "
"""What divides flags: theirs is the one place where other white space is a letter."""
_GAP: Final = re.compile("[\t\v\f\r ]+")
_PLAIN_FLAG: Final = re.compile(r"--[A-Za-z0-9=,./:_@+*%~-]+(?=[ \t]|$)")


_SHOWN: Final = 200


class JSONStringsError(ValueError):
    """A JSON array that holds something other than strings: an error, where other broken JSON is merely shell form."""


def quoted(text: str) -> str:
    """``text`` in double quotes for a message, shortened if it is long."""
    text = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t") + '"'


def strip(text: str) -> str:
    """``text`` without the white space around it."""
    return text.strip(SPACE)


def fields(text: str, limit: int = 0) -> list[str]:
    """``text`` divided at runs of blanks (quotes mean nothing), at most ``limit`` times if that is not 0."""
    return _GAP.split(text, maxsplit=limit)


def command(line: str, escape: str) -> tuple[str, tuple[str, ...], str]:
    """Keyword, flags (``--name=value``, quotes removed) and the rest of a logical line."""
    parts = fields(strip(line), 1)
    if len(parts) == 1:
        return parts[0], (), ""
    flags, rest = _flags(parts[1], escape)
    return parts[0], flags, strip(rest)


def _flags(text: str, escape: str) -> tuple[tuple[str, ...], str]:
    """The leading words that start with ``--``, and what follows them. A bare ``--`` ends the flags and is dropped."""
    found: list[str] = []
    position, size = 0, len(text)
    while True:
        while position < size and text[position] in _BLANKS:
            position += 1
        if not text.startswith("--", position):
            return tuple(found), text[position:]
        plain = _PLAIN_FLAG.match(text, position)
        if plain is not None:
            word, quoted, position = plain.group(), False, plain.end()
        else:
            word, quoted, position = _flag(text, position, escape)
        if word == "--":
            return tuple(found), text[position:]
        if word or quoted:
            found.append(word)


def _flag(text: str, position: int, escape: str) -> tuple[str, bool, int]:
    """One flag from ``position`` on: its text without quotes and escapes, whether it had quotes, and where it ends."""
    letters: list[str] = []
    quote, quoted, size = "", False, len(text)
    while position < size:
        letter = text[position]
        if quote and letter == quote:
            quote = ""
        elif not quote and letter in _BLANKS:
            break
        elif not quote and letter in "'\"":
            quote, quoted = letter, True
        elif letter == escape:
            position += 1
            letters.append(text[position : position + 1])
        else:
            letters.append(letter)
        position += 1
    return "".join(letters), quoted, min(position, size)


def words(text: str, escape: str) -> list[str]:
    """``text`` divided at white space outside of quotes; quotes and escapes stay, for word expansion to take away."""
    found: list[str] = []
    letters: list[str] = []
    quote, quoted = "", False
    position, size = 0, len(text)
    while position < size:
        letter = text[position]
        position += 1
        if not quote and letter in SPACE:
            if letters or quoted:
                found.append("".join(letters))
            letters, quoted = [], False
            continue
        if letter == escape and quote != "'":
            if position == size:  # an escape with nothing to escape
                break
            letters.append(letter)
            letter = text[position]
            position += 1
        elif quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote, quoted = letter, True
        letters.append(letter)
    if letters or quoted:
        found.append("".join(letters))
    return found


def json_array(text: str) -> tuple[str, ...] | None:
    """The strings of a JSON array, or None when ``text`` is not one (the instruction is in shell form then).

    Raises JSONStringsError for an array that is valid JSON but holds other things.
    """
    text = text.lstrip(SPACE)
    if not text.startswith("["):
        return None
    try:
        items = decoding.from_loose_json(text)
    except msgspec.DecodeError:
        return None
    if not all(isinstance(item, str) for item in items):
        raise JSONStringsError("when using JSON array syntax, arrays must be comprised of strings only")
    if any("\0" in item for item in items):
        raise JSONStringsError(
            "a word in JSON array syntax has a NUL byte, which no file, variable or argument can hold"
        )
    return tuple(_scalar(item) for item in items)


def _scalar(text: str) -> str:
    """``text`` with lone surrogates (``\\ud800`` in JSON) replaced, as they have no UTF-8."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
