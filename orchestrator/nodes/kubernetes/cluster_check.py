"""How a cluster is: what the account may do there, which architectures there are, and whether executors start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from executor import protocol
from orchestrator.nodes.inventory import NodeEntry
from orchestrator.nodes.kubernetes import address
from orchestrator.nodes.kubernetes.cluster import Cluster
from orchestrator.nodes.kubernetes.cluster_api import (
    OPTIONAL_VERBS,
    VERBS,
    APIUnreachableError,
    KubernetesClient,
    Verb,
)
from orchestrator.nodes.kubernetes.kubernetes_node import KubernetesNode
from orchestrator.nodes.node import Description
from platforms import emulation
from platforms.errors import EnvironmentUnfit, KanifoldError, Problem


class Found(msgspec.Struct, frozen=True):
    """A cluster, or what it is for one architecture. ``latency`` and ``seconds`` as for ``NodeState``."""

    entry: NodeEntry
    description: Description | None = None
    problem: Problem | None = None
    latency: float = 0.0
    seconds: float = 0.0


async def check(entry: NodeEntry, *, starts: bool) -> tuple[Found, ...]:
    """Return how the cluster of ``entry`` is: once for each of its architectures, or once if it cannot be used.

    ``starts``: whether an executor is started for each of them. Raises ``KanifoldError``.
    """
    where = address.parse(entry.url)
    cluster = Cluster(where, entry.name, f"check\0{time.time_ns()}")
    cluster.use()
    try:
        nodes = await cluster.nodes()
        began = time.monotonic()
        await _may(cluster.client, VERBS[0])
        latency = time.monotonic() - began
        missing = await missing_verbs(cluster.client, VERBS)
        if missing:
            return (Found(entry, problem=_forbidden(entry.name, cluster.client.namespace, missing).problem),)
        there = () if nodes is None else tuple(dict.fromkeys(each.architecture for each in nodes))
        architectures = where.architectures or there
        if not architectures:
            return (
                Found(entry, problem=_unknown(entry.name, await missing_verbs(cluster.client, OPTIONAL_VERBS)).problem),
            )
        made = [KubernetesNode(cluster, entry, each) for each in architectures]
        return tuple(await asyncio.gather(*(_of(each, entry, latency, starts=starts) for each in made)))
    finally:
        await cluster.release()


async def missing_verbs(client: KubernetesClient, verbs: Sequence[Verb]) -> tuple[Verb, ...]:
    """Return which of ``verbs`` the account may not do, by SelfSubjectAccessReviews. Raises ``EnvironmentUnfit``."""
    allowed = await asyncio.gather(*(_may(client, each) for each in verbs))
    return tuple(each for each, may in zip(verbs, allowed, strict=True) if not may)


async def _may(client: KubernetesClient, wanted: Verb) -> bool:
    try:
        return await client.may(wanted)
    except APIUnreachableError as error:
        raise EnvironmentUnfit("cannot reach the cluster", why=str(error)) from error


def words(verb: Verb) -> str:
    """Return ``create jobs.batch``, ``get pods/exec``."""
    does, group, resource, subresource = verb
    return f"{does} {resource}{'.' + group if group else ''}{'/' + subresource if subresource else ''}"


def _forbidden(name: str, namespace: str, missing: Sequence[Verb]) -> EnvironmentUnfit:
    return EnvironmentUnfit(
        f"node {name}: the account lacks permissions in the namespace {namespace}",
        why=", ".join(map(words, missing)),
        remedy="bind it to the Role of docs/kubernetes.md",
    )


def _unknown(name: str, missing: Sequence[Verb]) -> EnvironmentUnfit:
    return EnvironmentUnfit(
        f"node {name}: the architectures of the cluster are not known",
        why=f"the account may not {', '.join(map(words, missing))}" if missing else "it has no nodes with Linux",
        remedy="name them in the node's address: arch=amd64&arch=arm64",
    )


async def _of(node: KubernetesNode, entry: NodeEntry, latency: float, *, starts: bool) -> Found:
    own = replace(entry, name=node.name)
    began = time.monotonic()
    try:
        described = await node.describe(emulation.USUAL)
        if not starts:
            return Found(own, described, None, latency, time.monotonic() - began)
        executor = await node.start()
        try:
            greeting = executor.greeting
        finally:
            await executor.end()
    except KanifoldError as error:
        return Found(own, problem=error.problem, seconds=time.monotonic() - began)
    finally:
        await node.close()
    spare = greeting.resources or protocol.Resources()
    described = replace(
        described,
        kanifold=greeting.kanifold,
        processors=greeting.processors,
        isolation=greeting.isolation,
        emulators=greeting.emulators,
        support=tuple((each, node.supported(each, greeting.emulators)) for each, _ in described.support),
        load=spare.load,
        memory=spare.memory,
        disk=spare.disk,
    )
    problem = None if greeting.isolation else _without_isolation(node.name)
    return Found(own, described, problem, latency, time.monotonic() - began)


def _without_isolation(name: str) -> Problem:
    return EnvironmentUnfit(
        f"node {name} cannot run steps",
        why="no way to isolate them works in its Pods",
        remedy="choose another profile in the node's address: docs/kubernetes.md says what each allows",
    ).problem
