"""What a run leaves: the table, the plot, the figures, the phases; and the same in docs/performance.md."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import plot
import table
from measuring import FailedError
from table import Row

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"


def machine(versions: Mapping[str, str], rounds: int) -> str:
    """A sentence about where and with what was measured."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    kernel = platform.release().split("-")[0]
    where = f"Linux {kernel}, {platform.machine()}, {os.cpu_count()} processors, {memory} GB"
    said = "; ".join(f"{name}: {version}" for name, version in versions.items())
    return f"{time.strftime('%Y-%m-%d')}, {where}, medians of {rounds} rounds. {said}."


def write(out: Path, rows: Sequence[Row], names: Sequence[str], phases: str, about: str) -> tuple[str, ...]:
    """Write everything to the directory ``out``; return the names of the files."""
    written = {
        "table.md": f"{table.markdown(rows, names)}\n",
        "plot.svg": plot.svg(rows, names),
        "figures.json": json.dumps(table.figures(rows), indent=1) + "\n",
        "phases.md": f"{phases}\n",
        "machine.md": f"{about}\n",
    }
    for name, content in written.items():
        (out / name).write_text(content)
    return tuple(written)


def write_part(out: Path, part: str, rows: Sequence[Row], shown: str, phases: str, about: str) -> tuple[str, ...]:
    """Write a table of its own, ``shown``, for the part of the page that is called ``part``, and what belongs to it."""
    written = {
        f"{part}.md": f"{about}\n\n{shown}\n",
        f"{part}-figures.json": json.dumps(table.figures(rows), indent=1) + "\n",
        f"{part}-phases.md": f"{phases}\n",
    }
    for name, content in written.items():
        (out / name).write_text(content)
    return tuple(written)


def check_page(part: str) -> None:
    """Raise ``FailedError`` unless the page has one place for each of what ``publish`` puts there."""
    text = PAGE.read_text()
    for each, pattern in _places(part):
        if len(re.findall(pattern, text)) != 1:
            raise FailedError(f"{PAGE} has no place for the {each}")


def _places(part: str) -> Iterator[tuple[str, str]]:
    """Yield what ``publish`` puts into the page for ``part``, and patterns of the places."""
    for each in (part,) if part else ("machine", "table", "phases"):
        begin, end = map(re.escape, _marks(each))
        yield each, f"(?s){begin}.*?{end}"


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name} -->\n", f"<!-- end of {name} -->"


def publish(out: Path, part: str) -> None:
    """Put what is in ``out`` into the page, each part between its marks: ``part``, or for "" the page's own and the
    plot beside it.
    """
    text = PAGE.read_text()
    for each, pattern in _places(part):
        begin, end = _marks(each)
        content = (out / f"{each}.md").read_text()
        text = re.sub(pattern, lambda _, new=f"{begin}{content}{end}": new, text)
    PAGE.write_text(text)
    if not part:
        PAGE.with_suffix(".svg").write_text((out / "plot.svg").read_text())
