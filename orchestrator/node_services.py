"""What this machine has for the executor of a job on a node with another disk."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from executor import protocol
from executor.solver.lazy import Lazy
from executor.store.store import Store

if TYPE_CHECKING:
    from orchestrator.node_caches import NodeCaches, SharedSteps
    from orchestrator.registries import Registry
    from orchestrator.sent_contexts import SentContexts
    from orchestrator.view.events import Emit


class NodeServices(msgspec.Struct, frozen=True):
    """Contexts, of one build, and caches, of one job."""

    contexts: Lazy[SentContexts]
    caches: Lazy[NodeCaches]
    ready: Mapping[str, Callable[[], Awaitable[None]]] = {}
    """What has to be awaited before a cache is asked, by its name."""


def cache_name(directory: str) -> str:
    """Return the name of the cache in ``directory`` for other machines, which does not tell where it is."""
    return f"directory {hashlib.sha256(directory.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


def contexts(store: Store, registry: Registry, emit: Emit) -> Lazy[SentContexts]:
    """Return the contexts of a build."""
    return Lazy(partial(_contexts, store, registry, emit))


def caches(job: protocol.Job, store: Store, steps: SharedSteps | None = None) -> Lazy[NodeCaches]:
    """Return the caches of ``job``, which names those in directories of this machine; ``steps`` are the entries of one
    that has stages for another node."""
    return Lazy(partial(_caches, job, store, steps))


def _contexts(store: Store, registry: Registry, emit: Emit) -> SentContexts:
    from orchestrator.context_artifacts import ContextArtifacts
    from orchestrator.sent_contexts import SentContexts  # which only nodes with another disk ask for

    return SentContexts(store, ContextArtifacts(store, registry, emit))


def _caches(job: protocol.Job, store: Store, steps: SharedSteps | None) -> NodeCaches:
    from executor.solver import remote_cache
    from orchestrator.node_caches import NodeCache, NodeCaches

    options = job.options
    made: dict[str, NodeCache] = {}
    arrived: set[str] = set()
    for each in (*options.cache_from, *(export.to for export in options.cache_to)):
        if isinstance(each, protocol.CacheInDirectory):
            made[each.name] = NodeCache(remote_cache.in_directory(each, _silent), store, arrived)
        elif isinstance(each, protocol.CacheAtOrchestrator) and steps is not None:
            made[each.name] = NodeCache(steps, store)
    exports = [each.to for each in options.cache_to if not isinstance(each.to, protocol.CacheInImage)]
    sources = {_known_as(each): made[each.name] for each in options.cache_from if each.name in made}
    targets = {_known_as(each): made[each.name] for each in exports if each.name in made}
    return NodeCaches(sources, targets)


def _known_as(location: protocol.CacheLocation) -> str:
    """Return the name of a cache for other machines."""
    return cache_name(location.name) if isinstance(location, protocol.CacheInDirectory) else location.name


def _silent(_message: protocol.Message) -> None:
    """Report nothing: the executor does."""
