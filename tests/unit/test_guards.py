"""Code that guards exists once each: a second copy would soon have other limits, and one of the two would be wrong."""

from __future__ import annotations

import ast
import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest
from packages import SOURCES, parsed

from executor.rootfs.entry import Entry, Kind, hard_link
from executor.rootfs.tree import open_directory
from executor.sandbox.targets import Root
from executor.snapshotter.apply import Lower
from executor.solver.copying import CopyPlan
from platforms.descriptors import write_all
from platforms.errors import BuildError
from platforms.pathwalk import LINKS, STEPS, TooManyLinks, resolve

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
    for node in loops(tree):
        if isinstance(node, ast.Slice) and node.lower is not None:
            yield from calls(ast.walk(node.lower), ".write")


def resolving_paths(tree: ast.Module) -> Iterator[ast.AST]:
    """A path's components, taken one after the other while links add to them: what knows ``..`` in a while loop."""
    for each in ast.walk(tree):
        for node in ast.walk(each) if isinstance(each, ast.While) else ():
            if isinstance(node, ast.Compare) and {"'..'", "b'..'"} & set(map(ast.unparse, node.comparators)):
                yield node


def confining_by_flags(tree: ast.Module) -> Iterator[ast.AST]:
    """How far openat2(2) may go, put together from its flags."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and ast.unparse(node).count("RESOLVE_") > 1:
            yield node


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


def recording_owners(tree: ast.Module) -> Iterator[ast.AST]:
    """A struct of what the kernel refuses to an ordinary user: an owner, and a file capability."""
    for node in ast.walk(tree):
        fields = node.body if isinstance(node, ast.ClassDef) else ()
        if {"uid", "gid", "capability"} <= {
            ast.unparse(each.target) for each in fields if isinstance(each, ast.AnnAssign)
        }:
            yield node


def trying_again(tree: ast.Module) -> Iterator[ast.AST]:
    """A wait before another attempt: its length, or the wait itself."""
    yield from calls(ast.walk(tree), ".delay", ".pause", "random.uniform")


def receiving_descriptors(tree: ast.Module) -> Iterator[ast.AST]:
    """A packet's descriptors: what receives them has to see that programs do not inherit them."""
    yield from calls(ast.walk(tree), ".recvmsg", "socket.recv_fds")


RULES: dict[Rule, str] = {
    receiving_descriptors: "platforms/descriptors.py",
    writing_in_a_loop: "platforms/descriptors.py",
    resolving_paths: "platforms/pathwalk.py",
    confining_by_flags: "platforms/syscalls.py",
    making_hard_links: "executor/rootfs/entry.py",
    recording_owners: "executor/snapshotter/records.py",
    trying_again: "executor/retry.py",
    units_of_time: "platforms/durations.py",
}
"""A guard, and the module that has it."""

USERS: dict[Rule, str] = {recording_owners: "executor/supervised/file_metadata.py"}
"""Of a guard, a module that only looks like another: it holds what the guard's module reads and writes."""

SIBLINGS: dict[Rule, str] = {
    receiving_descriptors: "data, fds, _, _ = socket.recv_fds(line, 1, 1)",
    writing_in_a_loop: "while view:\n    view = view[os.write(fd, view):]",
    resolving_paths: "while todo:\n    name = todo.pop()\n    if name == b'..':\n        del done[-1:]",
    confining_by_flags: "resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS",
    making_hard_links: "replace(entry, kind=Kind.HARDLINK, link=first)",
    recording_owners: "class Known:\n    uid: int\n    gid: int\n    capability: bytes = b''",
    trying_again: "while True:\n    transport.pause(policy.delay(failures))",
    units_of_time: "UNITS = {'s': 1, 'm': 60, 'h': 3600}",
}
"""Of each guard, a copy that its rule has to find."""


def test_a_guard_has_no_sibling() -> None:
    found: dict[str, set[str]] = {rule.__name__: set() for rule in RULES}
    for path, source in SOURCES.items():
        tree = parsed(source)
        for rule in RULES:
            if path != USERS.get(rule) and any(rule(tree)):
                found[rule.__name__].add(path)
    assert found == {rule.__name__: {home} for rule, home in RULES.items()}


@pytest.mark.parametrize(("rule", "source"), SIBLINGS.items(), ids=lambda each: getattr(each, "__name__", ""))
def test_a_sibling_would_be_found(rule: Rule, source: str) -> None:
    assert any(rule(parsed(source)))


def test_every_rule_is_tried() -> None:
    assert RULES.keys() == SIBLINGS.keys()


# -- the path walk ---------------------------------------------------------------------------------------------------


def chain(links: int) -> Mapping[bytes, bytes]:
    """So many links, of which each leads to the next, and the last to a directory ``end``."""
    return {b"l%d" % number: b"l%d" % (number + 1) for number in range(1, links)} | {b"l%d" % links: b"end"}


@pytest.mark.parametrize(
    ("path", "real"),
    [
        (b"", b""),
        (b"/", b""),
        (b"a//b/./c/", b"a/b/c"),
        (b"../../a/../b", b"b"),
        (b"up/x", b"x"),
        (b"d/sibling/x", b"d/e/x"),
        (b"d/root/x", b"x"),
        (b"d/absolute/x/..", b"d/e"),
        (b"nothing/../there", b"there"),
    ],
)
def test_a_path_is_resolved_as_if_the_tree_were_the_root(path: bytes, real: bytes) -> None:
    links = {b"up": b"../../..", b"d/sibling": b"e", b"d/root": b"/", b"d/absolute": b"/d/./e/"}
    assert resolve(path, links.get) == real


def test_the_last_component_is_followed_unless_it_is_meant_itself() -> None:
    links = {b"a": b"b", b"b": b"c"}
    assert resolve(b"a", links.get) == b"c"
    assert resolve(b"a", links.get, follow_last=False) == b"a"
    assert resolve(b"a/x", links.get, follow_last=False) == b"c/x"


def test_as_many_links_as_containerd_follows() -> None:
    assert resolve(b"l1/x", chain(LINKS).get) == b"end/x"
    with pytest.raises(TooManyLinks, match="symbolic links") as caught:
        resolve(b"l1/x", chain(LINKS + 1).get)
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, "l1/x")


def test_links_that_multiply_end() -> None:
    """Each leads twice through the one before."""
    links = {b"l%d" % number: b"l%d/../l%d" % (number - 1, number - 1) for number in range(1, 100)}
    asked = 0

    def readlink(path: bytes) -> bytes | None:
        nonlocal asked
        asked += 1
        return links.get(path)

    with pytest.raises(TooManyLinks):
        resolve(b"l99", readlink)
    assert asked <= STEPS


def test_a_deep_path_without_links_is_no_expense() -> None:
    path = b"/".join([b"d"] * (STEPS + 1))
    assert resolve(path, dict[bytes, bytes]().get) == path


def test_all_who_walk_follow_as_many_links(tmp_path: Path) -> None:
    """Unpacking, COPY's sources, COPY's destinations and mount targets: what one can reach, the others can."""
    links = [Entry(name, Kind.SYMLINK, 0o777, link=text) for name, text in chain(LINKS).items()]
    plan = CopyPlan(None)
    with Lower(str(tmp_path)) as lower:
        for link in links:
            lower.apply(link, lambda _: None)
            plan.put(link)
        lower.apply(Entry(b"l1/file", Kind.FILE), lambda _: None)
    (tmp_path / "l0").symlink_to("l1")
    assert (tmp_path / "end" / "file").is_file()
    with closing(open_directory(str(tmp_path))) as tree:
        assert tree.resolve(b"l1/file") == b"end/file"
        with pytest.raises(BuildError, match="too many symbolic links"):
            tree.resolve(b"l0/file")
    assert plan.resolve(b"l1/file") == b"end/file"
    top = os.open(tmp_path, os.O_RDONLY)
    root = Root(top, top, -1)
    os.close(root.locate("l1/file", directory=False))
    with pytest.raises(TooManyLinks):
        root.locate("l0/file", directory=False)
    os.close(top)


# -- what the others do ----------------------------------------------------------------------------------------------


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
