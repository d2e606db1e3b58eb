"""Making text of steps, images, registries and Dockerfiles safe to display.

Such text can contain terminal escapes (which may set the window title, write to the clipboard or hide a command),
carriage returns and backspaces (progress bars), and Unicode that reorders text (CVE-2021-42574). The functions return
single lines of printable characters. A step's output is shown as a terminal would show it, without the effects; other
text is shown with its hidden characters, so that a Dockerfile cannot hide a part of a command.

Agents of CI systems execute commands anywhere in a line: ``##[command]`` (actions/runner, ActionCommand.cs),
``##vso[task.…]``, which sets variables of later tasks and uploads files (microsoft/azure-pipelines-agent, Command.cs),
``##teamcity[…]`` (TeamCity, "Service messages"). Whether such an agent reads the output is unknown, so they are always
neutralised.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable
from typing import Final

LIMIT: Final = 1000
"""Maximum characters of a line where it may be cut."""

_BIDI: Final = frozenset((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
_ORDER: Final = re.compile(r"##(?=\w*\[)")
_KNOWN_LIMIT: Final = 4096
"""Maximum entries of a translation table: real text uses few characters, hostile text would use all."""


def clean_line(text: str, limit: int = LIMIT) -> str:
    r"""Return ``text`` as one printable line of at most ``limit`` characters, ending with ``…`` if it was cut.

    White space becomes spaces; a control character becomes ``\x1b``, an invisible one ``<U+202E>``.
    """
    if not (text.isascii() and text.isprintable()):
        text = text[: limit + 1].translate(_VISIBLE)
    return _cut(_neutralise_commands(text), limit)


def clean_lines(text: str, limit: int = LIMIT) -> tuple[str, ...]:
    """Return each line of ``text``, cleaned; an empty text has no lines."""
    return tuple(clean_line(line, limit) for line in text.splitlines())


def clean_name(text: str, limit: int = LIMIT) -> str:
    """Return an instruction of several lines as one line: continuations and runs of white space become a space."""
    if "\n" in text:
        text = text.replace("\\\n", " ").replace("`\n", " ").replace("\\\r\n", " ")
    return clean_line(" ".join(text.split()), limit)


def clean_log(text: str, limit: int = LIMIT) -> str:
    """Return a line of a step's output as a terminal shows it, cleaned as by ``clean_line``.

    Escape sequences are removed; of a line that overwrites itself by carriage returns the last visible part is kept; a
    backspace removes the character before it; other controls are removed, except those that reorder text.
    """
    if not (text.isascii() and text.isprintable()):
        # The visible part is at the end of a line that overwrites itself, so it is cut only after this.
        text = _last_part(text)[: 8 * limit]
        text = _escapes().sub("", text)
        if "\b" in text:
            text = _backspaced(text)
        text = text.expandtabs(8).translate(_SILENT)
    return _cut(_neutralise_commands(text), limit)


def clean_logs(text: str, limit: int = LIMIT) -> list[str]:
    """Return each line of ``text`` as ``clean_log`` does; fast for many lines of printable ASCII."""
    lines = text.split("\n")
    plain = text.isascii() and text.replace("\n", "").isprintable() and "##" not in text
    if plain and len(max(lines, key=len)) <= limit:
        return lines
    return [clean_log(line, limit) for line in lines]


def _neutralise_commands(text: str) -> str:
    """Return ``text`` without anything that a CI agent would execute."""
    return _ORDER.sub("# #", text) if "##" in text else text


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _last_part(text: str) -> str:
    """Return the last visible part between carriage returns."""
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
    """ECMA-48: control sequences, control strings (OSC, DCS, SOS, PM, APC) and short escapes; 7- and 8-bit forms.

    Each alternative is a run of disjoint character classes, so matching is linear.
    """
    return re.compile(
        r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
        r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
        r"|\x1b[ -/]*[0-~]?"
    )


class _Table(dict[int, str]):
    """A ``str.translate`` table whose entries are computed when first needed."""

    def __init__(self, decide: Callable[[int], str]) -> None:
        super().__init__()
        self._decide = decide

    def __missing__(self, code: int) -> str:
        shown = self._decide(code)
        if len(self) < _KNOWN_LIMIT:
            self[code] = shown
        return shown


def _silent(code: int) -> str:
    # Terminals disagree on how joiners and variation selectors change the width of their neighbours.
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
