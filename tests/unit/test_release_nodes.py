"""Which nodes of a session an image of a release may be built on."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from executor.protocol import BuildOptions
from orchestrator.nodes import node_selection
from orchestrator.nodes.local_node import LocalNode
from orchestrator.release.release_build import nodes_of
from orchestrator.request import BuildRequest
from platforms.parsing import parse


async def nodes_of_both() -> tuple[list[str], list[str]]:
    """Return the nodes of an image that is built in a cluster, and of one that is built on this machine."""
    here, platforms = LocalNode(None), (parse("linux/amd64"), parse("linux/arm64"))
    chosen = node_selection.select(["local", "farm=kubernetes://test/builds?image=i"], ())
    assert chosen is not None
    session = node_selection.nodes(chosen, here, sends=True, platforms=platforms)
    request = BuildRequest(context=".", platforms=platforms, options=BuildOptions())
    entries = tuple(each for each in chosen.entries if each.name == "farm")
    there = replace(request, nodes=replace(chosen, entries=entries))
    return [each.name for each in nodes_of(session, there)], [each.name for each in nodes_of(session, request)]


def test_a_cluster_is_a_node_for_each_architecture() -> None:
    in_cluster, here = asyncio.run(nodes_of_both())
    assert in_cluster == ["farm/amd64", "farm/arm64"]
    assert here == ["local"]
