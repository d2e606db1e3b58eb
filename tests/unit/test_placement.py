"""Which node a platform is built on, by what nodes say of themselves."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from executor import __version__, protocol
from orchestrator.connection import Connection
from orchestrator.nodes.command_node import CommandNode
from orchestrator.nodes.local_node import LocalNode
from orchestrator.nodes.node import Description, ExecutorPool, Support
from orchestrator.nodes.placement import place, place_all
from orchestrator.plan import BuildPlan
from orchestrator.request import BuildRequest
from platforms.errors import EnvironmentUnfit, ProtocolError
from platforms.host import host
from platforms.parsing import parse
from platforms.platform import Platform

AMD64, ARM64, RISCV64 = map(parse, ("linux/amd64", "linux/arm64", "linux/riscv64"))
UNFIT = Support(unfit=EnvironmentUnfit("cannot run it"))


class Told:
    """A node that is what a test says, and remembers what it was asked about."""

    def __init__(self, name: str, **support: str) -> None:
        self.name = name
        self.asked: list[Sequence[Platform]] = []
        known = {"amd64": AMD64, "arm64": ARM64, "riscv64": RISCV64}
        self._support = {
            known[platform]: UNFIT if how == "no" else Support("" if how == "perhaps" else how)
            for platform, how in support.items()
        }

    async def describe(self, platforms: Sequence[Platform]) -> Description:
        self.asked.append(platforms)
        found = tuple((each, self._support[each]) for each in platforms)
        return Description(AMD64, found, __version__, protocol.VERSION)

    async def start(self) -> Connection:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


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
    (placement,) = asyncio.run(place_all(BuildRequest(context=".", platforms=(ARM64,)), None, nodes))
    assert placement.node.name == chosen
    assert placement.support == dict(nodes[chosen == "second"]._support)[ARM64]


def test_each_platform_has_the_node_that_is_best_for_it() -> None:
    nodes = (Told("amd", amd64="native", arm64="qemu-aarch64"), Told("arm", amd64="qemu-x86_64", arm64="native"))
    placements = asyncio.run(place_all(BuildRequest(context=".", platforms=(ARM64, AMD64)), None, nodes))
    assert [(each.platform, each.node.name, each.how) for each in placements] == [
        (ARM64, "arm", "native"),
        (AMD64, "amd", "native"),
    ]


def test_nodes_are_not_asked_about_programs_that_nothing_runs(tmp_path: Path) -> None:
    from orchestrator import plan as planning

    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    request = BuildRequest(context=str(tmp_path), platforms=(RISCV64,))
    plan: BuildPlan | None = planning.at_hand(request)
    node = Told("only")
    (placement,) = asyncio.run(place_all(request, plan, (node,)))
    assert node.asked == [()]
    assert (placement.how, placement.support.unfit) == ("", None)


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
        await asyncio.gather(*pool._starting["elsewhere"])
        (waiting,) = pool._starting["elsewhere"]
        other = waiting.result().worker.process
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
