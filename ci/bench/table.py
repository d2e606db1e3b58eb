"""Figures as rows, and rows as a table: medians, minima, the ratio to the best of the others, peak memory."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from measuring import Measured
from workloads import Workload

OURS = "kanifold"


@dataclass(frozen=True)
class Times:
    """What one builder took for one row, in all rounds."""

    seconds: tuple[float, ...]
    memory: int
    """Bytes: the greatest of all rounds."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        return min(self.seconds)


@dataclass(frozen=True)
class Row:
    """One workload, cold or again, with every builder that managed it."""

    name: str
    times: Mapping[str, Times]

    @property
    def ratio(self) -> float | None:
        """Our median by that of the best other; None when there is nothing to compare."""
        others = [each.median for name, each in self.times.items() if name != OURS]
        return self.times[OURS].median / min(others) if others and OURS in self.times else None


def rows(taken: Mapping[str, Mapping[str, Sequence[Measured]]], workloads: Sequence[Workload]) -> tuple[Row, ...]:
    """The rows in the order of ``workloads``, from what was measured by row and builder."""
    order = [name for each in workloads for name in (each.name, f"{each.name}, again")]
    return tuple(
        Row(
            name,
            {
                builder: Times(tuple(each.seconds for each in measured), max(each.memory for each in measured))
                for builder, measured in taken[name].items()
            },
        )
        for name in order
        if name in taken
    )


def seconds(value: float) -> str:
    """``value`` with three significant digits or so."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def markdown(rows: Sequence[Row], builders: Sequence[str]) -> str:
    """A table in Markdown that is readable as it is: median (least), then the ratio, then the memory in MB."""
    head = ["s: median (least)", *builders, "ratio", *(f"{each} MB" for each in builders)]
    body = [
        [
            row.name,
            *(f"{seconds(t.median)} ({seconds(t.least)})" if (t := row.times.get(each)) else "-" for each in builders),
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            *(str(t.memory >> 20) if (t := row.times.get(each)) else "-" for each in builders),
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    rule = ["-" * width if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    lines = (head, rule, *body)
    return "\n".join(
        "| "
        + " | ".join(
            text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )


def figures(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, object]]]:
    """Every round's seconds, for other programs."""
    return {
        row.name: {
            name: {"seconds": [round(each, 4) for each in times.seconds], "memory": times.memory}
            for name, times in row.times.items()
        }
        for row in rows
    }
