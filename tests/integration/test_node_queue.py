"""A node does as many jobs at a time as it has places for; the others wait."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import Base
from protocol_nodes import Marked, build, remote

from executor import protocol
from executor.protocol import BuildOptions
from orchestrator.nodes.inventory import NodeEntry
from orchestrator.nodes.node_selection import NodeSelection
from orchestrator.outputs import CacheOnly
from orchestrator.request import BuildRequest
from orchestrator.view import events
from platforms.parsing import parse_list

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="executors run on Linux")


@pytest.mark.parametrize("most", [1, 2])
def test_jobs_beyond_the_capacity_of_a_node_wait(busybox: Base, tmp_path: Path, most: int) -> None:
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "Dockerfile").write_text("FROM --platform=$BUILDPLATFORM base\nRUN sleep 0.5\n")
    mark = Marked()
    request = BuildRequest(
        context=str(tmp_path / "context"),
        platforms=parse_list(["linux/amd64,linux/arm64,linux/riscv64"]),
        outputs=(CacheOnly(),),
        build_contexts=(("base", f"oci-layout://{busybox.layout}"),),
        nodes=NodeSelection((NodeEntry("elsewhere", "ssh://elsewhere", max_jobs=most),)),
        options=BuildOptions(root=str(tmp_path / "store"), no_cache=True),
    )
    seen: list[events.Event] = []
    build(request, remote(tmp_path / "far", mark), seen)
    running, highest, done = 0, 0, 0
    for each in seen:
        match each:
            case events.FromExecutor(message=protocol.Handshake()):
                running += 1
                highest = max(highest, running)
            case events.FromExecutor(message=protocol.Result()):
                running -= 1
                done += 1
    assert (highest, done) == (most, 3)
    assert mark.wait_until_gone(5) == []
