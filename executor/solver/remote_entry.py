"""Entries of remote caches: the results of steps for other machines, as records in JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from executor.image.digest import check_digest
from executor.image.manifest import Descriptor
from executor.solver import keys
from executor.solver.cache import ElfFiles, LayerRecord
from platforms import decoding
from platforms.errors import ArchiveError

ENTRY: Final = "application/vnd.kanifold.cache.entry.v1+json"
"""The media type of a record in a registry."""
INLINE: Final = "kanifold.cache.v1"
"""The field of an image's config that holds its steps."""
RECORD_LIMIT: Final = 4 << 20
"""Maximum size of a record in bytes."""


class RemoteCacheEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of a step for other machines: its key, its result, and the layer.

    A step of a stage that is only copied from may come without its layer. Its result is contained in the keys of the
    steps that copied from it, so these are found without running it again.
    """

    key: str
    result: str
    created: str
    diff_id: str = ""
    blob: LayerRecord | None = None
    media_type: str = ""
    machines: tuple[ElfFiles, ...] = ()

    @property
    def name(self) -> str:
        """Return the name of the layer in the store: not ``result``, which a local step may have.

        It is derived from everything that the store records of the layer according to this entry, so entries do not
        affect each other. The word in the key is that of existing stores.
        """
        blob = None if self.blob is None else (self.blob.kind, self.blob.digest, self.blob.size)
        machines = tuple((each.name, each.count, each.paths) for each in self.machines)
        return keys.key("foreign", self.result, self.diff_id, blob, machines)

    @property
    def descriptor(self) -> Descriptor | None:
        """The descriptor of the layer, if there is one."""
        return None if self.blob is None else Descriptor(self.media_type, self.blob.digest, self.blob.size)


# Made here, by one thread: two that make the decoder of one type at the same moment crash msgspec.
_ENTRY: Final[msgspec.json.Decoder[RemoteCacheEntry]] = msgspec.json.Decoder(RemoteCacheEntry)
_ENTRIES: Final[msgspec.json.Decoder[tuple[RemoteCacheEntry, ...]]] = msgspec.json.Decoder(tuple[RemoteCacheEntry, ...])
_FIELDS: Final[msgspec.json.Decoder[dict[str, msgspec.Raw]]] = msgspec.json.Decoder(dict[str, msgspec.Raw])


def decode(data: bytes, key: str) -> RemoteCacheEntry:
    """Return the record in ``data``, which has to be for ``key``. Raises ``ArchiveError``."""
    try:
        entry = decoding.decode(_ENTRY, data)
    except msgspec.DecodeError as error:
        raise ArchiveError("a cache entry is malformed", why=str(error)) from error
    if entry.key != key:
        raise ArchiveError("a cache entry is for another step", why=f"{entry.key[:70]} instead of {key}")
    if entry.blob is not None:
        check_digest(entry.diff_id)
        check_digest(entry.blob.digest)
    return entry


def read_inline(config: bytes) -> dict[str, RemoteCacheEntry]:
    """Return the entries in the config of an image, by key; empty if it has none."""
    try:
        raw = decoding.decode(_FIELDS, config).get(INLINE)
        entries = decoding.decode(_ENTRIES, raw) if raw is not None else ()
    except msgspec.DecodeError as error:
        raise ArchiveError("an image's cache is malformed", why=str(error)) from error
    return {each.key: decode(msgspec.json.encode(each), each.key) for each in entries}


def with_inline(config: bytes, entries: Sequence[RemoteCacheEntry]) -> bytes:
    """Return ``config`` with ``entries``, in an order that does not depend on the order of execution."""
    document = decoding.decode(_FIELDS, config)
    document[INLINE] = msgspec.Raw(msgspec.json.encode(sorted(entries, key=lambda each: each.key)))
    return msgspec.json.encode(document)
