"""A session: what the builds of one command share. Nodes, store, registry client, pins and display.

A session can have several builds, one after the other or concurrently. A base image is resolved once for all of them,
so they agree on its digest, and there is one registry process.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from functools import partial
from typing import Any

import msgspec

from executor import protocol
from executor.registry import auth, reference
from executor.registry.notices import Notice, Remark, Wait
from executor.registry.registry_settings import RegistrySettings
from executor.store.store import Store, open_store
from orchestrator.contexts import FetchedContexts
from orchestrator.nodes.node import Node
from orchestrator.registries import Connect, Registry
from orchestrator.view import events
from orchestrator.view.events import Emit
from platforms import debug
from platforms.errors import Problem, UsageError


class Pins:
    """The digests of external images by name, each resolved once."""

    def __init__(self, registry: Registry, emit: Emit) -> None:
        self._registry = registry
        self._emit = emit
        self._asked: dict[str, asyncio.Task[protocol.Pin]] = {}

    async def resolve(self, name: str) -> protocol.Pin:
        """Return the pin of the image ``name``. Raises ``KanifoldError``; the next call then tries again."""
        asked = self._asked.get(name)
        if asked is None:
            asked = self._asked[name] = asyncio.create_task(self._resolve(name))
        try:
            return await asyncio.shield(asked)  # shared: other builds may wait for it
        except BaseException:
            if asked.done():
                self._asked.pop(name, None)
            raise

    async def _resolve(self, name: str) -> protocol.Pin:
        parsed = reference.parse(name).completed()
        self._emit(events.Resolving(ref=name))
        digest = parsed.digest or (await asyncio.to_thread(self._registry.resolve, parsed)).digest
        self._emit(events.Resolved(ref=name, digest=digest))
        debug.log("image pinned", name=name, digest=digest)
        return protocol.Pin(name, digest)


class SharedCapacity(msgspec.Struct, frozen=True):
    """What the builds of a session share out among them."""

    jobs: asyncio.Semaphore | None = None
    """Bounds the jobs of all builds together; None if each build bounds its own."""
    queues: dict[str, asyncio.Semaphore] = msgspec.field(default_factory=dict)
    """The queues of the nodes that do not run any number of jobs at a time, by name."""
    placed: dict[str, int] = msgspec.field(default_factory=dict)
    """The number of jobs that were placed on a node, by name."""
    fetched: FetchedContexts | None = None
    """The contexts that were fetched; None if each build fetches its own."""


class Session(msgspec.Struct, frozen=True):
    """The resources of a session; made by ``opened``."""

    nodes: tuple[Node, ...]
    keychain: auth.Keychain
    registry: Registry
    store: Store
    pins: Pins
    emit: Emit
    leaving: list[asyncio.Task[Any]]
    """Tasks that are awaited only when the session ends."""
    capacity: SharedCapacity = msgspec.field(default_factory=SharedCapacity)

    def leave(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run ``work`` in the background, for example the release of an executor. Its errors are ignored."""
        self.leaving.append(asyncio.create_task(work))


@contextlib.asynccontextmanager
async def opened(
    nodes: Sequence[Node], root: str, settings: RegistrySettings, connect: Connect, emit: Emit
) -> AsyncIterator[Session]:
    """Open a session on ``nodes``, with the store at ``root`` ("": the default one); ``connect`` makes the registry
    client.

    At the end the nodes are closed: no executor is left. Raises ``UsageError`` when two nodes have the same name.
    """
    _check_names(nodes)
    store = open_store(root or None)
    leaving: list[asyncio.Task[Any]] = []
    try:
        keychain = auth.docker_keychain()
        registry = connect(settings, keychain, partial(_show, emit))
        try:
            yield Session(tuple(nodes), keychain, registry, store, Pins(registry, emit), emit, leaving)
        finally:
            await asyncio.gather(*leaving, return_exceptions=True)
            registry.close()
    finally:
        for each in nodes:
            await each.close()
        store.close()


def _check_names(nodes: Sequence[Node]) -> None:
    """Raise ``UsageError`` when two nodes have the same name: executors are kept by it (``node.ExecutorPool``)."""
    known: set[str] = set()
    for each in nodes:
        if each.name in known:
            raise UsageError(f"two nodes are called {each.name}", remedy="give every node a name of its own")
        known.add(each.name)


def _show(emit: Emit, notice: Notice) -> None:
    """Show a notice of the registry client."""
    match notice:
        case Wait(registry, what, seconds, why, over):
            emit(events.RegistryWaiting(registry=registry, what=what, seconds=seconds, why=why, over=over))
        case Remark(text):
            emit(events.WarningRaised(problem=Problem("Registry", text), rule="Registry"))
