"""Remote caches: in a registry, in a directory, or within an image.

Every entry is a separate object under its key, so that platforms, nodes and CI runners write concurrently and do not
overwrite each other's entries. In a registry an entry is an OCI manifest, tagged ``NAMESPACE.KEY``, whose config is the
record and whose only layer is the step's; in a directory it is the file ``steps/KEY``, with blobs in ``blobs/sha256``;
within an image it is in a field of the image's config.

Everything is verified before it is used: the record names its key, the layer has a digest and a diff id. A cache that
is missing, broken or unreachable costs a warning, never a build.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, assert_never

import msgspec

from executor import protocol
from executor.image import mediatypes, selection
from executor.image.digest import check_digest, sha256
from executor.image.manifest import Descriptor, Index, Manifest, describe
from executor.registry import reference
from executor.registry.reference import Reference
from executor.solver import keys
from executor.solver.cache import ElfFiles, LayerRecord
from executor.solver.inflight import fetch_blob
from executor.solver.inputs import Inputs
from executor.solver.lazy import Lazy
from executor.store import blobs
from executor.store.store import Store
from platforms import decoding, regular
from platforms.errors import ArchiveError, KanifoldError, Problem
from platforms.paths import below, component

if TYPE_CHECKING:
    from executor.registry.client import Client

ENTRY: Final = "application/vnd.kanifold.cache.entry.v1+json"
"""The media type of a record in a registry."""
INLINE: Final = "kanifold.cache.v1"
"""The field of an image's config that holds its steps."""
_RECORD_LIMIT: Final = 4 << 20
_CONFIG_LIMIT: Final = 8 << 20
_UNREAD: Final = "the build goes on without it"


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


class RemoteCache(Protocol):
    """A remote cache."""

    name: str

    @property
    def location(self) -> protocol.CacheLocation:
        """The location from which layers of its entries can be fetched."""
        ...

    def find(self, key: str) -> RemoteCacheEntry | None:
        """Return the entry for ``key``, if there is one."""
        ...

    def put(self, entry: RemoteCacheEntry, store: Store) -> None:
        """Add ``entry``, whose layer is in ``store``; one without a layer replaces no other."""
        ...

    def fetch_blob(self, entry: Descriptor, store: Store) -> None:
        """Fetch the layer of an entry into ``store``, verified."""
        ...

    @property
    def repository(self) -> Reference | None:
        """The repository from which layers can be mounted, if the cache is in a registry."""
        ...


class RegistryCache:
    """A cache in a repository. The tag is a namespace: several caches can share a repository."""

    def __init__(self, ref: str, client: Lazy[Client]) -> None:
        parsed = reference.parse(ref)
        self.name = ref
        self._repository = parsed.repository_only()
        self._space = parsed.tag or "cache"
        self._client = client

    @property
    def location(self) -> protocol.CacheInRegistry:
        return protocol.CacheInRegistry(self.name)

    @property
    def repository(self) -> Reference:
        return self._repository

    def find(self, key: str) -> RemoteCacheEntry | None:
        target = self._target(key)
        found = self._client().find(target)
        if found is None:
            return None
        document = found[0]
        if not isinstance(document, Manifest) or document.config.media_type != ENTRY or len(document.layers) != 1:
            raise ArchiveError(f"{target.familiar()} is not a cache entry")
        entry = decode(self._client().read_blob(self._repository, document.config, _RECORD_LIMIT), key)
        layer, expected = document.layers[0], entry.descriptor or document.config
        if (layer.digest, layer.size) != (expected.digest, expected.size):
            raise ArchiveError(f"{target.familiar()} contradicts itself", why="its record names another layer")
        return entry

    def put(self, entry: RemoteCacheEntry, store: Store) -> None:
        client, data, layer = self._client(), msgspec.json.encode(entry), entry.descriptor
        config = Descriptor(ENTRY, sha256(data), len(data))
        if layer is not None:
            client.push(self._repository, layer, partial(blobs.open, store, layer.digest))
        elif client.has_manifest(self._target(entry.key)) is not None:
            return
        client.push(self._repository, config, partial(io.BytesIO, data))
        # A manifest has at least one layer (OCI image specification): without one, the record is used.
        manifest = Manifest(mediatypes.OCI_MANIFEST, config, (layer or config,))
        client.put_manifest(self._target(entry.key), describe(manifest)[1], manifest.media_type)

    def fetch_blob(self, entry: Descriptor, store: Store) -> None:
        fetch_blob(store, entry, partial(self._client().fetch, self._repository))

    def _target(self, key: str) -> Reference:
        return self._repository.with_tag(f"{self._space[:60]}.{key}")


class DirectoryCache:
    """A cache in a directory, on a shared disk or in the cache of a CI system."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._path = path

    @property
    def location(self) -> protocol.CacheInDirectory:
        return protocol.CacheInDirectory(self.name)

    @property
    def repository(self) -> None:
        return None

    def find(self, key: str) -> RemoteCacheEntry | None:
        try:
            with regular.open_below(self._path, f"steps/{component(key)}") as file:
                data = file.read(_RECORD_LIMIT)
        except FileNotFoundError:
            if not os.path.isdir(self._path):
                raise
            return None
        return decode(data, key)

    def put(self, entry: RemoteCacheEntry, store: Store) -> None:
        record = below(self._path, "steps", entry.key)
        if entry.blob is None:
            if os.path.exists(record):
                return
        elif not os.path.exists(target := self._blob(entry.blob.digest)):
            with blobs.open(store, entry.blob.digest) as file:
                self._write(target, file.read)
        self._write(record, io.BytesIO(msgspec.json.encode(entry)).read)

    def fetch_blob(self, entry: Descriptor, store: Store) -> None:
        path = "/".join(("blobs", *map(component, check_digest(entry.digest).split(":"))))
        with regular.open_below(self._path, path) as file, blobs.resume(store, entry.digest) as ingest:
            file.seek(ingest.resume_offset)
            while block := file.read(1 << 20):
                ingest.write(block)
            ingest.commit()

    def _blob(self, digest: str) -> str:
        return below(self._path, "blobs", *check_digest(digest).split(":"))

    def _make_directories(self, path: str) -> None:
        """Make ``path`` below the cache's directory, without following links out of it."""
        os.makedirs(self._path, exist_ok=True)
        here = self._path
        for name in os.path.relpath(path, self._path).split("/"):
            here = below(here, name)
            with suppress(FileExistsError):
                os.mkdir(here)
            if not stat.S_ISDIR(os.lstat(here).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, f"{here} is not a directory of its own", here)

    def _write(self, path: str, read: Callable[[int], bytes]) -> None:
        self._make_directories(os.path.dirname(path))
        incoming = f"{path}.{os.getpid()}.{time.monotonic_ns()}"
        try:
            with open(incoming, "xb") as file:
                while block := read(1 << 20):
                    file.write(block)
            os.replace(incoming, path)
        except BaseException:
            if os.path.exists(incoming):
                os.unlink(incoming)
            raise


class InlineCache:
    """The steps in the config of an image; read-only."""

    def __init__(self, ref: str, platform: str, client: Lazy[Client]) -> None:
        self.name = ref
        self._reference = reference.parse(ref).completed()
        self._platform = platform
        self._client = client
        self._entries: dict[str, RemoteCacheEntry] | None = None

    @property
    def location(self) -> protocol.CacheInRegistry:
        return protocol.CacheInRegistry(self.name)

    @property
    def repository(self) -> Reference:
        return self._reference.repository_only()

    def find(self, key: str) -> RemoteCacheEntry | None:
        if self._entries is None:
            self._entries = self._read()
        return self._entries.get(key)

    def put(self, entry: RemoteCacheEntry, store: Store) -> None:
        raise ArchiveError(
            f"{self.name} is an image", why="its cache is written together with it: --cache-to type=inline"
        )

    def fetch_blob(self, entry: Descriptor, store: Store) -> None:
        fetch_blob(store, entry, partial(self._client().fetch, self._reference))

    def _read(self) -> dict[str, RemoteCacheEntry]:
        found = self._client().find(self._reference)
        if found is None:
            return {}
        document = found[0]
        if isinstance(document, Index):
            from platforms.parsing import parse

            _, document = selection.find(self.name, document, parse(self._platform), self._document)
        if document.config.media_type == ENTRY:
            return {}
        return read_inline(self._client().read_blob(self._reference, document.config, _CONFIG_LIMIT))

    def _document(self, descriptor: Descriptor) -> bytes:
        if descriptor.media_type in mediatypes.INDEXES | mediatypes.MANIFESTS:
            return self._client().manifest(self._reference.with_digest(descriptor.digest))[1]
        return self._client().read_blob(self._reference, descriptor, _CONFIG_LIMIT)


class RemoteCaches:
    """All remote caches of a job: looked up in order, and exported to. Thread-safe."""

    def __init__(
        self,
        sources: Sequence[RemoteCache],
        targets: Sequence[RemoteCache],
        tell: protocol.Tell,
        max_age: float | None,
        inputs: Inputs,
    ) -> None:
        self._sources = tuple(sources)
        self._targets = tuple(targets)
        self._tell = tell
        self._max_age = max_age
        self._inputs = inputs
        self._unusable: set[RemoteCache] = set()
        self._forgotten: set[str] = set()
        self._warned: set[tuple[str, str]] = set()
        self._asked: set[str] = set()
        self._helped: set[str] = set()

    def find(self, key: str) -> tuple[RemoteCacheEntry, RemoteCache] | None:
        """Return the entry for ``key`` in the first cache that has it. A cache that fails is not used any more."""
        for source in self._sources:
            if source in self._unusable:
                continue
            if source.name not in self._asked:
                self._asked.add(source.name)
                self._inputs.add("remote cache")
            try:
                entry = source.find(key)
            except (KanifoldError, OSError) as error:
                self._give_up((source,), error, _UNREAD)
                continue
            if entry is not None:
                self._helped.add(source.name)
            if entry is not None and self._forgotten.isdisjoint((entry.result, entry.name)) and self._is_young(entry):
                return entry, source
        return None

    def complain(self) -> None:
        """Warn of caches that had no entry for any step, whose reference may be wrong.

        Not of those that have failed, which was reported, nor of those that this build exports to.
        """
        silent = {each.name for each in (*self._unusable, *self._targets)}
        for name in sorted(self._asked - self._helped - silent):
            self._warn(Problem("CacheMissed", f"the cache {name} has nothing for this build"))

    def put(self, entry: RemoteCacheEntry, store: Store) -> None:
        """Add ``entry`` to all caches to export to."""
        for target in self._targets:
            if target in self._unusable:
                continue
            try:
                target.put(entry, store)
            except (KanifoldError, OSError) as error:
                self._give_up((target,), error, "its cache is not written")

    def lost(self, name: str, error: Exception) -> None:
        """Record that the cache ``name`` could not provide the layer of an entry: it is not used any more."""
        self._give_up([each for each in self._sources if each.name == name], error, _UNREAD)

    def forget(self, result: str) -> None:
        """Record that the layer of ``result`` (or of that name) is needed and not available: entries with it are not
        used."""
        self._forgotten.add(result)

    def _give_up(self, caches: Sequence[RemoteCache], error: Exception, so: str) -> None:
        self._unusable.update(caches)
        for name in {each.name for each in caches}:
            if (name, so) not in self._warned:  # a reference is used in two ways, and by many threads
                self._warned.add((name, so))
                self._warn(Problem("CacheUnusable", f"the cache {name} cannot be used, {so}", why=str(error)))

    def _warn(self, problem: Problem) -> None:
        self._tell(protocol.BuildWarning(problem, problem.kind))

    def _is_young(self, entry: RemoteCacheEntry) -> bool:
        if self._max_age is None:
            return True
        try:
            made = datetime.fromisoformat(entry.created.replace("Z", "+00:00"))
            return (datetime.now(UTC) - made).total_seconds() <= self._max_age
        except (ValueError, TypeError, OverflowError):  # no valid time, or one without a time zone
            return False


def at(location: protocol.CacheLocation, client: Lazy[Client]) -> RemoteCache:
    """Return the cache at ``location``."""
    match location:
        case protocol.CacheInRegistry():
            return RegistryCache(location.name, client)
        case protocol.CacheInDirectory():
            return DirectoryCache(location.name)
        case _:
            assert_never(location)


def sources_and_targets(
    job: protocol.Job, client: Lazy[Client]
) -> tuple[tuple[RemoteCache, ...], tuple[RemoteCache, ...]]:
    """Return the caches of ``job`` to import from, and those to export to."""
    sources: list[RemoteCache] = []
    for each in job.options.cache_from:
        sources.append(at(each, client))
        if isinstance(each, protocol.CacheInRegistry):  # the reference may be an image with an inline cache
            sources.append(InlineCache(each.name, job.platform, client))
    targets = (at(each.to, client) for each in job.options.cache_to if not isinstance(each.to, protocol.CacheInImage))
    return tuple(sources), tuple(targets)


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
