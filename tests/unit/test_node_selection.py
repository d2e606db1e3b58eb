"""Which nodes a build may use, by flags, the environment, the project and the inventory."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.nodes.inventory import NodeEntry
from orchestrator.nodes.node_selection import NodeSelection, select, unknown_nodes
from platforms.errors import UsageError
from platforms.parsing import parse

LOCAL, ARM, BIG = NodeEntry("local", "local"), NodeEntry("arm", "ssh://arm"), NodeEntry("big", "ssh://big")
ARM64 = parse("linux/arm64")


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's inventory, with two nodes, and a project without a file."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("KANIFOLD_NODES", raising=False)
    file = tmp_path / "config" / "kanifold" / "nodes.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("nodes:\n  arm:\n    url: ssh://arm\n  big:\n    url: ssh://big\n")
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return file


def project(text: str) -> None:
    Path("kanifold.yaml").write_text(text)


def selected(*words: str, **forced: str) -> tuple[NodeEntry, ...]:
    found = select(words, tuple((parse(f"linux/{each}"), node) for each, node in forced.items()))
    assert found is not None
    return found.entries


def test_all_are_used_after_this_machine() -> None:
    assert selected() == (LOCAL, ARM, BIG)


def test_without_an_inventory_there_is_this_machine_alone(user: Path) -> None:
    user.unlink()
    assert select((), ()) is None


def test_a_machine_that_builds_nothing_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert selected() == (ARM, BIG)


def test_the_flag_names_all_that_are_used() -> None:
    assert selected("big") == (BIG,)
    assert selected("big", "local") == (BIG, LOCAL)
    assert select(("local",), ()) is None
    assert selected("new=ssh://me@new:22") == (NodeEntry("new", "ssh://me@new:22"),)


def test_the_environment_does_where_no_flag_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANIFOLD_NODES", " big, new=ssh://new ")
    assert selected() == (BIG, NodeEntry("new", "ssh://new"))
    assert selected("arm") == (ARM,)
    monkeypatch.setenv("KANIFOLD_NODES", "")
    assert selected() == (LOCAL, ARM, BIG)


def test_a_forced_node_is_used_too() -> None:
    assert selected("big", arm64="arm") == (BIG, ARM)
    assert selected("big", arm64="local") == (BIG, LOCAL)


def test_kanifold_is_sent_to_none_if_the_user_refuses() -> None:
    found = select(("arm",), (), bootstrap=False)
    assert found is not None
    assert [each.bootstrap for each in found.entries] == [False]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("amr",), r"--node: there is no node amr \(did you mean arm\?\)"),
        (("arm", "arm"), "two nodes are called arm"),
        (("arm", "arm=ssh://b"), "two nodes are called arm"),
        (("local=ssh://a",), "--node: the node local cannot be at ssh://a"),
        (("a=local",), "--node: the node a cannot be at local"),
        (("a=ssh://-oProxyCommand=x",), "--node: invalid address"),
        (("-a=ssh://b",), "--node: a node cannot be called"),
    ],
)
def test_what_is_no_node_is_refused(words: tuple[str, ...], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        select(words, ())


# -- what a checkout may do -----------------------------------------------------------------------------------------


def test_a_project_selects_by_name_what_the_user_has() -> None:
    project("nodes: [big]")
    assert selected() == (LOCAL, BIG)
    project("nodes: [local]")
    assert select((), ()) is None
    project("nodes: []")
    assert select((), ()) is None


def test_a_project_cannot_give_a_node_an_address() -> None:
    project("nodes: {arm: {url: ssh://evil, platforms: linux/amd64}, new: {url: ssh://evil}}")
    found = select((), ())
    assert found == NodeSelection((LOCAL, ARM), (), ("new",))
    (warning,) = unknown_nodes(found)
    assert "names the node new, which is not used" in warning.what
    assert warning.remedy == "kanifold node add new"


def test_a_node_of_the_project_alone_is_not_reached_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    project("nodes: {new: {url: ssh://evil}}")
    with pytest.raises(UsageError, match="there is no node new") as caught:
        select(("new",), ())
    assert caught.value.problem.remedy == "kanifold node add new"
    with pytest.raises(UsageError, match="there is no node new"):
        select((), ((ARM64, "new"),))
    monkeypatch.setenv("KANIFOLD_NODES", "new")
    with pytest.raises(UsageError, match="KANIFOLD_NODES: there is no node new"):
        select((), ())


def test_a_project_does_not_overrule_the_user() -> None:
    project("nodes: [big]")
    assert selected("arm") == (ARM,)
