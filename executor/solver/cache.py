"""Cache records: results of steps by cache key, and information on results.

Two kinds of records, small JSON objects. ``step:KEY`` has the *result* of a step; ``result:NAME`` has what is known of
that result: the diff id and blobs of its layer. The result of a RUN has a random name, which the keys of later steps
contain: a step that is run again gives its successors new keys, so an old successor is never used on top of it. The
result of a COPY is named by its content, so equal copies share a layer.

Entries of remote caches are kept apart, as whoever can write there could claim any layer to be the result of any step.
They are used by builds that import from that cache, and their layers have names that no local step has.

Records in stores of today call a field ``foreign`` that is ``imported`` here, ``place`` one that is ``source``, and
``promised`` one that is ``deferred``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

import msgspec

from executor.protocol import CacheInDirectory, CacheInRegistry, CacheLocation
from executor.store import blobs, cache_records, snapshots
from executor.store.store import Store
from platforms import debug, decoding


class ElfFiles(msgspec.Struct, frozen=True):
    """ELF files of one architecture in a layer: how many, and the first few of their paths."""

    name: str
    count: int
    paths: tuple[str, ...]


class LayerRecord(msgspec.Struct, frozen=True):
    """A layer as a blob. ``kind`` is the compression, with its level: ``gzip-ng``, ``zstd-9``."""

    kind: str
    digest: str
    size: int


class CacheEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """``step:KEY``: the name of the step's result, and when it was made (RFC 3339)."""

    result: str
    created: str
    build: str = ""
    """The build that made it (``executor.protocol.Job.build``)."""
    imported: str = msgspec.field(default="", name="foreign")
    """The name under which the store has the layer if it was imported: it is ``result`` only according to the cache."""
    source: str = msgspec.field(default="", name="place")
    """The remote cache from which the entry was imported."""

    @property
    def layer(self) -> str:
        """The name under which the store has the layer."""
        return self.imported or self.result


class LayerInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """``result:NAME``: what is known of a result."""

    diff_id: str = ""
    blobs: tuple[LayerRecord, ...] = ()
    machines: tuple[ElfFiles, ...] = ()
    caches: tuple[CacheLocation, ...] = ()
    """Remote caches that have the blob."""
    deferred: bool = msgspec.field(default=False, name="promised")
    """Whether a remote cache has the result without its layer: a step is run again if that is needed."""


class _Recorded(LayerInfo, frozen=True, omit_defaults=True):
    """``LayerInfo`` in the format of earlier versions: caches as ``registry REF`` and ``directory PATH``."""

    sources: tuple[str, ...] = msgspec.field(default=(), name="places")


# Created at import: two threads that create a decoder of the same type at once crash msgspec.
_ENTRY: Final[msgspec.json.Decoder[CacheEntry]] = msgspec.json.Decoder(CacheEntry)
_RECORDED: Final[msgspec.json.Decoder[_Recorded]] = msgspec.json.Decoder(_Recorded)


def get_entry(store: Store, key: str) -> CacheEntry | None:
    """Return the entry recorded under ``key``, or None."""
    data = cache_records.get(store, f"step:{key}")
    found = None if data is None else decoding.decode(_ENTRY, data)
    debug.log("cache look-up", key=key, found="no" if found is None else found.result)
    return found


def get_imported_entry(store: Store, key: str, sources: Iterable[str]) -> CacheEntry | None:
    """Return the entry for ``key`` that was imported from the first of the remote caches ``sources``, or None."""
    return next(
        (found for source in sources if (found := get_entry(store, _imported_key(source, key))) is not None), None
    )


def put_imported_entry(store: Store, key: str, source: str, found: CacheEntry, description: str) -> None:
    """Record an entry that was imported from ``source``, for builds that use this remote cache and no others."""
    put_entry(store, _imported_key(source, key), found, description)


def _imported_key(source: str, key: str) -> str:
    return f"{key} from {source}"


def put_entry(store: Store, key: str, found: CacheEntry, description: str) -> None:
    """Record ``found`` under ``key``. ``description`` is shown to users."""
    cache_records.put(store, f"step:{key}", msgspec.json.encode(found), description=description)
    debug.log("cache record", key=key, result=found.result)


def get_layer_info(store: Store, result: str) -> LayerInfo:
    """Return what is recorded of the layer of ``result``."""
    data = cache_records.get(store, f"result:{result}")
    if data is None:
        return LayerInfo()
    found = decoding.decode(_RECORDED, data)
    caches = (*found.caches, *map(_location, found.sources))
    return LayerInfo(found.diff_id, found.blobs, found.machines, caches, found.deferred)


def _location(text: str) -> CacheLocation:
    kind, _, name = text.partition(" ")
    return CacheInRegistry(name) if kind == "registry" else CacheInDirectory(name)


def put_layer_info(store: Store, result: str, found: LayerInfo) -> None:
    """Record ``found`` for the layer of ``result``, in place of what was recorded."""
    cache_records.put(store, f"result:{result}", msgspec.json.encode(found))


def is_usable(store: Store, result: str) -> bool:
    """Whether an entry with ``result`` can be used: its layer is available or deferred."""
    return is_available(store, result) or get_layer_info(store, result).deferred


def is_available(store: Store, result: str) -> bool:
    """Whether the layer of ``result`` is still available, as a snapshot or as a blob."""
    if snapshots.find(store, snapshot_key(result)) is not None:
        return True
    found = get_layer_info(store, result)
    return bool(found.caches and found.blobs) or any(blobs.has(store, each.digest) for each in found.blobs)


def snapshot_key(result: str) -> str:
    """Return the key of the snapshot of ``result``."""
    return f"result:{result}"


def new_result() -> str:
    """Return a new random name for the result of a RUN."""
    return os.urandom(16).hex()
