"""What the builds of one command share: nodes, the store, a client of registries, images that are pinned, the display.

One session may have several builds, one after the other or at once. A base image is resolved once for all of them, so
they agree on what a tag means, and registries are asked by one process, which learns of each only once.
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
from orchestrator.node import Node
from orchestrator.registries import Connect, Registry
from orchestrator.view import events
from orchestrator.view.events import Emit
from platforms import debug
from platforms.errors import Problem


class Pins:
    """External images by name, and the digest that each of them was found to be, asked once."""

    def __init__(self, registry: Registry, emit: Emit) -> None:
        self._registry = registry
        self._emit = emit
        self._asked: dict[str, asyncio.Task[protocol.Pin]] = {}

    async def resolve(self, name: str) -> protocol.Pin:
        """The pin of the image ``name``. Raises ``KanifoldError``; the next build that wants it asks once more then."""
        asked = self._asked.get(name)
        if asked is None:
            asked = self._asked[name] = asyncio.create_task(self._resolve(name))
        try:
            return await asyncio.shield(asked)  # whichever build began it, the others want it too
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


class Session(msgspec.Struct, frozen=True):
    """See the module's text; ``opened`` makes one."""

    nodes: tuple[Node, ...]
    keychain: auth.Keychain
    registry: Registry
    store: Store
    pins: Pins
    emit: Emit
    leaving: list[asyncio.Task[Any]]
    """Work that nobody waits for before the session ends."""

    def leave(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do ``work`` while the session goes on: the release of an executor, say. Its errors are of no account."""
        self.leaving.append(asyncio.create_task(work))


@contextlib.asynccontextmanager
async def opened(
    nodes: Sequence[Node], root: str, settings: RegistrySettings, connect: Connect, emit: Emit
) -> AsyncIterator[Session]:
    """A session on ``nodes``, with the store at ``root`` ("": the default one); registries are taken up by ``connect``.

    When it ends, the nodes are closed: no executor of theirs is left.
    """
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


def _show(emit: Emit, notice: Notice) -> None:
    """Show what the registries' client says."""
    match notice:
        case Wait(registry, what, seconds, why, over):
            emit(events.RegistryWaiting(registry=registry, what=what, seconds=seconds, why=why, over=over))
        case Remark(text):
            emit(events.WarningRaised(problem=Problem("Registry", text), rule="Registry"))
