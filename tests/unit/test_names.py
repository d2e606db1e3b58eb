"""Names in the three packages: standard terms, and one meaning for each."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from packages import SOURCES, parsed, violations

RETIRED: Mapping[str, str] = {
    "agreed": "content digest",
    "arrival": "in-flight blob",
    "beginning": "bootstrap",
    "brood": "worker pool",
    "bury": "remove",
    "bypath": "external sort",
    "caution": "warning",
    "cautions": "warnings",
    "complaints": "stderr",
    "course": "job plan",
    "dismiss": "release",
    "facts": "metadata",
    "foresee": "prefetch",
    "furnish": "set up",
    "gate": "lock",
    "hello": "handshake",
    "keeping": "garbage collection",
    "ladder": "order of modes",
    "nursery": "prefork server",
    "patience": "read timeout",
    "prove": "preflight",
    "repeats": "result cache",
    "rung": "mode",
    "rungs": "modes",
    "seal": "checksum",
    "settle": "sync",
    "spare": "pre-warmed process",
    "speaker": "registry process",
    "stamp": "stat signature",
    "survey": "probe",
    "terrain": "path walk",
    "tidying": "garbage collection",
    "traps": "multi-platform checks",
    "trouble": "failure",
    "troubles": "failures",
    "voided": "retry",
    "workshop": "services",
}
"""Words that names of modules, classes and functions had for a time, and the standard terms that took their places."""


def words(name: str) -> list[str]:
    """The words of a name in snake case or camel case, in lower case."""
    parts = (re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", part) for part in name.split("_"))
    return [word.lower() for part in parts for word in part]


def defined(source: str) -> Iterator[str]:
    """The names of the classes and functions in ``source``."""
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    yield from (node.name for node in ast.walk(parsed(source)) if isinstance(node, kinds))


def retired(path: str, source: str) -> list[str]:
    """The names in the module at ``path`` that have a retired word."""
    return [name for name in (Path(path).stem, *defined(source)) if RETIRED.keys() & set(words(name))]


def test_names_use_standard_terms() -> None:
    assert violations(retired) == {}, "see RETIRED for the terms to use"


def test_the_rule_of_terms_blames_what_it_should() -> None:
    assert retired("executor/nursery.py", "") == ["nursery"]
    assert retired("a.py", "class SpareShape: ...\ndef take_rung(): ...") == ["SpareShape", "take_rung"]
    assert retired("a.py", "def f():\n    def settle(): ...") == ["settle"]
    assert retired("a.py", "def improve(): ...\nclass Course_: ...\ncourse = 1") == ["Course_"]


def ambiguous(sources: Mapping[str, str]) -> list[str]:
    """The public classes and the modules of ``sources`` that share their name with another."""
    modules: dict[str, list[str]] = {}
    classes: dict[str, list[str]] = {}
    for path, source in sources.items():
        if not Path(path).stem.startswith("__"):
            modules.setdefault(Path(path).stem, []).append(path)
        for node in parsed(source).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes.setdefault(node.name, []).append(path)
    return [f"{name}: {' '.join(found)}" for kind in (modules, classes) for name, found in kind.items() if found[1:]]


def test_each_class_and_module_has_a_name_of_its_own() -> None:
    assert ambiguous(SOURCES) == []


def test_the_rule_of_own_names_blames_what_it_should() -> None:
    assert ambiguous({"a/one.py": "class Plan: ...", "b/two.py": "class Plan: ..."}) == ["Plan: a/one.py b/two.py"]
    assert ambiguous({"a/one.py": "", "b/one.py": ""}) == ["one: a/one.py b/one.py"]
    assert ambiguous({"a/__init__.py": "class _P: ...", "b/__init__.py": "class _P: ..."}) == []
