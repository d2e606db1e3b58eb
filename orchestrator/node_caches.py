"""Remote caches of this machine that executors with another disk use over their pipes.

A cache is a directory (``type=local``), or has the shared stages of one build (``shared_stages``). Records and layers
are verified when they arrive. Layers are kept in the store, by their digests; what an executor says of a step is known
only to those that use the same cache, and recorded by them as imported from it.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Final, Protocol

import msgspec

from executor import protocol
from executor.image.digest import check_digest
from executor.image.manifest import Descriptor
from executor.solver.remote_entry import RECORD_LIMIT, RemoteCacheEntry, decode
from executor.store import blobs
from executor.store.store import Store
from platforms.errors import ArchiveError, KanifoldError, ProtocolError

_KEY: Final = re.compile(r"[0-9a-f]{64}")
_BLOCK: Final = 1 << 20
_WANTED: Final = b"blob"
_LAYERS_LIMIT: Final = 1000
"""Layers that an executor has announced and not sent: far more than it has threads."""
_SHARED_LIMIT: Final = 64 << 20
"""Bytes of all records of shared stages."""


class KeptCache(Protocol):
    """A cache on this machine (``executor.solver.remote_cache.RemoteCache``)."""

    def find(self, key: str) -> RemoteCacheEntry | None:
        """Return the entry for ``key``, if there is one."""
        ...

    def put(self, entry: RemoteCacheEntry, store: Store) -> None:
        """Add ``entry``, whose layer is in ``store``."""
        ...

    def fetch_blob(self, entry: Descriptor, store: Store) -> None:
        """Fetch the layer of an entry into ``store``, verified."""
        ...


class SharedSteps:
    """The entries of one build, by key. Their layers are in the store. Thread-safe."""

    def __init__(self) -> None:
        self._records: dict[str, bytes] = {}
        self._left = _SHARED_LIMIT
        self._lock = threading.Lock()

    def find(self, key: str) -> RemoteCacheEntry | None:
        """As ``KeptCache.find``."""
        record = self._records.get(key)
        return None if record is None else decode(record, key)

    def put(self, entry: RemoteCacheEntry, _store: Store) -> None:
        """As ``KeptCache.put``. Raises ``ProtocolError`` for more than stages have."""
        record = msgspec.json.encode(entry)
        with self._lock:
            left = self._left + len(self._records.get(entry.key, b"")) - len(record)
            if left < 0:
                raise ProtocolError("an executor sent more results of shared stages than can be kept")
            self._records[entry.key], self._left = record, left

    def fetch_blob(self, entry: Descriptor, _store: Store) -> None:
        """Raise ``ArchiveError``: the layer was in the store."""
        raise ArchiveError(f"the layer {entry.digest} is not in the store any more")


class NodeCache:
    """A cache ``kept`` on this machine, as one executor uses it. Methods may be called on any thread.

    ``arrived`` are the digests of layers that the executor has sent, for any cache of its job. Only of these, and of
    entries that are there, is the copy in the store used: a record may name any blob. None where no record of the
    executor can be read by itself (those of shared stages): then all that the store has is used.
    """

    def __init__(self, kept: KeptCache, store: Store, arrived: set[str] | None = None) -> None:
        self._kept = kept
        self._store = store
        self._arrived = arrived
        self._layers: dict[str, Descriptor] = {}
        """The layers of entries that the executor was told of, by digest."""
        self._wanted: Counter[tuple[str, int]] = Counter()
        """How often it was asked for a layer, by digest and size: its threads may export the same one."""
        self._lock = threading.Lock()

    def find(self, key: str) -> bytes | None:
        """Return the record of the step ``key``. Raises ``KanifoldError`` and ``OSError``."""
        found = self._kept.find(_checked(key))
        if found is None:
            return None
        if (layer := found.descriptor) is not None:
            self._layers[layer.digest] = layer
        return msgspec.json.encode(found)

    def stream(self, digest: str) -> Callable[[Callable[[bytes], object]], None] | None:
        """Return what passes the layer ``digest`` to its argument; None for a layer of no entry that was found."""
        layer = self._layers.get(digest)
        if layer is None:
            return None
        if not blobs.has(self._store, digest):
            self._kept.fetch_blob(layer, self._store)
        return partial(self._pass, digest)

    def _pass(self, digest: str, out: Callable[[bytes], object]) -> None:
        """Pass the blob ``digest`` to ``out``, verified."""
        with blobs.open(self._store, digest) as file:
            while block := file.read(_BLOCK):
                out(block)

    def put(self, key: str, record: bytes) -> bytes:
        """Add ``record``, that of the step ``key``; returns ``blob`` if its layer has to be sent first."""
        if len(record) > RECORD_LIMIT:
            raise ProtocolError("an executor sent a record of a step that is too large")
        entry = decode(record, _checked(key))
        layer = entry.descriptor
        if layer is not None and not self._has(key, layer):
            if layer.size < 0:
                raise ProtocolError("an executor announced a layer of a negative size")
            with self._lock:
                if self._wanted.total() >= _LAYERS_LIMIT:
                    raise ProtocolError("an executor announced more layers than it sent")
                self._wanted[layer.digest, layer.size] += 1
            return _WANTED
        if layer is not None and blobs.size(self._store, layer.digest) != layer.size:
            raise ProtocolError("an executor announced a layer of another size")
        self._kept.put(entry, self._store)
        return b""

    def _has(self, key: str, layer: Descriptor) -> bool:
        """Whether ``layer``, that of the step ``key``, need not be sent."""
        if not blobs.has(self._store, layer.digest):
            return False
        if self._arrived is None or layer.digest in self._arrived or layer.digest in self._layers:
            return True
        try:
            known = self._kept.find(key)
        except (KanifoldError, OSError):  # there is no cache yet, or one that is to be written anew
            return False
        return known is not None and known.descriptor == layer

    async def receive(self, message: protocol.CacheBlob, content: AsyncIterator[bytes]) -> None:
        """Take the layer that ``put`` wanted. Raises ``KanifoldError`` for another one."""
        with self._lock:
            if not self._wanted[message.digest, message.size]:
                raise ProtocolError("an executor sent a layer that nobody asked for")
            self._wanted[message.digest, message.size] -= 1
            self._wanted = +self._wanted
        with blobs.ingest(self._store, check_digest(message.digest)) as ingest:
            async for block in content:
                ingest.write(block)
            ingest.commit()
        if self._arrived is not None:
            self._arrived.add(message.digest)


class NodeCaches(msgspec.Struct, frozen=True):
    """The caches on this machine that the executor of one job uses, by the name that it knows them by."""

    sources: Mapping[str, NodeCache] = {}
    """Those that it imports from."""
    targets: Mapping[str, NodeCache] = {}
    """Those that it exports to."""

    async def receive(self, message: protocol.CacheBlob, content: AsyncIterator[bytes]) -> None:
        """Take the layer of an entry (``job_session.OnCacheBlob``)."""
        cache = self.targets.get(message.name)
        if cache is None:
            raise ProtocolError("an executor sent a layer for a cache that it does not export to")
        await cache.receive(message, content)


def _checked(key: str) -> str:
    """Return ``key`` if it is that of a step. Raises ``ProtocolError``."""
    if not _KEY.fullmatch(key):
        raise ProtocolError(f"an executor asked for what is no step: {key[:70]!r}")
    return key
