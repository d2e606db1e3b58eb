"""The pages of the documentation lead somewhere, name files that there are, and speak no private language."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]
WORDS = 20
"""How many words of our own the glossary may have."""


def anchors(text: str) -> set[str]:
    """The names of the headings of ``text``, as Markdown hosts make them."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.M)
    }


def test_links_between_the_pages_lead_somewhere() -> None:
    lost = []
    for page in PAGES:
        for target in re.findall(r"\]\(((?!https?:)[^)\s]+)\)", page.read_text()):
            name, _, anchor = target.partition("#")
            there = (page.parent / name) if name else page
            if not there.exists() or (anchor and anchor not in anchors(there.read_text())):
                lost.append(f"{page.name}: {target}")
    assert lost == []


def test_the_readme_names_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [each.name for each in (ROOT / "docs").glob("*.md") if f"(docs/{each.name})" not in readme] == []


def test_modules_that_are_named_exist() -> None:
    """Written from the repository's root, from a package's, or as the name alone."""
    there = {
        str(path.relative_to(ROOT)) for room in ("ci", "executor", "orchestrator", "platforms", "tests")
        for path in (ROOT / room).rglob("*.py")
    }  # fmt: skip
    lost = [
        f"{page.name}: {name}"
        for page in PAGES
        if page.name != "CHANGELOG.md"
        for name in re.findall(r"`([\w/]+\.py)`", page.read_text())
        if "_NN_" not in name and not any(f"/{each}".endswith(f"/{name}") for each in there)
    ]
    assert lost == []


def test_the_glossary_is_short_and_its_words_are_in_use() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    words = re.findall(r"^\| (\w+) \|", text[text.index("## Words") : text.index("## Three packages")], re.M)[1:]
    assert 5 < len(words) <= WORDS
    code = "".join(
        path.read_text()
        for room in ("executor", "orchestrator", "platforms", "tests")
        for path in (ROOT / room).rglob("*.py")
    ).lower()
    assert [word for word in words if word not in code] == []
