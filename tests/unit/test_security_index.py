"""The index of vulnerabilities names every file of ``tests/security`` and no other, each in the row of its number."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "security"
ROW = re.compile(r"\| (\d+) \| (.+?) \| (.+?) \| (`.+?`(?:, `.+?`)*) \|")
REMEDY = "tests/security/README.md has one row a number: | number | CVE or review | mechanism | `file` |"


def rows() -> list[tuple[int, str, str, list[str]]]:
    """Number, source, mechanism and files of each row, in the order of the table."""
    table = [line for line in (FOLDER / "README.md").read_text().splitlines() if re.match(r"\| *\d", line)]
    found = [ROW.fullmatch(line) for line in table]
    assert None not in found, f"{table[found.index(None)]}\n{REMEDY}"
    return [(int(row[1]), row[2], row[3], re.findall(r"`(.+?)`", row[4])) for row in found if row is not None]


def test_every_file_has_its_row_and_every_row_its_files() -> None:
    listed = sorted((number, name) for number, _, _, names in rows() for name in names)
    there = sorted(
        (int(path.name.removeprefix("test_security_").partition("_")[0]), path.name)
        for path in FOLDER.glob("test_security_*.py")
    )
    assert listed == there, REMEDY


def test_numbers_are_in_order_and_stand_for_one_vulnerability_each() -> None:
    numbers = [number for number, *_ in rows()]
    assert numbers == sorted(set(numbers)), REMEDY


def test_a_file_says_which_attack_it_is() -> None:
    for number, _, _, names in rows():
        for name in names:
            assert re.match(rf'"""Attack {number}\b', (FOLDER / name).read_text()), f"{name}: Attack {number}"


def test_a_row_says_where_the_vulnerability_is_known_from() -> None:
    known = re.compile(r"CVE-\d{4}-\d+|GHSA-|#\d+|gh-\d+|BuildKit's|review")
    assert [number for number, source, *_ in rows() if not known.search(source)] == []
