"""Text from steps, images, registries and Dockerfiles, made safe to show.

Such text can carry terminal escapes (which may retitle a window, write to the clipboard or hide a command), carriage
returns and backspaces (progress bars), and Unicode that reorders what is read (CVE-2021-42574). What leaves this module
is one line of printable characters, each of a width that a terminal and a program agree on.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Final

LIMIT: Final = 1000
"""Characters kept of a line where it is only shown in part."""

_BIDI: Final = frozenset((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
_KNOWN_LIMIT: Final = 4096
"""Entries of the translation table: real logs use few characters, hostile ones would use all."""


def clean_line(text: str, limit: int = LIMIT) -> str:
    """``text`` as one printable line of at most ``limit`` characters, the last of which is ``…`` when it was cut.

    Escape sequences go; of a line that overwrote itself by carriage returns the last part that is not empty stays; a
    backspace takes the character before it; newlines become spaces; bidirectional controls become ``<U+202E>``.
    """
    if text.isascii() and text.isprintable():
        return text if len(text) <= limit else text[: limit - 1] + "…"
    # The part that counts is at the end of a self-overwriting line, so a hostile length is cut only after this.
    if "\r" in text:
        text = _last_part(text)
    text = text[: 8 * limit]
    text = _escapes().sub("", text)
    if "\b" in text:
        text = _backspaced(text)
    text = text.expandtabs(8).translate(_SAFE)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def clean_lines(text: str, limit: int = LIMIT) -> tuple[str, ...]:
    """Each line of ``text``, cleaned; an empty text has no lines."""
    return tuple(clean_line(line, limit) for line in text.split("\n")) if text else ()


def _last_part(text: str) -> str:
    """The last of the parts between carriage returns that shows anything."""
    for part in reversed(text.split("\r")):
        if part and _escapes().sub("", part[:LIMIT]).strip():
            return part
    return ""


def _backspaced(text: str) -> str:
    kept: list[str] = []
    for char in text:
        if char != "\b":
            kept.append(char)
        elif kept:
            kept.pop()
    return "".join(kept)


@functools.cache
def _escapes() -> re.Pattern[str]:
    """ECMA-48: control sequences, control strings (OSC, DCS, SOS, PM, APC) and the short escapes; 7- and 8-bit forms.

    Each alternative is a run of disjoint character classes, so matching is linear.
    """
    return re.compile(
        r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
        r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
        r"|\x1b[ -/]*[0-~]?"
    )


class _Safe(dict[int, str]):
    """``str.translate`` table that decides on a character when it first meets it."""

    def __missing__(self, code: int) -> str:
        safe = _safe(code)
        if len(self) < _KNOWN_LIMIT:
            self[code] = safe
        return safe


def _safe(code: int) -> str:
    char = chr(code)
    if code in _BIDI:
        return f"<U+{code:04X}>"
    category = unicodedata.category(char)
    if category in ("Zs", "Zl", "Zp") or char == "\n":
        return " "
    # Joiners and variation selectors change how wide their neighbours are, and terminals disagree about it.
    if category in ("Cc", "Cf") or 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF:
        return ""
    return char if char.isprintable() else "\ufffd"


_SAFE: Final = _Safe()
