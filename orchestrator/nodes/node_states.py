"""Asking nodes how they are: all at once, each by an executor that gets no job.

A cluster is asked by its API; executors are started there only where kanifold may be sent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from executor import protocol
from orchestrator.connection import Connection
from orchestrator.nodes import node_selection
from orchestrator.nodes.inventory import KUBERNETES, NodeEntry
from orchestrator.nodes.node import Description, Node
from orchestrator.nodes.placement import without_isolation
from platforms import emulation
from platforms.errors import EnvironmentUnfit, KanifoldError, NotBootstrapped, Problem, ProtocolError

PATIENCE: Final = 15.0
"""Seconds for a node that kanifold need not be sent to."""


class NodeState(msgspec.Struct, frozen=True):
    """A node of the inventory, and how it is."""

    entry: NodeEntry
    description: Description | None = None
    """None if it has not answered."""
    problem: Problem | None = None
    """Why it cannot be used."""
    latency: float = 0.0
    """Seconds that a message and its reply take."""
    seconds: float = 0.0
    """How long it took until an executor was there."""

    @property
    def word(self) -> str:
        """``ok``; ``down`` if it has not answered; ``inactive`` if it has, and lacks kanifold, which builds send there;
        ``unfit`` if it cannot run steps."""
        if self.problem is None:
            return "ok"
        if self.problem.kind == NotBootstrapped.__name__:
            return "inactive"
        return "down" if self.description is None else "unfit"


def examine(entries: Sequence[NodeEntry], bootstrap: bool = False, patience: float = PATIENCE) -> tuple[NodeState, ...]:
    """Return how ``entries`` are, in their order, a cluster once for each of its architectures. One that has not
    answered after ``patience`` seconds is down.

    ``bootstrap``: whether kanifold may be sent to those that the user has not refused it for.
    """
    return asyncio.run(_examine_all(entries, bootstrap, patience))


async def _examine_all(entries: Sequence[NodeEntry], bootstrap: bool, patience: float) -> tuple[NodeState, ...]:
    found = await asyncio.gather(*(_examine(each, bootstrap, patience) for each in entries))
    return tuple(state for states in found for state in states)


async def _examine(entry: NodeEntry, bootstrap: bool, patience: float) -> tuple[NodeState, ...]:
    if entry.url.startswith(KUBERNETES):
        return await _examine_cluster(entry, bootstrap, patience)
    return (await _examine_machine(entry, bootstrap, patience),)


async def _examine_cluster(entry: NodeEntry, starts: bool, patience: float) -> tuple[NodeState, ...]:
    from orchestrator.nodes.kubernetes import cluster_check

    began = time.monotonic()
    try:
        async with asyncio.timeout(patience):
            found = await cluster_check.check(entry, starts=starts)
    except TimeoutError:
        return (NodeState(entry, problem=_silent(entry.name, patience).problem, seconds=time.monotonic() - began),)
    except KanifoldError as error:
        return (NodeState(entry, problem=error.problem, seconds=time.monotonic() - began),)
    return tuple(NodeState(each.entry, each.description, each.problem, each.latency, each.seconds) for each in found)


async def _examine_machine(entry: NodeEntry, bootstrap: bool, patience: float) -> NodeState:
    node, began = node_selection.node(entry, sends=bootstrap), time.monotonic()
    try:
        async with asyncio.timeout(patience):
            return await _asked(entry, node, began)
    except TimeoutError:
        return NodeState(entry, problem=_silent(entry.name, patience).problem, seconds=time.monotonic() - began)
    except KanifoldError as error:
        return NodeState(entry, problem=error.problem, seconds=time.monotonic() - began)
    finally:
        await node.close()


async def _asked(entry: NodeEntry, node: Node, began: float) -> NodeState:
    description = await node.describe(emulation.USUAL)
    executor = await node.start()
    seconds = time.monotonic() - began
    try:
        latency = await _round_trip(executor)
    finally:
        await executor.end()
    greeting = executor.greeting
    if description.shares_disk:
        spare = greeting.resources or protocol.Resources()
        description = replace(
            description, isolation=greeting.isolation, load=spare.load, memory=spare.memory, disk=spare.disk
        )
    problem = None if greeting.isolation else without_isolation(entry.name).problem
    return NodeState(entry, description, problem, latency, seconds)


async def _round_trip(executor: Connection) -> float:
    """Return the seconds from the end of what an executor is sent to what it says to that."""
    executor.worker.stdin.close()
    began = time.monotonic()
    try:
        while not isinstance(await executor.receive(), protocol.Failed):
            pass
    except ProtocolError:  # it has ended at once
        pass
    return time.monotonic() - began


def _silent(name: str, patience: float) -> EnvironmentUnfit:
    return EnvironmentUnfit(
        f"node {name} does not answer",
        why=f"there was no executor after {patience:.0f} seconds",
        remedy=f"see what is slow there: kanifold --debug node check {name}",
    )
