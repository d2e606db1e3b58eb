"""Splitting a logical line into keyword, flags, arguments, words and JSON arrays.

These functions know the lexical rules of the Dockerfile reference, not the instructions. All are linear in the length
of the text.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from platforms import decoding

SPACE: Final = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""White space as in BuildKit (Go's unicode.IsSpace). Python's str.isspace also counts four control characters."""

_BLANKS: Final = "\t\n\v\f\r "
"""What separates flags. Other white space is part of a flag."""
_GAP: Final = re.compile("[\t\v\f\r ]+")
_PLAIN_FLAG: Final = re.compile(r"--[A-Za-z0-9=,./:_@+*%~-]+(?=[ \t]|$)")


_SHOWN: Final = 200


class JSONStringsError(ValueError):
    """A JSON array with an item that is not a string: an error, where other invalid JSON is shell form."""


def quoted(text: str) -> str:
    """Return ``text`` in double quotes for a message, shortened if it is long."""
    text = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t") + '"'


def strip(text: str) -> str:
    """Return ``text`` without surrounding white space."""
    return text.strip(SPACE)


def fields(text: str, limit: int = 0) -> list[str]:
    """Split ``text`` at runs of blanks, ignoring quotes; at most ``limit`` times if that is not 0."""
    return _GAP.split(text, maxsplit=limit)


def command(line: str, escape: str) -> tuple[str, tuple[str, ...], str]:
    """Return the keyword, the flags (``--name=value``, quotes removed) and the rest of a logical line."""
    parts = fields(strip(line), 1)
    if len(parts) == 1:
        return parts[0], (), ""
    flags, rest = _flags(parts[1], escape)
    return parts[0], flags, strip(rest)


def _flags(text: str, escape: str) -> tuple[tuple[str, ...], str]:
    """Return the leading words that start with ``--``, and the rest. A bare ``--`` ends the flags and is dropped."""
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
    """Return the flag at ``position`` without quotes and escapes, whether it had quotes, and the index after it."""
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
    """Split ``text`` at white space outside of quotes; quotes and escapes are left to word expansion."""
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
            if position == size:  # an escape at the end of the text
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
    """Return the strings of a JSON array; None when ``text`` is not one (the instruction is in shell form then).

    Raises JSONStringsError for a JSON array with other items.
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
    """Return ``text`` with lone surrogates (``\\ud800`` in JSON) replaced, as they have no UTF-8 encoding."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
