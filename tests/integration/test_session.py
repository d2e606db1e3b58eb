"""Several builds in one session: what they share, and that tags move when all of them are ready and not before."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from registry_server import MemoryRegistry, Served

from executor.protocol import BuildOptions
from executor.registry.reference import parse as reference
from executor.registry.registry_settings import RegistrySettings
from orchestrator import build, publish, registries, session
from orchestrator.nodes.command_node import CommandNode
from orchestrator.nodes.local_node import LocalNode
from orchestrator.outputs import Push
from orchestrator.publish import PreparedImage
from orchestrator.request import BuildRequest
from orchestrator.session import Session
from orchestrator.view import events
from platforms.errors import BuildError, UsageError
from platforms.parsing import parse

ROOT = Path(__file__).resolve().parents[2]


@asynccontextmanager
async def opened(store: Path, seen: list[events.Event] | None = None) -> AsyncIterator[Session]:
    told = [] if seen is None else seen
    async with session.opened(
        (LocalNode(None),), str(store), RegistrySettings(), registries.direct, told.append
    ) as found:
        yield found


def request(folder: Path, host: str, name: str, step: str, platforms: str = "linux/amd64") -> BuildRequest:
    """A build of the Dockerfile with ``step`` on busybox, pushed as ``name:1``."""
    context = folder / name
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM {host}/busybox\n{step}\n")
    return BuildRequest(
        context=str(context),
        platforms=tuple(map(parse, platforms.split(","))),
        tags=(reference(f"{host}/{name}:1"),),
        outputs=(Push(),),
        options=BuildOptions(root=str(folder / "store")),
    )


def test_builds_of_a_session_agree_on_a_base_that_is_asked_for_once(
    tmp_path: Path, server: tuple[MemoryRegistry, Served]
) -> None:
    registry, found = server
    seen: list[events.Event] = []

    async def both() -> None:
        async with opened(tmp_path / "store", seen) as one:
            first = await build.build(one, request(tmp_path, found.host, "first", "RUN echo 1 > /1"))
            media_type, data = registry.manifests["busybox", "latest"]
            registry.add_manifest("busybox", "latest", media_type, data.replace(b"{", b"{ ", 1))  # the tag moves on
            second = await build.build(one, request(tmp_path, found.host, "second", "RUN echo 2 > /2"))
        assert first.images[0].manifest.layers[0] == second.images[0].manifest.layers[0]

    asyncio.run(both())
    assert len([each for each in found.asked if each.path.endswith("/busybox/manifests/latest")]) == 1
    assert sum(isinstance(each, events.Resolved) for each in seen) == 1
    assert registry.manifests["first", "1"] != registry.manifests["second", "1"]


def test_builds_of_a_session_may_go_on_at_once(tmp_path: Path, server: tuple[MemoryRegistry, Served]) -> None:
    registry, found = server

    async def both() -> None:
        async with opened(tmp_path / "store") as one:
            wanted = [request(tmp_path, found.host, name, f"RUN echo {name} > /f") for name in ("first", "second")]
            await asyncio.gather(*(build.build(one, each) for each in wanted))

    asyncio.run(both())
    assert {name for name, tag in registry.manifests if tag == "1"} == {"first", "second"}


def test_what_is_prepared_is_there_by_digest_and_has_no_tag(
    tmp_path: Path, server: tuple[MemoryRegistry, Served]
) -> None:
    registry, found = server

    async def prepared() -> tuple[PreparedImage, set[tuple[str, str]]]:
        async with opened(tmp_path / "store") as one:
            wanted = request(tmp_path, found.host, "app", "RUN echo 1 > /1", "linux/amd64,linux/arm64")
            ready = await build.prepare(one, wanted)
            before = set(registry.manifests)
            await publish.commit(ready, one.registry, one.emit)
        return ready, before

    ready, before = asyncio.run(prepared())
    digests = {ready.result.root.digest, *(each.descriptor.digest for each in ready.result.images)}
    assert {tag for name, tag in before if name == "app"} == digests
    assert [str(each.reference) for each in ready.tags] == [f"{found.host}/app:1"]
    assert registry.manifests["app", "1"] == registry.manifests["app", ready.result.root.digest]
    with pytest.raises(AttributeError):
        ready.tags = ()  # type: ignore[misc]


def test_no_tag_moves_when_one_of_two_builds_fails(tmp_path: Path, server: tuple[MemoryRegistry, Served]) -> None:
    registry, found = server

    async def release() -> None:
        async with opened(tmp_path / "store") as one:
            ready = [await build.prepare(one, request(tmp_path, found.host, "good", "RUN echo 1 > /1"))]
            ready.append(await build.prepare(one, request(tmp_path, found.host, "bad", "RUN exit 7")))
            for each in ready:
                await publish.commit(each, one.registry, one.emit)

    with pytest.raises(BuildError):
        asyncio.run(release())
    tags = {tag for name, tag in registry.manifests if name in ("good", "bad")}
    assert tags
    assert all(re.fullmatch("sha256:[0-9a-f]{64}", each) for each in tags)


def test_nodes_of_a_session_have_names_of_their_own(tmp_path: Path) -> None:
    async def twice() -> None:
        nodes = (CommandNode("arm", ("false",)), CommandNode("arm", ("true",)))
        async with session.opened(nodes, str(tmp_path), RegistrySettings(), registries.direct, lambda _: None):
            pytest.fail("executors of one node would be taken for those of the other")

    with pytest.raises(UsageError, match="two nodes are called arm"):
        asyncio.run(twice())


PROGRAM = """
import asyncio, sys
from orchestrator import prefork
with prefork.opened(None) as server:
    from pathlib import Path
    from test_session import request, session, LocalNode, build, RegistrySettings
    folder, host = Path(sys.argv[1]), sys.argv[2]
    async def both():
        node = LocalNode(server)
        connect = server.registries.connect
        async with session.opened((node,), str(folder / "store"), RegistrySettings(), connect, lambda _: None) as one:
            for name in ("first", "second"):
                await build.build(one, request(folder, host, name, f"RUN echo {name} > /f"))
    asyncio.run(both())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a process that asks registries")
def test_builds_of_a_session_ask_registries_by_one_process(
    tmp_path: Path, server: tuple[MemoryRegistry, Served]
) -> None:
    registry, found = server
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "integration")))
    environment = {**os.environ, "PYTHONPATH": paths, "KANIFOLD_DEBUG": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), found.host],
        env=environment, capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    begun = re.findall(r"kanifold-http\[(\d+)\] process begins", done.stderr)
    assert len(begun) == 1
    requests = re.findall(r"kanifold-http\[(\d+)\] request .*(?:first|second)", done.stderr)
    assert set(requests) == set(begun)
    assert {name for name, tag in registry.manifests if tag == "1"} == {"first", "second"}
