"""A remote cache that the orchestrator has: entries and layers are requested from it, and sent to it."""

from __future__ import annotations

import msgspec

from executor import protocol
from executor.conversation import Conversation
from executor.image.manifest import Descriptor
from executor.solver.remote_entry import RemoteCacheEntry, decode
from executor.store import blobs
from executor.store.store import Store
from platforms.errors import CacheError


class OrchestratorCache:
    """The cache at ``location``. The orchestrator verifies what it is sent; builds on its machine bound the cache."""

    def __init__(self, location: protocol.CacheAtOrchestrator, conversation: Conversation) -> None:
        self.name = location.name
        self.location = location
        self._conversation = conversation
        self._found: dict[str, RemoteCacheEntry] = {}
        """Entries as they are in the cache, by key."""

    def find(self, key: str) -> RemoteCacheEntry | None:
        answer = self._conversation.ask(protocol.AskCacheEntry(self.name, key))
        if answer is None:
            return None
        found = self._found[key] = decode(answer, key)
        return found

    def holds(self, entry: RemoteCacheEntry) -> bool:
        return self._found.get(entry.key) == entry

    def put(self, entry: RemoteCacheEntry, store: Store) -> None:
        if self.holds(entry):
            return
        record = msgspec.json.encode(entry)
        answer = self._export(entry.key, record)
        if answer and entry.blob is not None:
            digest, size = entry.blob.digest, blobs.size(store, entry.blob.digest)
            message = protocol.CacheBlob(self.name, digest, size)
            self._conversation.send_file(message, blobs.path(store, digest), size)
            answer = self._export(entry.key, record)
        if answer:
            raise CacheError(f"the orchestrator did not take an entry for the cache {self.name}")

    def fetch_blob(self, entry: Descriptor, store: Store) -> None:
        with blobs.ingest(store, entry.digest) as ingest:
            if not self._conversation.ask_into(ingest.write, protocol.AskCacheBlob(self.name, entry.digest)):
                raise CacheError(f"the cache {self.name} does not have the layer {entry.digest}")
            ingest.commit()

    def bound(self, bounds: protocol.CacheBounds) -> None:
        pass

    def _export(self, key: str, record: bytes) -> bytes:
        answer = self._conversation.ask(protocol.AskCacheExport(self.name, key, record))
        if answer is None:
            raise CacheError(f"the orchestrator does not write to the cache {self.name}")
        return answer
