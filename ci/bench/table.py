"""Figures as rows, and rows as a table: medians, minima, the ratio to the best of the others, peak memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
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
    processor: tuple[float, ...] = ()
    """Seconds of processors, in all rounds."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        return min(self.seconds)


@dataclass(frozen=True)
class Row:
    """One workload, cold or again, with every builder that managed it, and what kanifold is compared with."""

    name: str
    times: Mapping[str, Times]
    rival: str = ""
    """The best of the others, or another workload; "" when there is nothing to compare."""
    rival_seconds: float = 0.0

    @property
    def ratio(self) -> float | None:
        """Our median by the rival's."""
        return self.times[OURS].median / self.rival_seconds if self.rival and OURS in self.times else None


def rows(taken: Mapping[str, Mapping[str, Sequence[Measured]]], workloads: Sequence[Workload]) -> tuple[Row, ...]:
    """The rows in the order of ``workloads``, from what was measured by row and builder."""
    times = {
        name: {
            builder: Times(
                tuple(each.seconds for each in measured),
                max(each.memory for each in measured),
                tuple(each.processor for each in measured),
            )
            for builder, measured in found.items()
        }
        for name, found in taken.items()
    }
    order = [(name, each) for each in workloads for name in (each.name, f"{each.name}, again", f"{each.name}, changed")]
    return tuple(
        Row(name, times[name], *_rival(times, name, workload.beside)) for name, workload in order if name in times
    )


def _rival(times: Mapping[str, Mapping[str, Times]], name: str, beside: str) -> tuple[str, float]:
    if ours := times.get(beside, {}).get(OURS):
        return beside, ours.median
    others = [(each.median, other) for other, each in times[name].items() if other != OURS]
    return (min(others)[1], min(others)[0]) if others else ("", 0.0)


def seconds(value: float) -> str:
    """``value`` with three significant digits or so."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def markdown(rows: Sequence[Row], builders: Sequence[str]) -> str:
    """A table in Markdown that is readable as it is: median (least), the ratio and to whom, the memory in MB."""
    head = ["s: median (least)", *builders, "ratio", *(f"{each} MB" for each in builders)]
    body = [
        [
            row.name,
            *(f"{seconds(t.median)} ({seconds(t.least)})" if (t := row.times.get(each)) else "-" for each in builders),
            "-" if row.ratio is None else f"{row.ratio:.2f} {row.rival}",
            *(str(t.memory >> 20) if (t := row.times.get(each)) else "-" for each in builders),
        ]
        for row in rows
    ]
    return _aligned(head, body)


def ratios(rows: Sequence[Row], builders: Sequence[str]) -> str:
    """A table in Markdown of the medians of wall time, with their ratios to that of the first builder."""
    return _relative("s: median (ratio)", rows, builders, _wall)


def processors(rows: Sequence[Row], builders: Sequence[str]) -> str:
    """The same of the time of processors, which other work on the machine changes less."""
    return _relative("processor s: median (ratio)", rows, builders, _processor)


def _relative(title: str, rows: Sequence[Row], builders: Sequence[str], choose: Callable[[Times], float]) -> str:
    body = [[row.name, *(_cell(row, each, builders[0], choose) for each in builders)] for row in rows]
    return _aligned([title, *builders], body)


def _wall(times: Times) -> float:
    return times.median


def _processor(times: Times) -> float:
    return statistics.median(times.processor)


def _cell(row: Row, builder: str, first: str, choose: Callable[[Times], float]) -> str:
    if not (times := row.times.get(builder)):
        return "-"
    base = row.times.get(first)
    ratio = f" ({choose(times) / choose(base):.2f})" if base and builder != first else ""
    return f"{seconds(choose(times))}{ratio}"


def _aligned(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text, and the others figures."""
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
            name: {
                "seconds": [round(each, 4) for each in times.seconds],
                "memory": times.memory,
                "processor": [round(each, 4) for each in times.processor],
            }
            for name, times in row.times.items()
        }
        for row in rows
    }
