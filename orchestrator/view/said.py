"""What the commands say on stdout, lines and documents, safe to show whoever has written the words in them."""

from __future__ import annotations

import os
from typing import Final

from orchestrator.view.ci import harmless, in_actions
from orchestrator.view.untrusted import clean_line

_LIMIT: Final = 65535
"""Characters of a line: the longest that a Dockerfile has."""


def say(text: str = "") -> None:
    """Print ``text`` as one line without effects on a terminal or a CI's agent."""
    line = clean_line(text, _LIMIT)
    print(harmless(line) if in_actions(os.environ) else line)


def say_json(document: object) -> None:
    """Print ``document`` as JSON."""
    import json

    print(no_order(json.dumps(document, indent=2)))


def no_order(text: str) -> str:
    """The JSON ``text`` as equal JSON with no order to a CI's agent (see ``untrusted``): ``##`` is only in strings."""
    return text.replace("##", "#\\u0023")
