"""``kanifold node …`` and ``kanifold build --dry-run``, with real executors in place of those that ssh would start."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from protocol_nodes import Marked, remote

from executor import __version__
from orchestrator.cli import main
from orchestrator.nodes import node_selection
from orchestrator.nodes.command_node import CommandNode
from orchestrator.nodes.inventory import LOCAL, NodeEntry
from orchestrator.nodes.local_node import LocalNode
from orchestrator.nodes.node import Node
from platforms.host import default_platform

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="executors run on Linux")


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str


Kanifold = Callable[..., Said]


@pytest.fixture
def asked() -> list[tuple[str, bool]]:
    """The nodes that were made, and whether kanifold might be sent there."""
    return []


def _ignore(what: str) -> None:
    """Let a process with several threads fork."""


@pytest.fixture
def kanifold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: list[tuple[str, bool]]
) -> Iterator[Kanifold]:
    """The command, in a project of its own. ``ssh://far`` leads to an executor, any other address to nothing."""
    mark = Marked()

    def made(entry: NodeEntry, *, sends: bool) -> Node:
        asked.append((entry.url, sends))
        if entry.url == LOCAL:
            return LocalNode(None)
        if entry.url == "ssh://far":
            far = remote(tmp_path / "far", mark)
            far.name = entry.name
            return far
        return CommandNode(entry.name, ("sh", "-c", "echo no route to host >&2; exit 255"))

    def run(*arguments: str) -> Said:
        monkeypatch.setattr("sys.argv", ["kanifold", *arguments])
        status = main()
        out, err = capsys.readouterr()
        return Said(status, out, err)

    monkeypatch.setattr(node_selection, "node", made)
    monkeypatch.setattr("orchestrator.forking.threads.check_single", _ignore)  # tests have threads of servers
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("KANIFOLD_NODES", raising=False)
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    yield run
    assert mark.wait_until_gone(5) == [], "a process is left"


def test_a_node_is_added_listed_and_removed(kanifold: Kanifold) -> None:
    assert kanifold("node", "add", "far", "ssh://far", "--platform", "linux/arm64,linux/amd64").status == 0
    assert kanifold("node", "add", "down", "ssh://down", "--max-jobs", "2", "--no-bootstrap").status == 0
    said = kanifold("node", "ls")
    assert said.status == 0
    heading, here, far, down, _, *reason = (line.split() for line in said.out.splitlines())
    assert heading[:2] == ["NAME", "URL"]
    assert (here[0], here[-1]) == ("local", "ok")
    assert (far[0], far[1], far[-1]) == ("far", "ssh://far", "ok")
    assert __version__ in far
    assert (down[0], down[1], down[-1]) == ("down", "ssh://down", "down")
    assert reason[0][:2] == ["--", "down:"]
    assert "no route to host" in said.out
    assert kanifold("node", "rm", "far", "down").status == 0
    assert len(kanifold("node", "list").out.splitlines()) == 2


def test_programs_read_everything_about_a_node(kanifold: Kanifold) -> None:
    kanifold("node", "add", "far", "ssh://far", "--platform", "linux/amd64,linux/arm64")
    kanifold("node", "add", "down", "ssh://down")
    far, down = json.loads(kanifold("node", "inspect", "far", "down", "--format", "json").out)
    assert (far["name"], far["url"], far["state"], far["problem"]) == ("far", "ssh://far", "ok", None)
    assert far["platforms"] == ["linux/amd64", "linux/arm64"]
    description = far["description"]
    assert str(default_platform()) in description["native"]
    assert description["version"] == __version__
    assert description["processors"] > 0
    assert description["disk"] > 0
    assert description["memory"] > 0
    assert description["load"] >= 0
    assert 0 < description["latency"] < 10
    assert description["isolation"]
    assert (down["state"], down["description"]) == ("down", None)
    assert down["problem"]["why"] == "no route to host"
    assert [each["name"] for each in json.loads(kanifold("node", "ls", "--format", "json").out)] == [
        "local",
        "far",
        "down",
    ]


def test_a_check_says_what_is_wrong_and_fails(kanifold: Kanifold) -> None:
    kanifold("node", "add", "far", "ssh://far")
    kanifold("node", "add", "down", "ssh://down")
    said = kanifold("node", "check")
    assert said.status == 3
    assert [line.split(":")[0] for line in said.out.splitlines()[:3]] == ["ok local", "ok far", "-- down"]
    assert "no route to host" in said.out
    assert kanifold("node", "check", "far").status == 0
    assert kanifold("node", "check", "fra").status == 2


def test_kanifold_is_sent_to_nodes_only_when_that_was_asked_for(
    kanifold: Kanifold, asked: list[tuple[str, bool]]
) -> None:
    kanifold("node", "add", "far", "ssh://far")
    commands = (("ls",), ("inspect",), ("ls", "--bootstrap"), ("check",), ("check", "--no-bootstrap"))
    sent = []
    for command in commands:
        asked.clear()
        kanifold("node", *command)
        sent.append(dict(asked)["ssh://far"])
    assert sent == [False, False, True, True, False]


def test_a_project_proposes_an_address_that_the_user_takes_up(kanifold: Kanifold) -> None:
    assert kanifold("node", "add", "far").status == 2
    Path("kanifold.yaml").write_text("nodes: {far: {url: ssh://far, platforms: linux/amd64, max-jobs: 3}}")
    said = kanifold("node", "add", "far")
    assert (said.status, said.out.startswith("added far, ssh://far;")) == (0, True)
    (found,) = json.loads(kanifold("node", "inspect", "far", "--format", "json").out)
    assert (found["platforms"], found["max_jobs"]) == (["linux/amd64"], 3)


def test_an_inventory_with_an_error_is_shown_with_its_line(kanifold: Kanifold, tmp_path: Path) -> None:
    kanifold("node", "add", "far", "ssh://far")
    file = tmp_path / "config" / "kanifold" / "nodes.yaml"
    file.write_text(file.read_text() + "    max-job: 2\n")
    for command in (("node", "ls"), ("build", ".", "--platform", "linux/s390x"), ("node", "add", "new", "ssh://new")):
        said = kanifold(*command)
        assert said.status == 2
        assert f"{file}:4:5: nodes.far.max-job" in said.err
        assert "did you mean max-jobs?" in said.err


# -- dry runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def project() -> Path:
    """A project whose build runs programs."""
    Path("Dockerfile").write_text(
        "FROM --platform=$BUILDPLATFORM example.com/base AS tools\nRUN make\n"
        "FROM example.com/base\nCOPY --from=tools /out /\nRUN ./install\n"
    )
    return Path.cwd()


def test_a_dry_run_says_what_is_built_where_and_touches_nothing(
    kanifold: Kanifold, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KANIFOLD_ROOT", str(tmp_path / "store"))
    own = str(default_platform())
    kanifold("node", "add", "far", "ssh://far")
    said = kanifold(
        "build", ".", "--dry-run", "--platform", f"{own},linux/riscv64=far", "-t", "example.com/a:1", "--push"
    )
    assert said.status == 0, said.err
    rows = [line.split() for line in said.out.splitlines()]
    assert rows[1][:3] == [own, "local", "native"]
    assert rows[2][:3] == ["linux/riscv64", "far", "emulated"]
    assert "as --platform says" in said.out
    assert f"tools ({own}, on local), stage-1" in said.out
    assert said.out.splitlines()[-1] == "then push example.com/a:1"
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "far").exists()
    assert sorted(each.name for each in project.iterdir()) == ["Dockerfile"]


def test_a_dry_run_for_programs_is_json(kanifold: Kanifold, project: Path) -> None:
    own = str(default_platform())
    kanifold("node", "add", "down", "ssh://down")
    kanifold("node", "add", "far", "ssh://far", "--platform", own)
    plan = json.loads(kanifold("build", "--dry-run", "--progress", "rawjson", "--platform", f"{own},linux/riscv64").out)
    first, second = plan["platforms"]
    assert (first["platform"], first["node"], first["how"], first["why"]) == (
        own,
        "local",
        "native",
        "runs it natively",
    )
    assert second["node"] == "local"
    assert second["why"] == "no node runs it natively; down cannot be used"
    assert [each["name"] for each in first["stages"]] == ["tools", "stage-1"]
    assert [each["name"] for each in plan["skipped"]] == ["down"]
    assert plan["unasked"] == ["far"]
    assert plan["images"] == ["example.com/base"]


def test_nobody_is_asked_what_this_machine_builds_natively(kanifold: Kanifold, project: Path) -> None:
    kanifold("node", "add", "down", "ssh://down")
    own = str(default_platform())
    said = kanifold("build", ".", "--dry-run", "--platform", own)
    assert said.status == 0
    assert said.out.splitlines()[1].split()[:3] == [own, "local", "native"]
    said = kanifold("build", ".", "--dry-run", "--platform", own, "--node", "local,down")
    assert "not asked, as nothing would be built there: down" in said.out


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (("--platform", "linux/riscv64=down"), 1, "no route to host"),
        (("--platform", "linux/riscv64=dwon"), 2, "there is no node dwon (did you mean down?)"),
        (("--platform", "linux/riscv64="), 2, "no node is named"),
        (("--node", "dwon"), 2, "there is no node dwon (did you mean down?)"),
        (("--platform", "linux/sparc64"), 3, "no node runs programs of linux/sparc64"),
    ],
)
def test_what_cannot_be_is_one_error(
    kanifold: Kanifold, project: Path, arguments: tuple[str, ...], status: int, why: str
) -> None:
    kanifold("node", "add", "down", "ssh://down")
    for more in (("--dry-run",), ("-o", "type=oci,dest=out", "--progress", "plain")):
        said = kanifold("build", ".", *arguments, *more)
        assert said.status == status
        assert why in said.err
        assert said.err.count("ERROR") == 1
        assert said.out == ""
        assert [each.name for each in project.iterdir()] == ["Dockerfile"]
