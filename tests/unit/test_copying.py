"""COPY's rules on small trees: what goes where, as what, and what is refused.

Each case says what is in the context and in the stage, and what the layer then holds. BuildKit's own results for the
same questions are the conformance suite's; here is the table of rules.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from executor.dockerfile import modes
from executor.rootfs import moment
from executor.rootfs.entry import Entry, Kind
from executor.rootfs.tree import Tree, open_directory
from executor.solver import copying
from executor.solver.copying import CopyOptions, CopyPlan, CopySource
from platforms.errors import BuildError, ContextError

Files = Mapping[str, str | None]
"""By path: a file's text, ``-> target`` for a symbolic link, None for a directory."""


@pytest.fixture
def trees(tmp_path: Path) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def make(tmp_path: Path, trees: ExitStack, name: str, files: Files, owner: tuple[int, int] | None = None) -> Tree:
    top = tmp_path / name
    top.mkdir()
    for path, content in files.items():
        place = top / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            place.mkdir(exist_ok=True)
        elif content.startswith("-> "):
            place.symlink_to(content[3:])
        else:
            place.write_text(content)
    tree = open_directory(top, owner=owner)
    trees.callback(tree.close)
    return tree


def shown(entries: Iterable[Entry]) -> dict[str, str]:
    """A layer by path: a file's text, ``-> target``, ``= hard link``, or ``dir``."""
    out = {}
    for each in entries:
        match each.kind:
            case Kind.FILE:
                out[each.path.decode()] = Path(os.fsdecode(each.source)).read_text()
            case Kind.SYMLINK:
                out[each.path.decode()] = f"-> {each.link.decode()}"
            case Kind.HARDLINK:
                out[each.path.decode()] = f"= {each.link.decode()}"
            case Kind.DIRECTORY:
                out[each.path.decode()] = "dir"
            case kind:
                out[each.path.decode()] = kind.value
    return out


def copied(
    tmp_path: Path,
    trees: ExitStack,
    sources: str,
    destination: str,
    context: Files,
    stage: Files | None = None,
    treatment: CopyOptions | None = None,
) -> tuple[Entry, ...]:
    """The layer of ``COPY sources destination``."""
    plan = CopyPlan(make(tmp_path, trees, "stage", stage or {}, owner=(0, 0)))
    tree = make(tmp_path, trees, "context", context, owner=(0, 0))
    for each in sources.split():
        source = CopySource(tree, "/" + each.lstrip("/"), context=True)
        copying.copy(plan, source, destination, treatment or CopyOptions())
    return tuple(plan.finish())


RULES: Mapping[str, tuple[str, str, Files, Files, Mapping[str, str]]] = {
    "a file to a name": ("f", "/g", {"f": "1"}, {}, {"g": "1"}),
    "a file into a directory": ("f", "/d/", {"f": "1"}, {}, {"d": "dir", "d/f": "1"}),
    "a file into a directory that is there": ("f", "/d", {"f": "1"}, {"d": None}, {"d": "dir", "d/f": "1"}),
    "a file into the root": ("f", "/", {"f": "1"}, {}, {"f": "1"}),
    "a file over a file": ("f", "/g", {"f": "1"}, {"g": "0"}, {"g": "1"}),
    "a file below directories that are not there": (
        "f",
        "/a/b/c",
        {"f": "1"},
        {},
        {"a": "dir", "a/b": "dir", "a/b/c": "1"},
    ),
    "a directory is its contents": (
        "d",
        "/x",
        {"d/f": "1", "d/e/g": "2"},
        {},
        {"x": "dir", "x/f": "1", "x/e": "dir", "x/e/g": "2"},
    ),
    "a directory into a directory that is there": ("d", "/x", {"d/f": "1"}, {"x/old": "0"}, {"x": "dir", "x/f": "1"}),
    "a directory's slash makes no difference": ("d/", "/x/", {"d/f": "1"}, {}, {"x": "dir", "x/f": "1"}),
    "everything": (".", "/x/", {"f": "1", "d/g": "2"}, {}, {"x": "dir", "x/f": "1", "x/d": "dir", "x/d/g": "2"}),
    "an empty directory": ("d", "/x", {"d": None}, {}, {"x": "dir"}),
    "several files": ("f g", "/x/", {"f": "1", "g": "2"}, {}, {"x": "dir", "x/f": "1", "x/g": "2"}),
    "the later of two alike": ("a/f b/f", "/x/", {"a/f": "1", "b/f": "2"}, {}, {"x": "dir", "x/f": "2"}),
    "a star": (
        "*.txt",
        "/x/",
        {"a.txt": "1", "b.txt": "2", "c.md": "3"},
        {},
        {"x": "dir", "x/a.txt": "1", "x/b.txt": "2"},
    ),
    "a question mark": ("?", "/x/", {"a": "1", "bb": "2"}, {}, {"x": "dir", "x/a": "1"}),
    "a class": ("[ab]", "/x/", {"a": "1", "b": "2", "c": "3"}, {}, {"x": "dir", "x/a": "1", "x/b": "2"}),
    "a range left out": ("[^a-b]", "/x/", {"a": "1", "c": "3"}, {}, {"x": "dir", "x/c": "3"}),
    "a star does not match a slash": ("*/f", "/x/", {"a/f": "1", "a/b/f": "2", "f": "0"}, {}, {"x": "dir", "x/f": "1"}),
    "a star that matches a directory": (
        "d*",
        "/x/",
        {"d1/f": "1", "d2/g": "2"},
        {},
        {"x": "dir", "x/f": "1", "x/g": "2"},
    ),
    "hidden names are names": ("*", "/x/", {".h": "1"}, {}, {"x": "dir", "x/.h": "1"}),
    "a bracket in brackets": (
        "a[[]0].txt",
        "/x/",
        {"a[0].txt": "1", "a0.txt": "2"},
        {},
        {"x": "dir", "x/a[0].txt": "1"},
    ),
    "a backslash in a name without wildcards": (
        "a\\b",
        "/x/",
        {"a\\b": "1", "ab": "2"},
        {},
        {"x": "dir", "x/a\\b": "1"},
    ),
    "an escaped star beside a real one": ("a\\**", "/x/", {"a*b": "1", "ab": "2"}, {}, {"x": "dir", "x/a*b": "1"}),
    "a link is copied as a link below the top": (
        "d",
        "/x",
        {"d/l": "-> f", "d/f": "1"},
        {},
        {"x": "dir", "x/f": "1", "x/l": "-> f"},
    ),
    "a link that is named is followed": ("l", "/x", {"l": "-> f", "f": "1"}, {}, {"x": "1"}),
    "a link to a directory that is named is followed": (
        "l",
        "/x",
        {"l": "-> d", "d/f": "1"},
        {},
        {"x": "dir", "x/f": "1"},
    ),
    "a link on the way to a source is followed": ("l/f", "/x", {"l": "-> d", "d/f": "1"}, {}, {"x": "1"}),
    "a broken link below the top": ("d", "/x", {"d/l": "-> nowhere"}, {}, {"x": "dir", "x/l": "-> nowhere"}),
    "the destination's link to a directory is followed": (
        "f",
        "/l/",
        {"f": "1"},
        {"l": "-> d", "d": None},
        {"d": "dir", "d/f": "1"},
    ),
    "a link on the way to the destination is followed": (
        "f",
        "/l/e/g",
        {"f": "1"},
        {"l": "-> /d", "d": None},
        {"d": "dir", "d/e": "dir", "d/e/g": "1"},
    ),
    "a destination's link cannot lead out": (
        "f",
        "/l/g",
        {"f": "1"},
        {"l": "-> ../../../d", "d": None},
        {"d": "dir", "d/g": "1"},
    ),
    "a file takes a link's target's place": ("f", "/l", {"f": "1"}, {"l": "-> g", "g": "0"}, {"g": "1"}),
    "a file through a broken link": ("f", "/l", {"f": "1"}, {"l": "-> new"}, {"new": "1"}),
    "a link takes a file's place": ("d", "/x", {"d/n": "-> t"}, {"x/n": "0"}, {"x": "dir", "x/n": "-> t"}),
    "a file takes a link's place below a directory": (
        "d",
        "/x",
        {"d/n": "1"},
        {"x/n": "-> t", "t": "0"},
        {"x": "dir", "x/n": "1"},
    ),
    "nothing matches the star": ("*.none", "/x/", {"f": "1"}, {}, {}),
}


@pytest.mark.parametrize("rule", RULES)
def test_rules(tmp_path: Path, trees: ExitStack, rule: str) -> None:
    sources, destination, context, stage, layer = RULES[rule]
    assert shown(copied(tmp_path, trees, sources, destination, context, stage)) == layer


@pytest.mark.parametrize(
    ("sources", "destination", "context", "stage", "kind"),
    [
        ("nowhere", "/x", {"f": "1"}, {}, ContextError),
        ("../f", "/x", {"g": "1"}, {}, ContextError),
        ("l", "/x", {"l": "-> nowhere"}, {}, ContextError),
        ("l", "/x", {"l": "-> l"}, {}, BuildError),
        ("d", "/x", {"d/f": "1"}, {"x": "a file"}, BuildError),
        ("d", "/x", {"d/e/f": "1"}, {"x/e": "a file"}, BuildError),
        ("d", "/x", {"d/e": "1"}, {"x/e/f": "0"}, BuildError),
        ("f", "/g/h", {"f": "1"}, {"g": "a file"}, BuildError),
        ("f", "/g/", {"f": "1"}, {"g": "a file"}, BuildError),
        ("f", "/l/x", {"f": "1"}, {"l": "-> l"}, BuildError),
    ],
)
def test_what_cannot_be_copied(
    tmp_path: Path, trees: ExitStack, sources: str, destination: str, context: Files, stage: Files,
    kind: type[BuildError],
) -> None:  # fmt: skip
    with pytest.raises(kind):
        copied(tmp_path, trees, sources, destination, context, stage)


def test_a_source_never_leads_out_of_its_tree(tmp_path: Path, trees: ExitStack) -> None:
    (tmp_path / "secret").write_text("outside")
    context: Files = {
        "up": "-> ../secret",
        "absolute": f"-> {tmp_path}/secret",
        "directory": "-> ..",
        "f": "inside",
    }
    for path in ("../secret", "../../../../secret", "up", "absolute", "directory/secret", "./x/../../secret"):
        folder = tmp_path / f"try-{path.replace('/', '-')}"
        folder.mkdir()
        with pytest.raises(ContextError):
            copied(folder, trees, path, "/x", context)


def test_owner_and_mode_are_the_treatments(tmp_path: Path, trees: ExitStack) -> None:
    context: Files = {"d/f": "1", "d/l": "-> f"}
    found = copied(
        tmp_path,
        trees,
        "d",
        "/new/x/",
        context,
        treatment=CopyOptions(owner=(7, 8), mode=modes.parse("640"), parents_mode=0o640),
    )
    assert {(each.uid, each.gid) for each in found} == {(7, 8)}
    by_path = {each.path.decode(): each for each in found}
    assert by_path["new/x/f"].mode == 0o640
    assert by_path["new"].mode == 0o640
    assert by_path["new/x/l"].kind is Kind.SYMLINK


def test_directories_on_the_way_have_no_clock(tmp_path: Path, trees: ExitStack) -> None:
    found = copied(tmp_path, trees, "f", "/a/b/f", {"f": "1"})
    made = [(b"a", 0o755, moment.NANOSECONDS), (b"a/b", 0o755, moment.NANOSECONDS)]
    assert [(each.path, each.mode, each.mtime_ns) for each in found[:2]] == made


def test_files_keep_their_mode_and_time(tmp_path: Path, trees: ExitStack) -> None:
    folder = tmp_path / "context"
    (folder / "d").mkdir(parents=True)
    (folder / "d" / "f").write_text("x")
    (folder / "d" / "f").chmod(0o4751)
    (folder / "d").chmod(0o1777)
    os.utime(folder / "d" / "f", ns=(5_000_000_001, 5_000_000_001))
    os.utime(folder / "d", ns=(6, 6))
    tree = open_directory(folder)
    trees.callback(tree.close)
    plan = CopyPlan(make(tmp_path, trees, "stage", {"x": None}))
    copying.copy(plan, CopySource(tree, "/"), "/x", CopyOptions())
    found = {each.path.decode(): each for each in plan.finish()}
    assert (found["x/d/f"].mode, found["x/d/f"].mtime_ns) == (0o4751, 5_000_000_001)
    assert (found["x/d"].mode, found["x/d"].mtime_ns) == (0o1777, 6)


def test_a_directory_that_is_there_keeps_its_mode_and_owner(tmp_path: Path, trees: ExitStack) -> None:
    stage = make(tmp_path, trees, "stage", {"x/old": "0"})
    (tmp_path / "stage" / "x").chmod(0o700)
    tree = make(tmp_path, trees, "context", {"d/f": "1"}, owner=(0, 0))
    (tmp_path / "context" / "d").chmod(0o777)
    plan = CopyPlan(stage)
    copying.copy(plan, CopySource(tree, "/d"), "/x", CopyOptions())
    found = {each.path: each for each in plan.finish()}
    assert found[b"x"].mode == 0o700


def test_hard_links_stay_linked(tmp_path: Path, trees: ExitStack) -> None:
    tree = make(tmp_path, trees, "context", {"d/a": "1", "other": "2"})
    os.link(tmp_path / "context" / "d" / "a", tmp_path / "context" / "d" / "b")
    os.link(tmp_path / "context" / "other", tmp_path / "context" / "d" / "lone")
    plan = CopyPlan(make(tmp_path, trees, "stage", {}))
    copying.copy(plan, CopySource(tree, "/d"), "/x", CopyOptions())
    assert shown(plan.finish()) == {"x": "dir", "x/a": "1", "x/b": "= x/a", "x/lone": "2"}


def test_fifos_are_copied_and_sockets_become_empty_files(tmp_path: Path, trees: ExitStack) -> None:
    tree = make(tmp_path, trees, "context", {"d/f": "1"})
    os.mkfifo(tmp_path / "context" / "d" / "p")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "context" / "d" / "s"))  # an address has room for some 100 bytes
    plan = CopyPlan(make(tmp_path, trees, "stage", {}))
    copying.copy(plan, CopySource(tree, "/d"), "/x", CopyOptions())
    assert shown(plan.finish()) == {"x": "dir", "x/f": "1", "x/p": "fifo", "x/s": ""}


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (("*.md",), {"a.txt", "sub/b.txt", "sub/c.md"}),
        (("**/*.md",), {"a.txt", "sub/b.txt"}),
        (("sub",), {"a.txt", "r.md"}),
        (("sub", "!sub/b.txt"), {"a.txt", "r.md", "sub/b.txt"}),
        (("*",), set()),
    ],
)
def test_exclude(tmp_path: Path, trees: ExitStack, exclude: tuple[str, ...], left: set[str]) -> None:
    context: Files = {"d/a.txt": "1", "d/r.md": "2", "d/sub/b.txt": "3", "d/sub/c.md": "4"}
    found = copied(tmp_path, trees, "d", "/x", context, treatment=CopyOptions(exclude=exclude))
    assert {path.removeprefix("x/") for path, what in shown(found).items() if what != "dir"} == left


@pytest.mark.parametrize(
    ("include", "layer"),
    [
        ("a/b/f", {"x": "dir", "x/a": "dir", "x/a/b": "dir", "x/a/b/f": "1"}),
        ("a/*/f", {"x": "dir", "x/a": "dir", "x/a/b": "dir", "x/a/b/f": "1"}),
        ("g", {"x": "dir", "x/g": "2"}),
    ],
)
def test_parents_keep_the_way(tmp_path: Path, trees: ExitStack, include: str, layer: Mapping[str, str]) -> None:
    tree = make(tmp_path, trees, "context", {"a/b/f": "1", "g": "2", "z/q": "3"})
    plan = CopyPlan(make(tmp_path, trees, "stage", {}))
    copying.copy(plan, CopySource(tree, "/", include=(include,)), "/x/", CopyOptions())
    assert shown(plan.finish()) == layer


def test_a_link_layer_knows_nothing_of_the_stage(tmp_path: Path, trees: ExitStack) -> None:
    tree = make(tmp_path, trees, "context", {"f": "1"})
    plan = CopyPlan(None)
    copying.copy(plan, CopySource(tree, "/f"), "/l/x/", CopyOptions())
    assert shown(plan.finish()) == {"l": "dir", "l/x": "dir", "l/x/f": "1"}


def test_a_linked_file_that_gives_way_lives_on_under_its_other_names() -> None:
    for new in (Entry(b"a", Kind.FILE, size=1, digest="1"), Entry(b"a", Kind.DIRECTORY)):
        plan = CopyPlan(None)
        plan.put(Entry(b"a", Kind.FILE, mode=0o644, size=7, digest="7"))
        for name in (b"b", b"c"):
            plan.put(Entry(name, Kind.HARDLINK, mode=0o644, link=b"a"))
        plan.put(new)
        found = {each.path: each for each in plan.finish()}
        assert found[b"a"].kind is new.kind
        assert (found[b"b"].kind, found[b"b"].size, found[b"b"].digest) == (Kind.FILE, 7, "7")
        assert (found[b"c"].kind, found[b"c"].link) == (Kind.HARDLINK, b"b")


def test_workdir_makes_what_is_missing(tmp_path: Path, trees: ExitStack) -> None:
    stage = make(tmp_path, trees, "stage", {"real": None, "link": "-> real"})
    assert not copying.make_directory(stage, "/real", None)
    found = copying.make_directory(stage, "/link/a/b", (5, 6))
    assert [(each.path, each.uid, each.gid, each.mode) for each in found if each.path != b"real"] == [
        (b"real/a", 5, 6, 0o755),
        (b"real/a/b", 5, 6, 0o755),
    ]
    with pytest.raises(BuildError, match="not a directory"):
        copying.make_directory(make(tmp_path, trees, "other", {"f": "1"}), "/f/x", None)


def test_a_layer_lists_parents_before_children(tmp_path: Path, trees: ExitStack) -> None:
    found = copied(tmp_path, trees, ".", "/x/", {"a-b": "1", "a/c": "2", "a.d": "3"})
    paths = [each.path for each in found]
    for index, path in enumerate(paths):
        parent = path.rpartition(b"/")[0]
        assert not parent or parent in paths[:index], f"{path!r} before its parent"


def test_a_directory_of_many_files(tmp_path: Path, trees: ExitStack) -> None:
    names = [f"{number:04}" for number in range(5000)]
    found = copied(tmp_path, trees, "d", "/x", {f"d/{name}": name for name in names}, {"x/0017": "old"})
    assert [each.path.decode() for each in found] == ["x", *(f"x/{name}" for name in names)]
    assert all(Path(os.fsdecode(each.source)).name == each.path.decode()[2:] for each in found[1:])


def test_what_takes_a_directorys_place_in_a_plan(tmp_path: Path, trees: ExitStack) -> None:
    """An archive's file over a directory, and a later one's directory over that file."""
    plan = CopyPlan(make(tmp_path, trees, "stage", {"d/old": "0"}))
    for number, files in enumerate(({"d/new": "1"}, {"d": "2"}, {"d/newest": "3"})):
        tree = make(tmp_path, trees, f"archive-{number}", files)
        copying.unpack_into(plan, tree, frozenset(), "/", None)
        assert (plan.lookup(b"d/old") is None) is (number == 1)
    assert shown(plan.finish()) == {"d": "dir", "d/newest": "3"}


def test_a_wide_pattern_is_not_a_walk_of_everything(tmp_path: Path, trees: ExitStack) -> None:
    """A component at a time: a directory that cannot match is not opened."""
    tree = make(tmp_path, trees, "context", {"closed/x": "1", "open/y": "2"})
    (tmp_path / "context" / "closed").chmod(0)
    try:
        found = copying.matches(CopySource(tree, "/open/*"))
        assert [each.path for each in found] == [b"open/y"]
    finally:
        (tmp_path / "context" / "closed").chmod(0o755)
