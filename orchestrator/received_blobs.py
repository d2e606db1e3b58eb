"""The blobs of an image that was built on a node with another disk, received while they are written to their place."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator
from typing import BinaryIO, cast

from executor.image.manifest import Manifest
from executor.store import blobs
from executor.store.store import Store
from orchestrator.results import ImageContent
from platforms.errors import ProtocolError


class ReceivedBlobs:
    """The blobs of ``manifest``: of ``store`` if it has them, else of ``executor``. To be made on its event loop."""

    def __init__(self, executor: ImageContent, manifest: Manifest, store: Store) -> None:
        self._executor = executor
        self._sizes = {each.digest: each.size for each in (*manifest.layers, manifest.config)}
        self._store = store
        self._loop = asyncio.get_running_loop()

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading, on another thread than that of the event loop.

        Reading one that is received to its end verifies it, and precedes reading another one.
        """
        if blobs.has(self._store, digest):
            return blobs.open(self._store, digest)
        return cast("BinaryIO", io.BufferedReader(_Blocks(self._verified(digest), self._loop)))

    async def _verified(self, digest: str) -> AsyncIterator[bytes]:
        found = hashlib.new(digest.partition(":")[0])
        async for block in self._executor.blocks(digest, self._sizes[digest]):
            found.update(block)
            yield block
        if found.hexdigest() != digest.partition(":")[2]:
            raise ProtocolError(f"the content of {digest} is not what its digest says", why="an executor sent it")


class _Blocks(io.RawIOBase):
    """A file without a descriptor, whose content is ``blocks``. Nothing is requested before the first read."""

    def __init__(self, blocks: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self._blocks = blocks
        self._loop = loop
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._rest:
            self._rest = memoryview(asyncio.run_coroutine_threadsafe(self._next(), self._loop).result())
        size = min(len(buffer), len(self._rest))
        memoryview(buffer)[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    async def _next(self) -> bytes:
        return await anext(self._blocks, b"")
