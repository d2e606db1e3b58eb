"""Code that guards exists once each: a second copy would soon have other limits, and one of the two would be wrong."""

from __future__ import annotations

import ast
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from executor.rootfs.entry import Entry, Kind, hard_link
from platforms.descriptors import write_all

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text()
    for room in ("platforms", "executor", "orchestrator")
    for path in sorted((ROOT / room).rglob("*.py"))
}

Rule = Callable[[ast.Module], Iterator[ast.AST]]
"""Finds in a module what does the work of a guard."""


def loops(tree: ast.Module) -> Iterator[ast.AST]:
    """Everything that stands inside of a loop."""
    for each in ast.walk(tree):
        if isinstance(each, ast.While | ast.For):
            yield from (node for part in each.body for node in ast.walk(part))


def calls(nodes: Iterator[ast.AST], *names: str) -> Iterator[ast.Call]:
    """The calls of functions that are written like one of ``names``, or of methods that are called ``.NAME``."""
    for node in nodes:
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            if text in names or any(name.startswith(".") and text.endswith(name) for name in names):
                yield node


def writing_in_a_loop(tree: ast.Module) -> Iterator[ast.AST]:
    """write(2), again and again until all is written: in a loop that looks at how much was."""
    unseen = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    yield from (call for call in calls(loops(tree), "os.write") if id(call) not in unseen)


def making_hard_links(tree: ast.Module) -> Iterator[ast.AST]:
    """An entry that becomes a hard link."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            said = (*node.args, *(keyword.value for keyword in node.keywords))
            if any(ast.unparse(each) == "Kind.HARDLINK" for each in said):
                yield node


def units_of_time(tree: ast.Module) -> Iterator[ast.AST]:
    """A table of what ``s``, ``m`` and ``h`` mean."""
    for node in ast.walk(tree):
        keys = node.keys if isinstance(node, ast.Dict) else ()
        if {"s", "m", "h"} <= {key.value for key in keys if isinstance(key, ast.Constant)}:
            yield node


RULES: dict[Rule, str] = {
    writing_in_a_loop: "platforms/descriptors.py",
    making_hard_links: "executor/rootfs/entry.py",
    units_of_time: "platforms/durations.py",
}
"""A guard, and the module that has it."""

SIBLINGS: dict[Rule, str] = {
    writing_in_a_loop: "while view:\n    view = view[os.write(fd, view):]",
    making_hard_links: "replace(entry, kind=Kind.HARDLINK, link=first)",
    units_of_time: "UNITS = {'s': 1, 'm': 60, 'h': 3600}",
}
"""Of each guard, a copy that its rule has to find."""


@pytest.mark.parametrize(("rule", "home"), RULES.items(), ids=lambda each: getattr(each, "__name__", ""))
def test_a_guard_has_no_sibling(rule: Rule, home: str) -> None:
    assert [name for name, source in SOURCES.items() if any(rule(ast.parse(source)))] == [home]


@pytest.mark.parametrize(("rule", "source"), SIBLINGS.items(), ids=lambda each: getattr(each, "__name__", ""))
def test_a_sibling_would_be_found(rule: Rule, source: str) -> None:
    assert any(rule(ast.parse(source)))


def test_every_rule_is_tried() -> None:
    assert RULES.keys() == SIBLINGS.keys()


# -- what the guards do ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocking", [True, False])
def test_all_is_written_to_a_slow_reader(blocking: bool) -> None:
    data = os.urandom(1 << 20)  # more than a pipe holds
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    found: list[bytes] = []

    def read() -> None:
        while piece := os.read(reader, 5000):
            found.append(piece)

    thread = threading.Thread(target=read)
    thread.start()
    write_all(writer, memoryview(data))
    os.close(writer)
    thread.join()
    os.close(reader)
    assert b"".join(found) == data


def test_a_reader_that_is_gone_is_an_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        write_all(writer, b"x")
    write_all(writer, b"")
    os.close(writer)


def test_a_hard_link_has_no_content_of_its_own() -> None:
    file = Entry(
        b"a", Kind.FILE, 0o600, 1, 2, 3, 9, xattrs=((b"user.a", b"b"),), source=b"/a", digest="00", stamp=b"stamp"
    )
    link = hard_link(file, b"b", b"a")
    assert link == Entry(b"b", Kind.HARDLINK, 0o600, 1, 2, 3, link=b"a")
