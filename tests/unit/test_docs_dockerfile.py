"""docs/dockerfile.md says what the code does: each instruction, flag, mount option, rule and difference, no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import yaml

from executor.dockerfile import grammar, mount_options
from executor.dockerfile.instructions import KEYWORDS
from executor.dockerfile.rules import RULES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/dockerfile.md").read_text(encoding="utf-8")
CASES = ROOT / "tests/conformance/cases"


def section(title: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |^\1 |\Z)", PAGE, re.M | re.S)
    assert found is not None, f"no section {title}"
    return found.group(2)


def first_cells(text: str) -> list[str]:
    """What each row's first cell holds in code spans."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [span for row in rows for span in re.findall(r"`([^`]+)`", row.split("|")[1])]


def flags_in_code() -> dict[str, set[str]]:
    """The flags that the reader of each instruction knows, out of its calls of ``form.flags``."""
    tree = ast.parse(Path(grammar.__file__).read_text(encoding="utf-8"))
    found: dict[str, set[str]] = {}
    for function in tree.body:
        if isinstance(function, ast.FunctionDef):
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
            names = {
                f"--{keyword.arg.rstrip('_').replace('_', '-')}"
                for call in calls
                if ast.unparse(call.func) == "form.flags"
                for keyword in call.keywords
                if keyword.arg
            }
            found[function.name.lstrip("_").upper()] = names
    return {keyword: found[keyword] for keyword in KEYWORDS}


def test_every_instruction_has_its_section() -> None:
    headings = re.findall(r"^### (\w+)$", section("Instructions"), re.M)
    assert sorted(headings) == sorted(KEYWORDS)


def test_every_flag_is_there() -> None:
    for keyword, flags in flags_in_code().items():
        said = {cell for cell in first_cells(section(keyword)) if cell.startswith("--")}
        assert said == flags, keyword
    assert flags_in_code()["COPY"] >= {"--from", "--parents"}, "the code is read rightly"


def test_every_option_of_a_mount_is_there() -> None:
    page = section("RUN --mount")
    assert sorted([*first_cells(page), "type"]) == sorted(mount_options.KEYS)
    header = page.strip().splitlines()[0]
    assert [cell.strip() for cell in header.strip("|").split("|")][1:] == list(mount_options.TYPES)


def test_every_rule_is_there_and_whose_it_is() -> None:
    docker, _, own = section("Build checks").partition("kanifold's own")
    undocumented = {"InvalidBaseImagePlatform"}
    theirs = {rule.name for rule in RULES if rule.documented} | undocumented
    assert set(first_cells(docker)) == theirs
    assert set(first_cells(own)) == {rule.name for rule in RULES} - theirs


def test_every_case_that_differs_is_listed() -> None:
    settings = {
        path.parent.name: yaml.safe_load(path.read_text(encoding="utf-8")) or {} for path in CASES.glob("*/case.yaml")
    }
    deliberate, _, single = section("Known differences from BuildKit").partition("With one user id")
    assert set(first_cells(deliberate)) == {name for name, each in settings.items() if each.get("differs")}
    assert set(first_cells(single)) == {name for name, each in settings.items() if "ids" in each.get("needs", ())}
