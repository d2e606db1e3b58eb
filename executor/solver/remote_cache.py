"""Remote caches: in a registry, within an image, in a directory, and at services that keep objects.

Every entry is a separate object under its key, so that platforms, nodes and CI runners write concurrently and do not
overwrite each other's entries. In a registry an entry is an OCI manifest, tagged ``NAMESPACE.KEY``, whose config is the
record and whose only layer is the step's; within an image it is in a field of the image's config; elsewhere it is an
object (``object_cache``).

Everything is verified before it is used: the record names its key, the layer has a digest and a diff id. A cache that
is missing, broken or unreachable costs a warning, never a build.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, assert_never

import msgspec

from executor import protocol
from executor.image import mediatypes, selection
from executor.image.digest import sha256
from executor.image.manifest import Descriptor, Index, Manifest, describe
from executor.objects.cache_account import Account, CacheAccount
from executor.objects.directory_objects import DirectoryObjects
from executor.objects.object_store import ObjectStore
from executor.registry import reference
from executor.registry.reference import Reference
from executor.solver.inflight import fetch_blob
from executor.solver.inputs import Inputs
from executor.solver.lazy import Lazy
from executor.solver.object_cache import CacheLayout, ObjectCache
from executor.solver.remote_entry import ENTRY, RECORD_LIMIT, RemoteCacheEntry, decode, read_inline
from executor.store import blobs
from executor.store.store import Store
from platforms import decoding
from platforms.errors import ArchiveError, CacheError, KanifoldError, Problem, ProtocolError

if TYPE_CHECKING:
    from executor.conversation import Conversation
    from executor.registry.client import Client
    from executor.transport import Cancel, Trust

_SPACE_LIMIT: Final = 60
"""Maximum number of characters of a namespace in tags."""
_CONFIG_LIMIT: Final = 8 << 20
_UNREAD: Final = "the build goes on without it"

# Made here, by one thread: two that make the decoder of one type at the same moment crash msgspec.
_ACCOUNT: Final[msgspec.json.Decoder[CacheAccount]] = msgspec.json.Decoder(CacheAccount)


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

    def holds(self, entry: RemoteCacheEntry) -> bool:
        """Whether this build has found ``entry`` in the cache, as it is, with its layer."""
        ...

    def bound(self, bounds: protocol.CacheBounds) -> None:
        """Remove what exceeds ``bounds``."""
        ...


class CacheTarget(msgspec.Struct, frozen=True):
    """A cache to export to."""

    cache: RemoteCache
    bounds: protocol.CacheBounds | None = None
    required: bool = False
    """Whether the build fails if the cache cannot be written."""


class CacheReport(msgspec.Struct, frozen=True):
    """Where remote caches tell what they do."""

    tell: protocol.Tell
    inputs: Inputs


class RegistryCache:
    """A cache in a repository. The tag is a namespace: several caches can share a repository."""

    def __init__(self, ref: str, client: Lazy[Client]) -> None:
        parsed = reference.parse(ref)
        self.name = ref
        self._repository = parsed.repository_only()
        self._space = _namespace(parsed.tag or "cache")
        self._client = client

    @property
    def location(self) -> protocol.CacheInRegistry:
        return protocol.CacheInRegistry(self.name)

    def find(self, key: str) -> RemoteCacheEntry | None:
        target = self._target(key)
        found = self._client().find(target)
        if found is None:
            return None
        document = found[0]
        if not isinstance(document, Manifest) or document.config.media_type != ENTRY or len(document.layers) != 1:
            raise ArchiveError(f"{target.familiar()} is not a cache entry")
        entry = decode(self._client().read_blob(self._repository, document.config, RECORD_LIMIT), key)
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

    def holds(self, entry: RemoteCacheEntry) -> bool:
        return False

    def bound(self, bounds: protocol.CacheBounds) -> None:
        """Do nothing: a registry's own policies remove tags."""

    def _target(self, key: str) -> Reference:
        return self._repository.with_tag(f"{self._space}.{key}")


def _namespace(tag: str) -> str:
    """Return ``tag`` as the beginning of tags, of which a key is the rest. Of a long one, as of a branch, the digest
    keeps it apart from others that begin alike: a tag has at most 128 characters."""
    if len(tag) <= _SPACE_LIMIT:
        return tag
    mark = sha256(tag.encode()).removeprefix("sha256:")[:16]
    return f"{tag[: _SPACE_LIMIT - 17]}-{mark}"


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

    def holds(self, entry: RemoteCacheEntry) -> bool:
        return False

    def bound(self, bounds: protocol.CacheBounds) -> None:
        """Do nothing: the image has the cache of one build."""

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
        self, sources: Sequence[RemoteCache], targets: Sequence[CacheTarget], report: CacheReport, max_age: float | None
    ) -> None:
        self._sources = tuple(sources)
        self._targets = tuple(targets)
        self._report = report
        self._max_age = max_age
        self._unread: set[RemoteCache] = set()
        self._unwritten: dict[RemoteCache, Exception] = {}
        self._dead: set[RemoteCache] = set()
        self._forgotten: set[str] = set()
        self._warned: set[tuple[str, str]] = set()
        self._asked: set[str] = set()
        self._helped: set[str] = set()

    def find(self, key: str, platform: str, *, fresh: bool) -> tuple[RemoteCacheEntry, RemoteCache] | None:
        """Return the entry for ``key``, a step on ``platform``, in the first cache that has it. With ``fresh``, only
        what this build makes elsewhere counts. A cache that fails is not used any more."""
        for source in self._sources:
            if source in self._unread or not _may_have(source.location, platform, fresh=fresh):
                continue
            if source.name not in self._asked:
                self._asked.add(source.name)
                self._report.inputs.add("remote cache")
            try:
                entry = source.find(key)
            except (KanifoldError, OSError) as error:
                self._stop_reading((source,), error)
                continue
            if entry is not None:
                self._helped.add(source.name)
            if entry is not None and self._forgotten.isdisjoint((entry.result, entry.name)) and self._is_young(entry):
                return entry, source
        return None

    def fetch_blob(self, location: protocol.CacheLocation, entry: Descriptor, store: Store) -> None:
        """Fetch the layer of an entry from the cache at ``location``, which is one of the job's."""
        for each in self._sources:
            if each.name == location.name and each not in self._dead:
                each.fetch_blob(entry, store)
                return
        raise CacheError(f"the cache {location.name} is not used by this build")

    def complain(self) -> None:
        """Warn of caches that had no entry for any step, whose reference may be wrong.

        Not of those that have failed, which was reported, nor of those that this build exports to, or that have only
        stages that are made elsewhere.
        """
        silent = {each.name for each in (*self._unread, *(each.cache for each in self._targets))}
        silent |= {each.name for each in self._sources if not _may_have(each.location, "", fresh=False)}
        for name in sorted(self._asked - self._helped - silent):
            self._warn(Problem("CacheMissed", f"the cache {name} has nothing for this build"))

    def hold(self, entry: RemoteCacheEntry) -> bool:
        """Whether no cache to export to needs ``entry``: as far as this build has seen, all that can be written have
        it."""
        return all(
            (each.cache in self._unwritten and not each.required) or each.cache.holds(entry) for each in self._targets
        )

    def put(self, entry: RemoteCacheEntry, store: Store) -> None:
        """Add ``entry`` to all caches to export to. Raises the error of one without which the build fails."""
        for target in self._targets:
            cache = target.cache
            try:
                if cache not in self._unwritten:
                    cache.put(entry, store)
            except (KanifoldError, OSError) as error:
                self._stop_writing(cache, error)
            if target.required and cache in self._unwritten:
                raise self._failure(cache)

    def bound(self) -> None:
        """Remove from the caches to export to what exceeds their bounds."""
        for target in self._targets:
            if target.bounds is None or target.cache in self._unwritten:
                continue
            try:
                target.cache.bound(target.bounds)
            except (KanifoldError, OSError) as error:
                self._warn(
                    Problem("CacheUnbounded", f"the cache {target.cache.name} cannot be kept small", why=str(error))
                )

    def lost(self, name: str, error: Exception) -> None:
        """Record that the cache ``name`` could not provide the layer of an entry: it is not used any more."""
        self._stop_reading([each for each in self._sources if each.name == name], error)

    def forget(self, result: str) -> None:
        """Record that the layer of ``result`` (or of that name) is needed and not available: entries with it are not
        used."""
        self._forgotten.add(result)

    def _stop_reading(self, caches: Sequence[RemoteCache], error: Exception) -> None:
        """What a service refuses, or does not answer, would take as long for the next entry, and for writing one."""
        self._unread.update(caches)
        if isinstance(error, CacheError):
            self._dead.update(caches)
            self._unwritten.update(dict.fromkeys(caches, error))
        for name in {each.name for each in caches}:
            self._warn_once(name, error, _UNREAD)

    def _stop_writing(self, cache: RemoteCache, error: Exception) -> None:
        self._unwritten[cache] = error
        if not any(each.required for each in self._targets if each.cache is cache):
            self._warn_once(cache.name, error, "its cache is not written")

    def _failure(self, cache: RemoteCache) -> CacheError:
        error = self._unwritten[cache]
        remedy = error.problem.remedy if isinstance(error, KanifoldError) else ""
        return CacheError(
            f"the cache {cache.name} cannot be written, and ignore-error=false was given",
            why=str(error),
            remedy=remedy,
        )

    def _warn_once(self, name: str, error: Exception, so: str) -> None:
        if (name, so) in self._warned:  # a reference is used in two ways, and by many threads
            return
        self._warned.add((name, so))
        remedy = error.problem.remedy if isinstance(error, CacheError) else ""
        self._warn(Problem("CacheUnusable", f"the cache {name} cannot be used, {so}", why=str(error), remedy=remedy))

    def _warn(self, problem: Problem) -> None:
        self._report.tell(protocol.BuildWarning(problem, problem.kind))

    def _is_young(self, entry: RemoteCacheEntry) -> bool:
        if self._max_age is None:
            return True
        try:
            made = datetime.fromisoformat(entry.created.replace("Z", "+00:00"))
            return (datetime.now(UTC) - made).total_seconds() <= self._max_age
        except (ValueError, TypeError, OverflowError):  # no valid time, or one without a time zone
            return False


def _may_have(location: protocol.CacheLocation, platform: str, *, fresh: bool) -> bool:
    """Whether the cache at ``location`` may have an entry that a job uses for a step on ``platform``."""
    if isinstance(location, protocol.CacheAtOrchestrator) and location.platform:
        return location.platform == platform
    return not fresh


class Connections(msgspec.Struct, frozen=True):
    """How the remote caches of a job are reached."""

    registry: Lazy[Client]
    conversation: Conversation
    """In which accounts are asked for."""
    trust: Trust
    cancel: Cancel
    report: CacheReport


def at(location: protocol.CacheLocation, connections: Connections) -> RemoteCache:
    """Return the cache at ``location``."""
    objects: Lazy[ObjectStore]
    account, pace = partial(_account, connections.conversation, location.name), protocol.CachePace()
    match location:
        case protocol.CacheInRegistry():
            return RegistryCache(location.name, connections.registry)
        case protocol.CacheInDirectory():
            return in_directory(location, connections.report.tell)
        case protocol.CacheAtOrchestrator():
            from executor.solver.orchestrator_cache import OrchestratorCache  # for a node with another disk

            return OrchestratorCache(location, connections.conversation)
        case protocol.CacheInBucket() | protocol.CacheInContainer():
            layout, pace = CacheLayout(location.records, location.names, location.layers), location.pace
            objects = Lazy(partial(_bucket_objects, location, account))
        case protocol.CacheInActions():
            layout, pace = CacheLayout("kanifold-step", (location.scope,), "kanifold-layer"), location.pace
            objects = Lazy(partial(_actions_objects, location, account, connections))
        case _:
            assert_never(location)
    return ObjectCache(location, layout, objects, pace, connections.report.tell)


def in_directory(location: protocol.CacheInDirectory, tell: protocol.Tell) -> RemoteCache:
    """Return the cache in a directory of this machine."""
    objects: Lazy[ObjectStore] = Lazy(partial(DirectoryObjects, location.name))
    return ObjectCache(location, CacheLayout("steps", ("",), "blobs"), objects, protocol.CachePace(), tell)


def _bucket_objects(location: protocol.CacheInBucket | protocol.CacheInContainer, account: Account) -> ObjectStore:
    from executor.objects import bucket_objects

    if isinstance(location, protocol.CacheInBucket):
        return bucket_objects.in_bucket(location, account)
    return bucket_objects.in_container(location, account)


def _actions_objects(location: protocol.CacheInActions, account: Account, connections: Connections) -> ObjectStore:
    from executor.objects import actions_objects

    return actions_objects.in_actions(location, Lazy(account), connections.trust, connections.cancel)


def of_job(job: protocol.Job, connections: Connections) -> RemoteCaches:
    """Return the caches of ``job``. One that is imported from and exported to with the same options is one object."""
    made: dict[protocol.CacheLocation, RemoteCache] = {}
    sources: list[RemoteCache] = []
    targets: list[CacheTarget] = []

    for each in job.options.cache_from:
        sources.append(_known(each, made, connections))
        if isinstance(each, protocol.CacheInRegistry):  # the reference may be an image with an inline cache
            sources.append(InlineCache(each.name, job.platform, connections.registry))
    for export in job.options.cache_to:
        if not isinstance(export.to, protocol.CacheInImage):
            targets.append(CacheTarget(_known(export.to, made, connections), export.bounds, export.required))
    ttl = job.options.cache_ttl
    return RemoteCaches(sources, targets, connections.report, None if ttl is None else ttl + job.clock_ahead)


def _known(
    location: protocol.CacheLocation, made: dict[protocol.CacheLocation, RemoteCache], connections: Connections
) -> RemoteCache:
    if location not in made:
        made[location] = at(location, connections)
    return made[location]


def _account(conversation: Conversation, name: str) -> CacheAccount:
    """Return the account for the remote cache ``name``, which the orchestrator has. Raises ``CacheError`` if there is
    none, or it cannot be part of a request."""
    answer = conversation.ask(protocol.AskCacheAccount(name))
    if answer is None:
        raise CacheError(f"there is no account for {name}")
    try:
        found = decoding.decode(_ACCOUNT, answer)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the account for {name} is malformed", why=str(error)) from error
    if not found.is_sendable:
        raise CacheError(
            f"the account for {name} is not one",
            why="its key or token has a line break, a space or another character that no request can have",
            remedy="look for a line break at the end of the variable or secret that has it",
        )
    return found
