"""Attack 79 (review; CVE-2025-36852): an executor elsewhere has its claims kept, for later builds or without end.

A job that has moved there from this machine was recorded as a result of this machine, with whatever dependencies it
claimed, so that later builds were answered by it without being run. What it asked for was kept until the build ended,
however much that was. And the record of a step that named any blob of this machine's store let it have that blob.
"""

from __future__ import annotations

import asyncio
import contextlib
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from executor import protocol
from executor.image.manifest import Descriptor
from executor.protocol import ContextPattern, DirectoryContext
from executor.store import blobs
from executor.store.store import Store, open_store
from orchestrator import node_services, result_cache
from orchestrator.node_caches import NodeCache, SharedSteps
from orchestrator.nodes.command_node import CommandNode
from orchestrator.nodes.placement import Placement
from orchestrator.results import NullExecutor, PlatformResult
from orchestrator.sent_contexts import SentContexts
from orchestrator.translation import Apart
from platforms.errors import Problem, ProtocolError
from platforms.parsing import parse

AMD64 = parse("linux/amd64")
DIGEST = "sha256:" + "5" * 64
ENDLESS = 100_000
"""Requests that no build makes, and that an executor sends within seconds."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "store")) as opened:
        yield opened


@pytest.mark.parametrize("here", [True, False], ids=["built here", "moved elsewhere"])
def test_the_result_of_a_job_that_has_moved_answers_no_later_build(store: Store, here: bool) -> None:
    job = protocol.Job(protocol.VERSION, str(AMD64), b"FROM scratch\n")
    first = Placement(AMD64, CommandNode("local", ("true",)), shares_disk=True)
    made = first if here else replace(first, node=CommandNode("elsewhere", ("true",)), shares_disk=False)
    document = Descriptor("application/json", DIGEST, 2)
    claimed = protocol.Result(document, document, (), 2, ran=1, dependencies=protocol.DependencyRecord())
    built = PlatformResult(made, claimed, NullExecutor(), (protocol.Started(1),))
    result_cache.store_results((built,), ((first, job),), store)
    assert bool(result_cache.find(((first, job),), store)) == here


def test_listings_without_end_are_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "context").mkdir()
    context = DirectoryContext("", str(tmp_path / "context"))
    sent = SentContexts(store)
    try:
        with pytest.raises(ProtocolError, match="more"):
            for number in range(ENDLESS):
                sent.listing(context, tuple(ContextPattern(b"/%d %d" % (number, each)) for each in range(50)))
    finally:
        sent.close()


def test_a_listing_of_endless_patterns_is_refused(store: Store, tmp_path: Path) -> None:
    sent = SentContexts(store)
    try:
        with pytest.raises(ProtocolError, match="more listings"):
            sent.listing(DirectoryContext("", str(tmp_path)), (ContextPattern(b"/", exclude=(b"x",) * ENDLESS * 5),))
    finally:
        sent.close()


def test_errors_without_end_are_not_kept() -> None:
    job = Apart(protocol.Job(protocol.VERSION, str(AMD64), b"FROM scratch\n"), "elsewhere")
    problem = Problem("BuildError", "a secret cannot be read", "/home/user/secret is gone")
    first = job.sent(protocol.AskSecret("first"), problem)
    tracemalloc.start()
    try:
        job.sent(protocol.AskSecret("x" * (16 << 20)), problem)
        for number in range(ENDLESS):
            job.sent(protocol.AskSecret(f"{number}"), problem)
        assert tracemalloc.get_traced_memory()[0] < 4 << 20
    finally:
        tracemalloc.stop()
    assert job.received(first) == problem


def entry(number: int, **more: object) -> bytes:
    """The record of a step."""
    fields = {"key": f"{number:064x}", "result": "result", "created": "2026-01-01T00:00:00Z", **more}
    return msgspec.json.encode(fields)


def test_results_of_shared_stages_without_end_are_refused(store: Store) -> None:
    cache = NodeCache(SharedSteps(), store)
    cache.put(f"{0:064x}", entry(0))
    with pytest.raises(ProtocolError, match="more results"):
        for number in range(1, ENDLESS):
            cache.put(f"{number:064x}", entry(number, media_type="x" * (1 << 20)))
    assert cache.find(f"{0:064x}") == entry(0)
    with pytest.raises(ProtocolError, match="too large"):
        cache.put(f"{1:064x}", entry(1, media_type="x" * (5 << 20)))


def test_layers_that_are_announced_without_end_are_refused(store: Store) -> None:
    cache = NodeCache(SharedSteps(), store)
    with pytest.raises(ProtocolError, match="announced more layers"):
        for number in range(ENDLESS):
            blob = {"kind": "gzip-ng", "digest": f"sha256:{number:064x}", "size": 1}
            cache.put(f"{number:064x}", entry(number, diff_id=DIGEST, blob=blob))


def test_a_layer_of_others_is_not_had_by_its_digest(store: Store, tmp_path: Path) -> None:
    """A record that names what is in the store of this machine, and that nobody has sent, leads to nothing."""
    private = b"a layer of an image that is private"
    with blobs.ingest(store) as ingest:
        ingest.write(private)
        digest = ingest.commit().digest
    directory = protocol.CacheInDirectory(str(tmp_path / "cache"))
    options = protocol.BuildOptions(cache_from=(directory,), cache_to=(protocol.CacheExport(directory),))
    job = protocol.Job(protocol.VERSION, str(AMD64), b"FROM scratch\n", options=options)
    ((_, cache),) = node_services.caches(job, store)().targets.items()
    claimed = entry(1, diff_id=DIGEST, blob={"kind": "gzip-ng", "digest": digest, "size": len(private)})
    assert cache.put(f"{1:064x}", claimed) == b"blob", "it has to be sent"
    with contextlib.suppress(FileNotFoundError):  # there is no cache yet
        assert cache.find(f"{1:064x}") is None
    assert cache.stream(digest) is None

    async def content() -> AsyncIterator[bytes]:
        yield private

    asyncio.run(cache.receive(protocol.CacheBlob("cache", digest, len(private)), content()))
    assert cache.put(f"{1:064x}", claimed) == b""
    assert cache.find(f"{1:064x}") is not None
    assert cache.stream(digest) is not None
