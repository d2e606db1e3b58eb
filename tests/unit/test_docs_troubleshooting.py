"""docs/troubleshooting.md quotes messages that the code has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def texts() -> list[str]:
    """Every text in the code; one with placeholders has ``…`` for them."""
    found = []
    for room in ("platforms", "executor", "orchestrator"):
        for module in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(module.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = [each.value if isinstance(each, ast.Constant) else "…" for each in node.values]
                    found.append("".join(map(str, parts)))
    return found


def messages() -> list[str]:
    """The lines of the blocks that quote kanifold."""
    blocks = re.findall(r"^```text\n(.*?)^```", (ROOT / "docs" / "troubleshooting.md").read_text(), re.M | re.S)
    return [line for block in blocks for line in block.splitlines()]


def test_every_message_that_is_quoted_is_in_the_code() -> None:
    """As a part of a text, or as what a text becomes once its placeholders are filled in."""
    known = texts()
    whole = "\n".join(known)
    patterns = [re.compile(re.escape(text).replace("…", ".+")) for text in known if "…" in text and len(text) >= 10]
    assert len(messages()) > 30
    lost = [each for each in messages() if each.strip("… ") not in whole]
    assert [each for each in lost if not any(pattern.fullmatch(each) for pattern in patterns)] == []
