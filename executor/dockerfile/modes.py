"""File modes of ``--chmod``: octal, or symbolic as in chmod(1) and BuildKit, with umask 0.

Errors are ``ValueError``; the caller adds the location.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

Change = Callable[[int, bool], int]
"""A function from a mode (permission and set-id bits) and whether it is a directory's, to the new mode."""

_WHO: Final = {"u": 0o4700, "g": 0o2070, "o": 0o1007}
# Compiled when used, which few builds do:
_CLAUSE: Final = r"([ugoa]*)((?:[-+=](?:[rwxXst]*|[ugo]))+)"
_ACTION: Final = r"([-+=])([rwxXst]+|[ugo])?"


def octal(text: str) -> int | None:
    """Return the octal mode in ``text``; None when it is not a number. Raises ``ValueError`` beyond 07777."""
    if not re.fullmatch(r"[0-9]+", text):
        return None
    if not re.fullmatch(r"[0-7]+", text) or int(text, 8) > 0o7777:
        raise ValueError(f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777")
    return int(text, 8)


def parse(text: str) -> Change:
    """Return the change that ``text`` describes. Raises ``ValueError`` if it is neither octal nor symbolic."""
    number = octal(text)
    if number is not None:
        return lambda _mode, _directory: number
    clauses = text.split(",")
    parsed: list[tuple[int, list[tuple[str, str]]]] = []
    for clause in clauses:
        match = re.fullmatch(_CLAUSE, clause)
        if match is None:
            raise ValueError(f"invalid chmod parameter: '{text}': '{clause}' is not a mode")
        who, actions = match.groups()
        letters = "ugo" if not who or "a" in who else who
        mask = 0
        for letter in letters:
            mask |= _WHO[letter]
        parsed.append((mask, re.findall(_ACTION, actions)))

    def change(mode: int, directory: bool) -> int:
        for mask, actions in parsed:
            for operator, permissions in actions:
                bits = _bits(permissions, mode, directory) & mask
                if operator == "+":
                    mode |= bits
                elif operator == "-":
                    mode &= ~bits
                else:
                    keep = 0o6000 if directory else 0
                    mode = (mode & ~(mask & ~keep)) | bits
        return mode

    return change


def _bits(permissions: str, mode: int, directory: bool) -> int:
    if permissions in ("u", "g", "o"):
        shift = {"u": 6, "g": 3, "o": 0}[permissions]
        three = (mode >> shift) & 7
        return three << 6 | three << 3 | three
    bits = 0
    for letter in permissions:
        if letter == "r":
            bits |= 0o444
        elif letter == "w":
            bits |= 0o222
        elif letter == "x" or (letter == "X" and (directory or mode & 0o111)):
            bits |= 0o111
        elif letter == "s":
            bits |= 0o6000
        elif letter == "t":
            bits |= 0o1000
    return bits
