"""Which node a platform is built on, by what nodes say of themselves."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from executor import __version__, protocol
from executor.protocol import BuildOptions
from orchestrator.connection import Connection
from orchestrator.nodes import placement
from orchestrator.nodes.command_node import CommandNode
from orchestrator.nodes.inventory import NodeEntry
from orchestrator.nodes.local_node import LocalNode
from orchestrator.nodes.node import Description, ExecutorPool, Support
from orchestrator.nodes.node_selection import NodeSelection
from orchestrator.nodes.placement import Placements, build_platform, place, place_all
from orchestrator.plan import BuildPlan
from orchestrator.request import BuildRequest
from platforms.errors import EnvironmentUnfit, ProtocolError
from platforms.host import host
from platforms.parsing import parse
from platforms.platform import Platform

AMD64, ARM64, RISCV64, I386 = map(parse, ("linux/amd64", "linux/arm64", "linux/riscv64", "linux/386"))
UNFIT = Support(unfit=EnvironmentUnfit("cannot run it", remedy="install an emulator"))


class Told:
    """A node that is what a test says, and remembers what it was asked about. ``says`` are fields of its description.

    One called ``down`` cannot be reached, one called ``silent`` never answers.
    """

    def __init__(self, name: str, says: Mapping[str, Any] | None = None, **support: str) -> None:
        self.name = name
        self.asked: list[Sequence[Platform]] = []
        known = {"amd64": AMD64, "arm64": ARM64, "riscv64": RISCV64, "i386": I386}
        self._says = {"isolation": "namespaces", **(says or {})}
        self._support = {
            known[platform]: UNFIT if how == "no" else Support("" if how == "perhaps" else how)
            for platform, how in support.items()
        }

    async def describe(self, platforms: Sequence[Platform]) -> Description:
        self.asked.append(platforms)
        if self.name == "silent":
            await asyncio.Event().wait()
        if self.name == "down":
            raise EnvironmentUnfit("node down cannot be reached", why="no route to host", remedy="start it")
        found = tuple((each, self._support[each]) for each in platforms)
        return Description(AMD64, found, __version__, protocol.VERSION, shares_disk=self.name == "local", **self._says)

    async def start(self) -> Connection:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


def placed(request: BuildRequest, nodes: Sequence[Told], plan: BuildPlan | None = None) -> Placements:
    return asyncio.run(place_all(request, plan, nodes))


@pytest.mark.parametrize(
    ("first", "second", "chosen"),
    [
        ("native", "native", "first"),
        ("native", "qemu-aarch64", "first"),
        ("qemu-aarch64", "native", "second"),
        ("perhaps", "qemu-aarch64", "second"),
        ("no", "perhaps", "second"),
        ("no", "no", "first"),
    ],
)
def test_native_comes_before_emulated_and_that_before_unknown(first: str, second: str, chosen: str) -> None:
    nodes = (Told("first", arm64=first), Told("second", arm64=second))
    (placement,) = placed(BuildRequest(context=".", platforms=(ARM64,)), nodes).each
    assert placement.node.name == chosen
    assert placement.how == nodes[chosen == "second"]._support[ARM64].how
    assert (placement.support.unfit is None) == (second != "no")


def test_each_platform_has_the_node_that_is_best_for_it() -> None:
    nodes = (Told("amd", amd64="native", arm64="qemu-aarch64"), Told("arm", amd64="qemu-x86_64", arm64="native"))
    placements = placed(BuildRequest(context=".", platforms=(ARM64, AMD64)), nodes).each
    assert [(each.platform, each.node.name, each.how) for each in placements] == [
        (ARM64, "arm", "native"),
        (AMD64, "amd", "native"),
    ]


@pytest.mark.parametrize("others", [(), (Told("other", arm64="no"),)], ids=["alone", "among others"])
def test_an_executor_elsewhere_fetches_the_emulator_that_is_named(others: tuple[Told, ...]) -> None:
    named = BuildOptions(emulator_image=f"registry.example.com/qemu@sha256:{'1' * 64}")
    nodes = (Told("far", arm64="no"), *others)
    (placement,) = placed(BuildRequest(context=".", platforms=(ARM64,), options=named), nodes).each
    assert (placement.node.name, placement.how, placement.support.unfit) == ("far", "emulated", None)
    (placement,) = placed(
        BuildRequest(context=".", platforms=(ARM64,), options=named), [Told("local", arm64="no")]
    ).each
    assert placement.support.unfit is not None, "what can be had here is here by now"


def test_nodes_are_not_asked_about_programs_that_nothing_runs(tmp_path: Path) -> None:
    from orchestrator import plan as planning

    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    request = BuildRequest(context=str(tmp_path), platforms=(RISCV64,))
    plan: BuildPlan | None = planning.at_hand(request)
    node = Told("only")
    (placement,) = placed(request, (node,), plan).each
    assert node.asked == [()]
    assert (placement.how, placement.support.unfit) == ("", None)


# -- this machine and others ----------------------------------------------------------------------------------------


def requested(
    *platforms: Platform, entries: Sequence[NodeEntry] = (), forced: Mapping[Platform, str] | None = None
) -> BuildRequest:
    selected = NodeSelection(tuple(entries), tuple((forced or {}).items()))
    return BuildRequest(context=".", platforms=platforms, nodes=selected)


def names(found: Placements) -> list[str]:
    return [each.node.name for each in found.each]


HERE = {"processors": 4}


@pytest.fixture(autouse=True)
def nothing_else_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has nothing to do."""
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))


def local(**support: str) -> Told:
    return Told("local", HERE, **({"amd64": "native", "arm64": "qemu-aarch64"} | support))


def test_what_this_machine_runs_natively_is_built_here_and_nobody_is_asked() -> None:
    other = Told("other", amd64="native")
    assert names(placed(requested(AMD64), (local(), other))) == ["local"]
    assert other.asked == []


def test_nobody_is_asked_when_no_program_is_run(tmp_path: Path) -> None:
    from orchestrator import plan as planning

    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    request = replace(requested(ARM64, RISCV64), context=str(tmp_path))
    other = Told("other", arm64="native")
    assert names(placed(request, (local(), other), planning.at_hand(request))) == ["local", "local"]
    assert other.asked == []


def test_nobody_is_asked_for_a_platform_that_only_gets_what_another_makes(tmp_path: Path) -> None:
    """A cross compiler on the build platform: of the other platforms no program is run."""
    from orchestrator import plan as planning

    own = "linux/amd64" if host().architecture == "amd64" else "linux/arm64"
    (tmp_path / "Dockerfile").write_text(
        f"FROM --platform={own} base AS tools\nRUN make\nFROM base\nCOPY --from=tools /out /\n"
    )
    request = replace(requested(parse(own), RISCV64), context=str(tmp_path))
    here, other = local(arm64="native", riscv64="no"), Told("other", riscv64="native")
    found = placed(request, (here, other), planning.at_hand(request))
    assert names(found) == ["local", "local"]
    assert found.each[1].why == "no program of it is run"
    assert other.asked == []


def test_a_node_is_asked_when_it_may_be_better_than_an_emulator() -> None:
    arm, foreign = Told("arm", arm64="native", amd64="no"), Told("foreign", arm64="no", amd64="no")
    known = (NodeEntry("foreign", "ssh://foreign", (RISCV64,)),)
    found = placed(requested(AMD64, ARM64, entries=known), (local(), foreign, arm))
    assert names(found) == ["local", "arm"]
    assert foreign.asked == [], "the user has said that it builds something else"
    assert [each.why for each in found.each] == ["runs it natively", "runs it natively"]


def test_more_than_this_machine_has_processors_for_goes_to_others() -> None:
    here = Told("local", {"processors": 1}, amd64="native", i386="native")
    other = Told("other", amd64="native", i386="native")
    assert names(placed(requested(AMD64, I386), (here, other))) == ["local", "other"]


def test_the_least_loaded_comes_first() -> None:
    busy = Told("busy", {"processors": 4, "load": 3.0}, arm64="native")
    idle = Told("idle", {"processors": 4}, arm64="native")
    (found,) = placed(requested(ARM64), (busy, idle)).each
    assert (found.node.name, found.why) == ("idle", "runs it natively, before 1 more")
    assert [each.node.name for each in found.others] == ["busy"]


def test_jobs_of_the_build_are_load_too() -> None:
    nodes = [Told(name, {"processors": 4}, amd64="native", i386="native") for name in ("one", "two")]
    assert names(placed(requested(AMD64, I386), nodes)) == ["one", "two"]


def test_a_node_has_places_for_as_many_jobs_as_the_user_says() -> None:
    nodes = [
        Told("one", {"processors": 16}, amd64="native", i386="native"),
        Told("two", {"processors": 2, "load": 1.9}, amd64="native", i386="native"),
    ]
    entries = (NodeEntry("one", "ssh://one", max_jobs=1),)
    found = placed(requested(AMD64, I386, entries=entries), nodes)
    assert names(found) == ["one", "two"]
    assert [each.most for each in found.each] == [1, 2]


def test_load_is_for_each_processor_and_jobs_for_each_place() -> None:
    loads = {"processors": 2, "load": 3.0}
    nodes = [Told(name, loads, arm64="native", i386="native") for name in ("one", "two")]
    entries = (NodeEntry("two", "ssh://two", max_jobs=1),)
    assert names(placed(requested(ARM64, I386, entries=entries), nodes)) == ["one", "two"]


def test_native_with_a_queue_comes_before_emulated() -> None:
    arm = Told("arm", {"processors": 1}, arm64="native", riscv64="native", amd64="no")
    entries = (NodeEntry("arm", "ssh://arm", max_jobs=1),)
    found = placed(requested(ARM64, RISCV64, entries=entries), (local(riscv64="qemu-riscv64"), arm))
    assert names(found) == ["arm", "arm"]


def test_a_node_that_is_down_is_left_out_with_a_warning() -> None:
    found = placed(requested(ARM64), (local(), Told("down")))
    assert names(found) == ["local"]
    assert found.each[0].why == "no node runs it natively; down cannot be used"
    (skipped,) = found.skipped
    assert skipped.warning.what == "node down is not used: node down cannot be reached"
    assert (skipped.warning.why, skipped.warning.remedy) == ("no route to host", "start it")


def test_a_silent_node_is_not_waited_for_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "PATIENCE", 0.05)
    found = placed(requested(ARM64), (local(), Told("silent")))
    assert names(found) == ["local"]
    assert "does not answer" in found.skipped[0].warning.what


def test_this_machine_runs_any_number_of_jobs_unless_the_user_says_how_many() -> None:
    assert [each.most for each in placed(requested(AMD64), (local(), Told("other", amd64="native"))).each] == [0]
    entries = (NodeEntry("local", "local", max_jobs=3),)
    found = placed(requested(AMD64, entries=entries), (local(), Told("other", amd64="native")))
    assert [each.most for each in found.each] == [3]


def test_a_node_that_cannot_isolate_steps_is_left_out_with_a_warning() -> None:
    nodes = (local(), Told("arm", {"isolation": ""}, arm64="native"))
    found = placed(requested(ARM64), nodes)
    assert names(found) == ["local"]
    (skipped,) = found.skipped
    assert "cannot run steps" in skipped.warning.what
    assert names(placed(requested(ARM64, forced={ARM64: "arm"}), nodes)) == ["arm"]


def test_a_node_that_is_down_is_an_error_if_the_user_wants_it() -> None:
    with pytest.raises(EnvironmentUnfit, match="cannot be reached"):
        placed(requested(ARM64, forced={ARM64: "down"}), (local(), Told("down")))


def test_a_platform_is_built_where_the_user_wants_it() -> None:
    other = Told("other", amd64="qemu-x86_64", arm64="native")
    found = placed(requested(AMD64, ARM64, forced={AMD64: "other", ARM64: "local"}), (local(), other))
    assert names(found) == ["other", "local"]
    assert {each.why for each in found.each} == {"as --platform says"}
    assert [each.others for each in found.each] == [(), ()], "it goes nowhere else"


def test_a_platform_that_no_node_has_is_one_error() -> None:
    here = Told("local", HERE, riscv64="no")
    other = Told("other", {"emulators": ("arm64",)}, riscv64="no")
    (found,) = placed(requested(RISCV64), (here, other, Told("down"))).each
    assert found.support.unfit is not None
    problem = found.support.unfit.problem
    assert problem.what == "no node runs programs of linux/riscv64"
    assert problem.why == (
        "local is linux/amd64, without an emulator for it; other is linux/amd64, without an emulator for it; "
        "down cannot be used"
    )
    assert problem.remedy == "install an emulator", "what this machine lacks"


def test_a_platform_that_no_node_may_build_is_one_error() -> None:
    entries = (NodeEntry("one", "ssh://one", (AMD64,)), NodeEntry("two", "ssh://two", (AMD64,)))
    nodes = (Told("one", amd64="native", arm64="native"), Told("two", amd64="native", arm64="native"))
    with pytest.raises(EnvironmentUnfit, match="no node runs programs of linux/arm64") as caught:
        placed(requested(AMD64, ARM64, entries=entries), nodes)
    assert caught.value.problem.why == "one is declared for linux/amd64; two is declared for linux/amd64"
    assert "kanifold node add" in caught.value.problem.remedy


def test_without_any_answer_there_is_no_build() -> None:
    with pytest.raises(EnvironmentUnfit, match="cannot be reached"):
        placed(requested(ARM64), (Told("down"),))


# -- what nodes say -------------------------------------------------------------------------------------------------


def greeter(**fields: object) -> CommandNode:
    """A node whose executor says of itself what ``fields`` say, and then reads to the end of its stdin."""
    greeting = {"type": "hello", "version": protocol.VERSION, "kanifold": "0", **fields}
    program = f"import json, sys; print(json.dumps({greeting!r}), flush=True); sys.stdin.read()"
    return CommandNode("elsewhere", (sys.executable, "-c", program))


async def described(node: CommandNode, *platforms: Platform) -> Description:
    try:
        return await node.describe(platforms)
    finally:
        await node.close()


def test_a_command_is_described_by_its_greeting() -> None:
    node = greeter(host="linux/amd64/v3", isolation="namespaces", processors=7, emulators=["arm64"])
    found = asyncio.run(described(node, AMD64, ARM64, RISCV64, parse("linux/amd64/v4"), parse("linux/386")))
    assert (found.platform, found.isolation, found.processors) == (parse("linux/amd64/v3"), "namespaces", 7)
    assert (found.kanifold, found.protocol, found.shares_disk) == ("0", protocol.VERSION, False)
    assert (found.native, found.emulated) == ((AMD64,), (ARM64,))
    assert found.runs(parse("linux/386")) == Support()
    unfit = found.runs(RISCV64).unfit
    assert unfit is not None
    assert "elsewhere" in unfit.problem.what
    assert "arm64" in unfit.problem.why
    assert "linux/riscv64" in unfit.problem.remedy


@pytest.mark.parametrize("host", ["", "linux", "../..", "linux/amd64/v3/v4/v5"])
def test_a_greeting_without_a_platform_is_none(host: str) -> None:
    with pytest.raises(ProtocolError, match="elsewhere"):
        asyncio.run(described(greeter(host=host), AMD64))


def test_a_command_that_is_not_there_cannot_be_a_node() -> None:
    with pytest.raises(EnvironmentUnfit, match="elsewhere"):
        asyncio.run(described(CommandNode("elsewhere", ("/no/such/executor",)), AMD64))


SCHEDULED = {"isolation": "", "scheduled": True}
FARM = NodeEntry("farm", "kubernetes://c/n?image=i")


def test_a_cluster_is_a_node_for_each_architecture_under_one_name() -> None:
    nodes = (
        Told("farm/amd64", SCHEDULED, amd64="native", arm64="emulated"),
        Told("farm/arm64", SCHEDULED, amd64="emulated", arm64="native"),
    )
    found = placed(requested(AMD64, ARM64, entries=(FARM,), forced={ARM64: "farm"}), nodes)
    assert [(each.node.name, each.how, each.most) for each in found.each] == [
        ("farm/amd64", "native", 0),
        ("farm/arm64", "native", 0),
    ]
    limited = placed(requested(AMD64, entries=(replace(FARM, max_jobs=3),)), nodes)
    assert limited.each[0].most == 3


def test_an_architecture_that_a_cluster_has_not_is_emulated_where_it_can_be() -> None:
    nodes = (
        Told("farm/arm64", {**SCHEDULED, "absent": True}, arm64="no"),
        Told("farm/amd64", SCHEDULED, arm64="emulated"),
    )
    found = placed(requested(ARM64, entries=(FARM,)), nodes)
    assert (found.each[0].node.name, found.each[0].how) == ("farm/amd64", "emulated")
    assert [each.node.name for each in found.asked] == ["farm/amd64"], "what is not there has no say in BUILDPLATFORM"
    nowhere = placed(requested(ARM64, entries=(FARM,)), nodes[:1])
    assert nowhere.each[0].support.unfit is not None


def test_who_has_described_the_node_does_its_first_job() -> None:
    async def begin() -> list[int]:
        node = greeter(host="linux/amd64")
        await node.describe(())
        await node.describe(())
        first, second = await node.start(), await node.start()
        pids = [first.worker.process.pid, second.worker.process.pid]
        await node.describe(())
        third = await node.start()
        for each in (first, second, third):
            await each.end()
        await node.close()
        return [*pids, third.worker.process.pid]

    assert len(set(asyncio.run(begin()))) == 3


def test_executors_that_nobody_acquires_are_ended() -> None:
    async def begin() -> tuple[int, int | None]:
        node, pool = greeter(host="linux/amd64"), ExecutorPool()
        pool.start((node, node))
        acquired = await pool.acquire(node)
        pool.start((node, node))  # has no effect: they were started before
        (waiting,) = pool._starting["elsewhere"]
        other = (await waiting.task).worker.process
        await pool.release()
        assert other.ended.done()
        await acquired.end()
        await pool.release()
        return other.pid, acquired.worker.process.pid

    one, other = asyncio.run(begin())
    assert one != other


@pytest.mark.skipif(sys.platform != "linux", reason="executors run on Linux")
def test_this_machine_tries_what_it_is_asked_about() -> None:
    async def describe() -> Description:
        return await LocalNode(None).describe((host(),))

    found = asyncio.run(describe())
    assert (found.platform, found.native, found.shares_disk) == (host(), (host(),), True)
    assert found.runs(host()).emulation is not None
    assert (found.kanifold, found.protocol) == (__version__, protocol.VERSION)
    assert found.processors > 0


@pytest.mark.skipif(sys.platform != "linux", reason="executors run on Linux")
def test_this_machine_knows_its_isolation_once_an_executor_has_said_it() -> None:
    async def describe() -> tuple[str, str, str]:
        node = LocalNode(None)
        before = (await node.describe(())).isolation
        executor = await node.start()
        after = (await node.describe(())).isolation
        await executor.end()
        await node.close()
        return before, after, executor.greeting.isolation

    before, after, said = asyncio.run(describe())
    assert before == ""
    assert after == said


def test_nothing_is_known_of_a_platform_that_was_not_asked_about() -> None:
    node = Told("one")
    placement = place(RISCV64, ((node, asyncio.run(node.describe(()))),))
    assert placement.support == Support()


@pytest.mark.parametrize(
    ("own", "nodes", "found"),
    [
        (ARM64, [Told("one", amd64="native")], AMD64),
        (AMD64, [Told("one", amd64="native")], AMD64),
        (ARM64, [Told("local", amd64="native")], ARM64),
        (RISCV64, [Told("one", {}, amd64="native"), Told("two", amd64="emulated")], AMD64),
    ],
    ids=["the node's", "this machine's", "that of this machine, which builds", "that of the first node"],
)
def test_the_build_platform_is_this_machines_where_a_node_runs_it(
    own: Platform, nodes: list[Told], found: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platforms.host.default_platform", lambda: own)
    monkeypatch.setattr("sys.platform", "linux")
    placements = placed(BuildRequest(".", platforms=(AMD64,)), nodes)
    assert build_platform(placements, nodes) == found
