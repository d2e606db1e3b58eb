"""What the commands say on stdout, a line at a time and safe to show, whoever has written the words in it."""

from __future__ import annotations

from typing import Final

from orchestrator.view.untrusted import clean_line

_LIMIT: Final = 65535
"""Characters of a line: the longest that a Dockerfile has."""


def say(text: str = "") -> None:
    """Print ``text`` as one line without effects on a terminal."""
    print(clean_line(text, _LIMIT))
