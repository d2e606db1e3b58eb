"""Remote caches on this machine for nodes with another disk: read and written over their pipes, and verified."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from conftest import Base
from msgspec.structs import replace
from protocol_nodes import Marked, build, remote

from executor.image.digest import sha256
from executor.protocol import BuildOptions, CacheBlob, CacheExport, CacheInDirectory, Finished
from executor.solver.cache import LayerRecord
from executor.solver.remote_entry import RemoteCacheEntry
from executor.store import blobs
from executor.store.store import Store, open_store
from orchestrator.node_caches import NodeCache, SharedSteps
from orchestrator.outputs import CacheOnly
from orchestrator.request import BuildRequest
from orchestrator.view import events
from platforms.errors import KanifoldError
from platforms.parsing import parse

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="executors run on Linux")


@dataclass
class Nodes:
    place: Path
    mark: Marked
    layout: Path

    def build(self, name: str, *, imports: bool) -> tuple[int, str, list[str]]:
        """Build on the node ``name``: how many RUN steps ran, the digest, and warnings."""
        context = self.place / "context"
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text(
            "FROM image AS one\nRUN cat /proc/sys/kernel/random/uuid > /one\n"
            "FROM image\nRUN cat /proc/sys/kernel/random/uuid > /two\nCOPY --from=one /one /copied\n"
        )
        cache = CacheInDirectory(str(self.place / "cache"))
        options = BuildOptions(
            root=str(self.place / "here"),
            cache_from=(cache,) if imports else (),
            cache_to=() if imports else (CacheExport(cache, every_stage=True),),
        )
        request = BuildRequest(
            str(context), platforms=(parse("linux/amd64"),), outputs=(CacheOnly(),), options=options,
            build_contexts=(("image", f"oci-layout://{self.layout}"),),
        )  # fmt: skip
        seen: list[events.Event] = []
        digest = build(request, remote(self.place / name, self.mark), seen).root.digest
        told = [each.message for each in seen if isinstance(each, events.FromExecutor)]
        ran = [each for each in told if isinstance(each, Finished) and not each.cached]
        warned = [str(each) for each in seen if "CacheUnusable" in str(each)]
        return len(ran), digest, warned


@pytest.fixture
def nodes(tmp_path: Path, busybox: Base, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    mark = Marked()
    yield Nodes(tmp_path, mark, busybox.layout)
    assert mark.wait_until_gone(3) == []


def test_what_one_node_has_made_another_finds_in_a_directory_of_this_machine(nodes: Nodes) -> None:
    ran, made, warned = nodes.build("first", imports=False)
    assert warned == []
    again, found, warned = nodes.build("second", imports=True)
    assert warned == []
    assert found == made, "the results of the steps are random: another digest means that one was run"
    assert again == ran - 3


def test_a_cache_that_is_not_there_is_named_as_it_is_here(nodes: Nodes) -> None:
    *_, warned = nodes.build("second", imports=True)
    assert len(warned) == 1
    assert str(nodes.place / "cache") in warned[0]


# -- what a node may do -----------------------------------------------------------------------------------------------

KEY, LAYER = "0" * 64, b"a layer"
ENTRY = RemoteCacheEntry(
    KEY,
    "result",
    "2026-01-01T00:00:00Z",
    sha256(b"its content"),
    LayerRecord("gzip", sha256(LAYER), len(LAYER)),
    "type",
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "store")) as opened:
        yield opened


def record(**changes: object) -> bytes:
    return msgspec.json.encode(replace(ENTRY, **changes))


async def content(*blocks: bytes) -> AsyncIterator[bytes]:
    for each in blocks:
        yield each


def send(cache: NodeCache, data: bytes, digest: str = sha256(LAYER)) -> None:
    asyncio.run(cache.receive(CacheBlob("c", digest, len(data)), content(data)))


def test_an_entry_is_there_when_its_layer_is(store: Store) -> None:
    kept = SharedSteps()
    writer, reader = NodeCache(kept, store), NodeCache(kept, store)
    assert writer.put(KEY, record()) == b"blob"
    assert reader.find(KEY) is None
    send(writer, LAYER)
    assert writer.put(KEY, record()) == b""
    assert reader.stream(sha256(LAYER)) is None, "of no entry that it was told of"
    assert reader.find(KEY) == record()
    stream, out = reader.stream(sha256(LAYER)), bytearray()
    assert stream is not None
    stream(out.extend)
    assert bytes(out) == LAYER


def test_two_threads_may_send_one_layer(store: Store) -> None:
    cache = NodeCache(SharedSteps(), store)
    assert cache.put(KEY, record()) == cache.put(KEY, record()) == b"blob"
    send(cache, LAYER)
    send(cache, LAYER)
    with pytest.raises(KanifoldError):
        send(cache, LAYER)


@pytest.mark.parametrize(
    ("key", "data"),
    [
        ("../../escaped", record()),
        ("1" * 64, record()),
        (KEY, record(diff_id="sha256:../../escaped")),
        (KEY, record(blob=LayerRecord("gzip", "../../escaped", 1))),
        (KEY, record(blob=LayerRecord("gzip", sha256(LAYER), -1))),
        (KEY, b"junk"),
    ],
)
def test_a_record_that_is_none_is_refused(store: Store, key: str, data: bytes) -> None:
    kept = SharedSteps()
    with pytest.raises(KanifoldError):
        NodeCache(kept, store).put(key, data)
    assert kept.find(KEY) is None and kept.find("1" * 64) is None


def test_a_layer_is_what_its_digest_says(store: Store) -> None:
    cache = NodeCache(SharedSteps(), store)
    for data in (b"a Layer", LAYER + b"!"):
        cache.put(KEY, record())
        with pytest.raises(KanifoldError):
            send(cache, data)
    assert not blobs.has(store, sha256(LAYER))
    assert not blobs.has(store, sha256(b"a Layer"))


def test_a_layer_that_nobody_asked_for_is_not_kept(store: Store) -> None:
    with pytest.raises(KanifoldError):
        send(NodeCache(SharedSteps(), store), LAYER)
    assert not blobs.has(store, sha256(LAYER))
