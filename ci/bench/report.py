"""What a run leaves: the table, the plot, the figures, the phases; and the same in docs/performance.md."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import plot
import table
from table import Row

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"


def machine(versions: Mapping[str, str], rounds: int) -> str:
    """A sentence about where and with what was measured."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    kernel = platform.release().split("-")[0]
    where = f"Linux {kernel}, {platform.machine()}, {os.cpu_count()} processors, {memory} GB"
    said = "; ".join(f"{name}: {version}" for name, version in versions.items())
    return f"{time.strftime('%Y-%m-%d')}, {where}, medians of {rounds} rounds. {said}."


def write(out: Path, rows: Sequence[Row], names: Sequence[str], phases: str, about: str) -> None:
    """Write everything to the directory ``out``."""
    (out / "table.md").write_text(f"{table.markdown(rows, names)}\n")
    (out / "plot.svg").write_text(plot.svg(rows, names))
    (out / "figures.json").write_text(json.dumps(table.figures(rows), indent=1) + "\n")
    (out / "phases.md").write_text(f"{phases}\n")
    (out / "machine.md").write_text(f"{about}\n")


def publish(out: Path) -> None:
    """Put what is in ``out`` into the page, each part between its marks, and the plot beside it."""
    text = PAGE.read_text()
    for part in ("machine", "table", "phases"):
        begin, end = f"<!-- {part} -->\n", f"<!-- end of {part} -->"
        content = (out / f"{part}.md").read_text()
        text, found = re.subn(f"(?s){begin}.*?{end}", lambda _, new=f"{begin}{content}{end}": new, text)
        assert found == 1, f"{PAGE} has no place for the {part}"
    PAGE.write_text(text)
    PAGE.with_suffix(".svg").write_text((out / "plot.svg").read_text())
