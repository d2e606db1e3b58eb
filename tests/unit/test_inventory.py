"""The inventory of nodes: what it may say, the place of all that is wrong in it, and that changes leave the rest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.nodes import inventory, inventory_file
from orchestrator.nodes.inventory import NodeEntry
from platforms.errors import UsageError
from platforms.parsing import parse

AMD64, ARM64, RISCV64 = map(parse, ("linux/amd64", "linux/arm64", "linux/riscv64"))
GOOD = """\
# My machines.
nodes:
  # In the cellar.
  arm:
    url: ssh://build@arm.example.com:2222  # behind a jump host
    platforms: [linux/arm64, linux/arm/v7]
    max-jobs: 2

  big:
    url: ssh://big
    bootstrap: false
    python: /usr/bin/python3.12
# The end.
"""
ARM = NodeEntry("arm", "ssh://build@arm.example.com:2222", (ARM64, parse("linux/arm/v7")), 2)
BIG = NodeEntry("big", "ssh://big", bootstrap=False, python="/usr/bin/python3.12")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A path for an inventory, in a directory that is not there yet."""
    return tmp_path / "kanifold" / "nodes.yaml"


def written(file: Path, text: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    file.chmod(0o600)
    return file


def test_it_says_what_nodes_there_are(file: Path) -> None:
    assert inventory.load(str(written(file, GOOD))) == (ARM, BIG)


@pytest.mark.parametrize("text", ["", "# nothing\n", "nodes:\n", "nodes: {}\n"])
def test_an_empty_one_has_none(file: Path, text: str) -> None:
    assert inventory.load(str(file)) == ()
    assert inventory.load(str(written(file, text))) == ()


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        ("node:\n  a: {}", "1:1: node", "unknown key (did you mean nodes?)"),
        ("nodes: [a]", "1:1: nodes", "a mapping is expected"),
        ("nodes:\n  arm:\n    url: ssh://a\n    max_jobs: 2", "4:5: nodes.arm.max_jobs", "did you mean max-jobs?"),
        ("nodes:\n  arm:\n    url: ssh://a\n    platform: linux/arm64", "4:5: nodes.arm.platform", "platforms?"),
        ("nodes:\n  arm:\n    url: ssh://a\n    max-jobs: -1", "4:5: nodes.arm.max-jobs", "a whole number"),
        ("nodes:\n  arm:\n    url: ssh://a\n    platforms: [linux/arm46]", "4:5: nodes.arm.platforms", "arm46"),
        ("nodes:\n  arm:\n    url: ssh://a\n    bootstrap: perhaps", "4:5: nodes.arm.bootstrap", "true or false"),
        ("nodes:\n  arm:\n    url: ssh://a\n    python: -c evil", "4:5: nodes.arm.python", "no Python"),
        ("nodes:\n  arm:\n    url: ssh://-oProxyCommand=evil", "3:5: nodes.arm.url", "no name of a host"),
        ("nodes:\n  arm:\n    url: http://a", "3:5: nodes.arm.url", "ssh://"),
        ("nodes:\n  arm:\n    url: local", "3:5: nodes.arm.url", "local is this machine"),
        ("nodes:\n  local:\n    url: ssh://a", "3:5: nodes.local.url", "local is this machine"),
        ("nodes:\n  arm: {}", "2:3: nodes.arm", "it has no url"),
        ("nodes:\n  -a:\n    url: ssh://a", "3:5: nodes.-a.url", "cannot be called"),
        ("nodes:\n  Arm:\n    url: ssh://a", "3:5: nodes.Arm.url", "cannot be called"),
        ("nodes:\n  a: {url: ssh://a}\n  a: {url: ssh://b}", "3:3: nodes.a", "twice"),
        ("nodes:\n  a: [", "2:7", "expected"),
    ],
)
def test_an_error_has_its_place(file: Path, text: str, place: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        inventory.load(str(written(file, text)))
    problem = caught.value.problem
    assert problem.what.startswith(f"{file}:{place}")
    assert why in problem.why
    assert problem.where is not None
    assert problem.where.source


@pytest.mark.parametrize("mode", [0o622, 0o660])
def test_one_that_others_may_write_to_is_not_used(file: Path, mode: int) -> None:
    written(file, GOOD).chmod(mode)
    with pytest.raises(UsageError, match="is not used") as caught:
        inventory.load(str(file))
    assert "chmod go-w" in caught.value.problem.remedy


def test_a_node_takes_what_its_platforms_run() -> None:
    node = NodeEntry("a", "ssh://a", (ARM64, parse("linux/amd64/v3")))
    assert node.takes(ARM64)
    assert node.takes(parse("linux/arm64/v8.2"))
    assert node.takes(AMD64)
    assert not node.takes(parse("linux/amd64/v4"))
    assert not node.takes(RISCV64)
    assert NodeEntry("b", "ssh://b").takes(RISCV64)


def test_an_unknown_node_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"no node amr \(did you mean arm\?\)") as caught:
        inventory.find("amr", (ARM, BIG))
    assert caught.value.problem.remedy == "kanifold node add amr ssh://USER@HOST"
    assert inventory.find("local", (ARM,)) == NodeEntry("local", "local")


# -- changes --------------------------------------------------------------------------------------------------------


def test_the_first_node_makes_the_file_for_its_user_alone(file: Path) -> None:
    inventory_file.add(str(file), ARM)
    assert file.read_text() == (
        "nodes:\n  arm:\n    url: ssh://build@arm.example.com:2222\n"
        "    platforms: [linux/arm64, linux/arm/v7]\n    max-jobs: 2\n"
    )
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert os.listdir(file.parent) == ["nodes.yaml"]


@pytest.mark.parametrize(
    "url",
    [
        "kubernetes://arn:aws:eks:eu-1:1:cluster%2Fbig/builds?image=r.example.com/k:1&store=cache-{arch}&memory=4Gi",
        "kubernetes:///builds?image=r.example.com/k@sha256:"
        + "0" * 64
        + "&node-selector=a=b&tolerations=c=d:NoSchedule",
        "kubernetes://in-cluster?image=k&template=/etc/kanifold/pod.yaml",
    ],
)
def test_a_cluster_is_written_so_that_it_is_read_again(file: Path, url: str) -> None:
    inventory_file.add(str(file), inventory.declared("farm", url))
    assert inventory.load(str(file)) == (NodeEntry("farm", url),)


def test_a_cluster_with_a_wrong_option_has_its_place(file: Path) -> None:
    written(file, "nodes:\n  farm:\n    url: kubernetes://c/n?image=k&profil=restricted\n")
    with pytest.raises(UsageError) as refused:
        inventory.load(str(file))
    assert "nodes.yaml:3:" in str(refused.value.problem)
    assert "did you mean profile?" in str(refused.value.problem)


def test_a_further_one_leaves_comments_and_layout(file: Path) -> None:
    inventory_file.add(str(written(file, GOOD)), NodeEntry("new", "ssh://new"))
    assert file.read_text() == GOOD.replace("# The end.", "  new:\n    url: ssh://new\n# The end.")
    inventory_file.remove(str(file), ["new"])
    assert file.read_text() == GOOD


def test_one_is_replaced_in_its_place(file: Path) -> None:
    written(file, GOOD)
    with pytest.raises(UsageError, match="there is a node arm already") as caught:
        inventory_file.add(str(file), NodeEntry("arm", "ssh://other"))
    assert "--replace" in caught.value.problem.remedy
    inventory_file.add(str(file), NodeEntry("arm", "ssh://other"), replace=True)
    assert inventory.load(str(file)) == (NodeEntry("arm", "ssh://other"), BIG)
    assert "# In the cellar.\n  arm:\n    url: ssh://other\n\n  big:" in file.read_text()


def test_all_are_removed_or_none(file: Path) -> None:
    written(file, GOOD)
    with pytest.raises(UsageError, match="no node bog"):
        inventory_file.remove(str(file), ["arm", "bog"])
    assert file.read_text() == GOOD
    inventory_file.remove(str(file), ["arm", "big"])
    assert file.read_text() == "# My machines.\nnodes:\n  # In the cellar.\n\n# The end.\n"
    inventory_file.add(str(file), BIG)
    assert inventory.load(str(file)) == (BIG,)


@pytest.mark.parametrize("text", ["nodes: {arm: {url: ssh://a}}\n", "{nodes: {arm: {url: ssh://a}}}"])
def test_a_style_that_lines_do_not_fit_is_left_to_the_user(file: Path, text: str) -> None:
    written(file, text)
    with pytest.raises(UsageError, match="cannot change"):
        inventory_file.add(str(file), BIG)
    assert file.read_text() == text


def test_a_link_stays_one(file: Path, tmp_path: Path) -> None:
    kept = tmp_path / "dotfiles"
    kept.write_text(GOOD)
    kept.chmod(0o600)
    file.parent.mkdir()
    file.symlink_to(kept)
    inventory_file.remove(str(file), ["big"])
    assert file.is_symlink()
    assert inventory.load(str(kept)) == (ARM,)


def test_a_wrong_file_is_not_touched(file: Path) -> None:
    written(file, "nodes: [")
    with pytest.raises(UsageError, match="not YAML"):
        inventory_file.add(str(file), ARM)
    assert file.read_text() == "nodes: ["
