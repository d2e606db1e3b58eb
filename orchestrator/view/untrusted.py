"""Text from steps, images, registries and Dockerfiles, made safe to show.

Such text can carry terminal escapes (which may retitle a window, write to the clipboard or hide a command), carriage
returns and backspaces (progress bars), and Unicode that reorders what is read (CVE-2021-42574). What leaves this module
is one line of printable characters. A step's output is shown as a terminal would have shown it, less the effects;
anything else is shown with what was hidden in it, so that no Dockerfile can hide half of a command.

The agents of CI systems obey orders wherever in a line they stand: ``##[command]`` (actions/runner, ActionCommand.cs),
``##vso[task.…]``, which sets variables of later tasks and uploads files (microsoft/azure-pipelines-agent, Command.cs),
``##teamcity[…]`` (TeamCity, "Service messages"). Whether one of them reads along cannot be told, so none of
this ever leaves.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable
from typing import Final

LIMIT: Final = 1000
"""Characters kept of a line where it is only shown in part."""

_BIDI: Final = frozenset((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
_ORDER: Final = re.compile(r"##(?=\w*\[)")
_KNOWN_LIMIT: Final = 4096
"""Entries of a translation table: real text uses few characters, hostile text would use all."""


def clean_line(text: str, limit: int = LIMIT) -> str:
    r"""``text`` as one printable line of at most ``limit`` characters, the last of which is ``…`` when it was cut.

    White space becomes spaces; a control character becomes ``\x1b``, an invisible one ``<U+202E>``.
    """
    if not (text.isascii() and text.isprintable()):
        text = text[: limit + 1].translate(_VISIBLE)
    return _cut(_no_order(text), limit)


def clean_lines(text: str, limit: int = LIMIT) -> tuple[str, ...]:
    """Each line of ``text``, cleaned; an empty text has no lines."""
    return tuple(clean_line(line, limit) for line in text.splitlines())


def clean_name(text: str, limit: int = LIMIT) -> str:
    """An instruction, which may go over several lines, as one: continuations and runs of white space are one space."""
    if "\n" in text:
        text = text.replace("\\\n", " ").replace("`\n", " ").replace("\\\r\n", " ")
    return clean_line(" ".join(text.split()), limit)


def clean_log(text: str, limit: int = LIMIT) -> str:
    """A line of a step's output as ``clean_line`` would have it, but as a terminal shows it rather than as it is.

    Escape sequences go; of a line that overwrote itself by carriage returns the last part that shows anything stays; a
    backspace takes the character before it; other controls go, except those that reorder text.
    """
    if not (text.isascii() and text.isprintable()):
        # The part that counts is at the end of a line that overwrote itself, so it is cut only after this.
        text = _last_part(text)[: 8 * limit]
        text = _escapes().sub("", text)
        if "\b" in text:
            text = _backspaced(text)
        text = text.expandtabs(8).translate(_SILENT)
    return _cut(_no_order(text), limit)


def clean_logs(text: str, limit: int = LIMIT) -> list[str]:
    """Each line of ``text``, as ``clean_log`` has it: cheap for many lines of printable ASCII."""
    lines = text.split("\n")
    plain = text.isascii() and text.replace("\n", "").isprintable() and "##" not in text
    if plain and len(max(lines, key=len)) <= limit:
        return lines
    return [clean_log(line, limit) for line in lines]


def _no_order(text: str) -> str:
    """``text`` with nothing in it that a CI's agent takes for an order."""
    return _ORDER.sub("# #", text) if "##" in text else text


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _last_part(text: str) -> str:
    """The last of the parts between carriage returns that shows anything."""
    if "\r" not in text:
        return text
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


class _Table(dict[int, str]):
    """A ``str.translate`` table that decides on a character when it first meets it."""

    def __init__(self, decide: Callable[[int], str]) -> None:
        super().__init__()
        self._decide = decide

    def __missing__(self, code: int) -> str:
        shown = self._decide(code)
        if len(self) < _KNOWN_LIMIT:
            self[code] = shown
        return shown


def _silent(code: int) -> str:
    # Joiners and variation selectors change how wide their neighbours are, and terminals disagree about it.
    if _invisible(code) and code not in _BIDI:
        return ""
    return _visible(code)


def _visible(code: int) -> str:
    char = chr(code)
    if char.isspace():
        return " "
    if code < 0xA0 and not char.isprintable():
        return f"\\x{code:02x}"
    if _invisible(code):
        return f"<U+{code:04X}>"
    return char if char.isprintable() else "\ufffd"


def _invisible(code: int) -> bool:
    selector = 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF
    return selector or unicodedata.category(chr(code)) in ("Cc", "Cf")


_VISIBLE: Final = _Table(_visible)
_SILENT: Final = _Table(_silent)
