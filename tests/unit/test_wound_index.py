"""The index of wounds names every file of ``tests/wounds`` and no other, each in the row of its number."""

from __future__ import annotations

import re
from pathlib import Path

WOUNDS = Path(__file__).resolve().parents[1] / "wounds"
ROW = re.compile(r"\| (\d+) \| (.+?) \| (.+?) \| (`.+?`(?:, `.+?`)*) \|")
REMEDY = "tests/wounds/README.md has one row a number: | number | CVE or review | mechanism | `file` |"


def rows() -> list[tuple[int, str, str, list[str]]]:
    """Number, source, mechanism and files of each row, in the order of the table."""
    table = [line for line in (WOUNDS / "README.md").read_text().splitlines() if re.match(r"\| *\d", line)]
    found = [ROW.fullmatch(line) for line in table]
    assert None not in found, f"{table[found.index(None)]}\n{REMEDY}"
    return [(int(row[1]), row[2], row[3], re.findall(r"`(.+?)`", row[4])) for row in found if row is not None]


def test_every_file_has_its_row_and_every_row_its_files() -> None:
    listed = sorted((number, name) for number, _, _, names in rows() for name in names)
    there = sorted(
        (int(path.name.removeprefix("test_wound_").partition("_")[0]), path.name)
        for path in WOUNDS.glob("test_wound_*.py")
    )
    assert listed == there, REMEDY


def test_numbers_are_in_order_and_stand_for_one_wound_each() -> None:
    numbers = [number for number, *_ in rows()]
    assert numbers == sorted(set(numbers)), REMEDY


def test_a_file_says_which_wound_it_is() -> None:
    for number, _, _, names in rows():
        for name in names:
            assert re.match(rf'"""Wound {number}\b', (WOUNDS / name).read_text()), f"{name}: Wound {number}"


def test_a_row_says_where_the_wound_is_known_from() -> None:
    known = re.compile(r"CVE-\d{4}-\d+|GHSA-|#\d+|gh-\d+|BuildKit's|review")
    assert [number for number, source, *_ in rows() if not known.search(source)] == []
