"""Remote caches as objects: in a directory, in a bucket of S3, in Azure Blob Storage, or in GitHub's cache service.

An entry is a record ``RECORDS/NAME/KEY``, and its layer is ``LAYERS/sha256/HEX``, which entries share. An entry whose
layer is gone is none: objects are removed by their age and size, whatever needs them. What is used is touched once a
day, so that what many branches share stays, however many other things they write meanwhile.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import msgspec

from executor import protocol
from executor.image.digest import check_digest
from executor.image.manifest import Descriptor
from executor.objects.object_store import ObjectStore, StoredObject, pieces
from executor.registry.transfer import Direction, Meter
from executor.solver.lazy import Lazy
from executor.solver.remote_entry import RECORD_LIMIT, RemoteCacheEntry, decode
from executor.store import blobs
from executor.store.store import Store
from platforms import debug
from platforms.errors import ArchiveError, CacheError, KanifoldError

_BOUNDED: Final = "bounded"
"""The object in the directory of layers whose age says when the cache was bounded last."""
_BOUND_AGAIN: Final = 3600.0
"""Seconds after which a cache is bounded again: listing it takes a request for every thousand objects."""
_DELETED_TOGETHER: Final = 500
_OWN_RECORD: Final = re.compile(r"(.+/)?[0-9a-f]{64}(\.[\w.]+)?")
_OWN_LAYER: Final = re.compile(r"sha(256|512)/[0-9a-f]{64,128}(\.[\w.]+)?")
"""The keys below the directories of records and of layers that are a cache's: nothing else is removed. What follows a
dot is left by a writer that was killed."""


class CacheLayout(msgspec.Struct, frozen=True):
    """Where a cache has its objects."""

    records: str
    """The directory of records."""
    names: tuple[str, ...]
    """Directories in that: all are asked, in order, and written. "" is that itself."""
    layers: str
    """The directory of layers."""

    def record(self, name: str, key: str) -> str:
        """The key of the record for the step ``key``."""
        return "/".join(filter(None, (self.records, name, key)))

    def layer(self, digest: str) -> str:
        """The key of the layer ``digest``."""
        return f"{self.layers}/{check_digest(digest).replace(':', '/')}"


class ObjectCache:
    """The cache at ``location``, whose objects are in ``objects``."""

    def __init__(
        self,
        location: protocol.CacheLocation,
        layout: CacheLayout,
        objects: Lazy[ObjectStore],
        pace: protocol.CachePace,
        tell: protocol.Tell,
    ) -> None:
        self.name = location.name
        self.location = location
        self._layout = layout
        self._objects = objects
        self._pace = pace
        self._tell = tell
        self._deadline = Lazy(self._set_deadline)
        self._found: dict[str, RemoteCacheEntry] = {}
        """Entries as they are in the cache, by key."""
        self._wrong: set[str] = set()
        """Digests of layers of which the cache has something else."""

    def find(self, key: str) -> RemoteCacheEntry | None:
        for name in self._layout.names:
            found = self._objects().get(self._layout.record(name, key), RECORD_LIMIT)
            if found is None:
                continue
            data, record = found
            entry = decode(data, key)
            if entry.blob is not None:
                layer = self._layer(Descriptor("", entry.blob.digest, entry.blob.size))
                if layer is None:
                    continue
                self._touch(layer)
            self._touch(record)
            if len(self._layout.names) == 1:
                self._found[key] = entry
            return entry
        return None

    def holds(self, entry: RemoteCacheEntry) -> bool:
        return self._found.get(entry.key) == entry

    def put(self, entry: RemoteCacheEntry, store: Store) -> None:
        if self.holds(entry):
            return
        objects, data = self._objects(), msgspec.json.encode(entry)
        self._check_time()
        if entry.blob is not None:
            self._put_layer(Descriptor(entry.media_type, entry.blob.digest, entry.blob.size), store)
        for name in self._layout.names:
            key = self._layout.record(name, entry.key)
            if entry.blob is not None or objects.find(key) is None:
                objects.put(key, lambda: iter((data,)), len(data))

    def fetch_blob(self, entry: Descriptor, store: Store) -> None:
        whole = False
        while not whole:
            whole = self._fetch(entry, store)

    def bound(self, bounds: protocol.CacheBounds) -> None:
        """Remove objects that were not used for too long, and then the least recently used as long as all are too
        large; at most once an hour, whoever writes to the cache."""
        objects, layout, now = self._objects(), self._layout, time.time()
        last = objects.find(f"{layout.layers}/{_BOUNDED}")
        if last is not None and now - last.used < _BOUND_AGAIN:
            return
        objects.put(f"{layout.layers}/{_BOUNDED}", lambda: iter((b"",)), 0)
        kept: list[StoredObject] = []
        gone: list[str] = []
        for each in self._own():
            if now - each.used > bounds.age:
                gone.append(each.key)
            else:
                kept.append(each)
        kept.sort(key=lambda each: each.used, reverse=True)
        size = sum(each.size for each in kept)
        while size > bounds.size:
            least = kept.pop()
            gone.append(least.key)
            size -= least.size
        for begin in range(0, len(gone), _DELETED_TOGETHER):
            objects.delete(gone[begin : begin + _DELETED_TOGETHER])
        debug.log("remote cache bounded", name=self.name, removed=len(gone), kept=len(kept), size=size)

    def _own(self) -> Iterator[StoredObject]:
        """Yield the objects of this cache and of its other names."""
        for directory, own in ((self._layout.records, _OWN_RECORD), (self._layout.layers, _OWN_LAYER)):
            for each in self._objects().list(directory):
                self._check_time()  # a service could list without an end
                if own.fullmatch(each.key.removeprefix(f"{directory}/")):
                    yield each

    def _layer(self, layer: Descriptor) -> StoredObject | None:
        """Return the object of ``layer``; None if there is none, or it has another size (-1: that is unknown)."""
        found = self._objects().find(self._layout.layer(layer.digest))
        return None if found is None or found.size not in (-1, layer.size) else found

    def _touch(self, found: StoredObject) -> None:
        """Who may not write leaves it: somebody else will touch it, or it goes when its time has come."""
        if time.time() - found.used <= self._pace.refresh:
            return
        try:
            self._objects().touch(found)
        except (KanifoldError, OSError) as error:
            debug.log("remote cache not touched", key=found.key, why=str(error))

    def _supersede(self, layer: Descriptor) -> None:
        """Have what is there in place of ``layer`` removed, where it could not be written over."""
        self._wrong.discard(layer.digest)
        try:
            self._objects().delete([self._layout.layer(layer.digest)])
        except (KanifoldError, OSError) as error:
            debug.log("remote cache not cleared", layer=layer.digest, why=str(error))

    def _put_layer(self, layer: Descriptor, store: Store) -> None:
        if layer.digest in self._wrong:
            self._supersede(layer)
        elif (found := self._layer(layer)) is not None:
            self._touch(found)
            return
        open_blob = partial(blobs.open, store, layer.digest)
        content = partial(self._paced, partial(pieces, open_blob), layer)
        self._objects().put(self._layout.layer(layer.digest), content, layer.size)

    def _paced(self, content: Callable[[], Iterator[bytes]], layer: Descriptor) -> Iterator[bytes]:
        """Yield ``content`` as long as there is time for it, and report that."""
        meter = Meter(self._progress, "push", layer)
        for piece in content():
            self._check_time()
            yield piece
            meter.at(meter.done + len(piece))
        meter.at(meter.done, final=True)

    def _fetch(self, entry: Descriptor, store: Store) -> bool:
        """Fetch the layer, and return whether it is whole: what was left of an earlier attempt may have been wrong."""
        with blobs.resume(store, entry.digest) as ingest:
            resumed = ingest.resume_offset
            meter = Meter(self._progress, "pull", entry)
            for piece in self._objects().stream(self._layout.layer(entry.digest), entry.size, resumed):
                if ingest.size + len(piece) > entry.size:
                    self._wrong.add(entry.digest)
                    ingest.restart()
                    raise ArchiveError(f"{self.name} has another layer than its record says", why="it is longer")
                ingest.write(piece)
                meter.at(ingest.size)
            meter.at(ingest.size, final=True)
            try:
                ingest.commit()
            except ArchiveError:
                self._wrong.add(entry.digest)
                if not resumed:
                    raise
                return False
            return True

    def _progress(self, action: Direction, name: str, done: int, total: int) -> None:
        self._tell(protocol.Transfer(protocol.Action(action), name, done, total))

    def _set_deadline(self) -> float:
        return time.monotonic() + self._pace.patience

    def _check_time(self) -> None:
        """Raise ``CacheError`` if the export, which begins with the first call, takes too long."""
        if time.monotonic() > self._deadline():
            raise CacheError(
                "the export takes too long",
                why=f"it was not done after {self._pace.patience:g} s",
                remedy="give it more time with timeout=, or leave mode=max out",
            )
