"""What the documentation tells users to copy."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME, REGISTRY = "registry.example.com/app:1", "registry.example.com"
"""The image in all examples, and its registry."""


def files(page: str, heading: str, image: str) -> list[tuple[str, str]]:
    """Return the paths and texts of the files below ``heading`` in ``page``, with the name ``image`` in place of the
    example's. A file is a block of code whose first line is a comment with its path."""
    text = (ROOT / "docs" / page).read_text()
    section = re.split(r"^##+ ", text.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.M)[0]
    found = []
    for block in re.findall(r"^```\w+\n(.*?)^```$", section, re.M | re.S):
        first, _, rest = block.partition("\n")
        path = re.fullmatch(r"(?:#|//) ([\w./-]+)", first)
        assert path, f"{page}: a block of {heading} does not say which file it is: {first}"
        found.append((path[1], rest.replace(NAME, image).replace(REGISTRY, image.partition("/")[0])))
    return found
