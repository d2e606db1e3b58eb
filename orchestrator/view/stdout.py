"""Prints lines and JSON to stdout, warnings to stderr; untrusted text is made safe for terminals and CI systems."""

from __future__ import annotations

import os
import sys
from typing import Final

from orchestrator.view.ci import in_actions, neutralise
from orchestrator.view.untrusted import clean_line

_LIMIT: Final = 65535
"""Maximum length of a line in characters: the longest of a Dockerfile."""


def print_line(text: str = "") -> None:
    """Print ``text`` as one line without effects on a terminal or a CI agent."""
    line = clean_line(text, _LIMIT)
    print(neutralise(line) if in_actions(os.environ) else line)


def print_warning(text: str) -> None:
    """Print ``text`` to stderr as one line, as a warning, likewise."""
    line = clean_line(f"kanifold: warning: {text}", _LIMIT)
    print(neutralise(line) if in_actions(os.environ) else line, file=sys.stderr)


def print_json(document: object) -> None:
    """Print ``document`` as JSON."""
    import json

    print(escape_commands(json.dumps(document, indent=2)))


def escape_commands(text: str) -> str:
    """Return JSON that is equal to ``text`` and has no command of a CI agent (``untrusted``): ``##`` is only in
    strings."""
    return text.replace("##", "#\\u0023")


def print_document(data: bytes) -> None:
    """Print the JSON document ``data`` byte by byte, so that it keeps its digest.

    On a terminal, characters that could have an effect there are escaped, which makes it equal JSON of another digest.
    """
    if sys.stdout.isatty():
        text = data.decode(errors="replace")
        print("".join(char if char == "\n" or char.isprintable() else _escaped(char) for char in text))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _escaped(char: str) -> str:
    """Return ``char`` as JSON escapes it, beyond U+FFFF by its two surrogates."""
    import json

    return f"\\u{ord(char):04x}" if char.isascii() else json.dumps(char)[1:-1]
