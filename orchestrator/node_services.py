"""What this machine has for the executor of a job on a node with another disk."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from executor import protocol
from executor.solver.lazy import Lazy
from executor.store.store import Store

if TYPE_CHECKING:
    from orchestrator.node_caches import NodeCaches
    from orchestrator.sent_contexts import SentContexts


class NodeServices(msgspec.Struct, frozen=True):
    """Contexts, of one build, and caches, of one job."""

    contexts: Lazy[SentContexts]
    caches: Lazy[NodeCaches]


def cache_name(directory: str) -> str:
    """Return the name of the cache in ``directory`` for other machines, which does not tell where it is."""
    return f"directory {hashlib.sha256(directory.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


def contexts(store: Store) -> Lazy[SentContexts]:
    """Return the contexts of a build."""
    return Lazy(partial(_contexts, store))


def caches(job: protocol.Job, store: Store) -> Lazy[NodeCaches]:
    """Return the caches of ``job``, which names those in directories of this machine."""
    return Lazy(partial(_caches, job, store))


def _contexts(store: Store) -> SentContexts:
    from orchestrator.sent_contexts import SentContexts  # which only nodes with another disk ask for

    return SentContexts(store)


def _caches(job: protocol.Job, store: Store) -> NodeCaches:
    from executor.solver import remote_cache
    from orchestrator.node_caches import NodeCache, NodeCaches

    options = job.options
    made = {
        each.name: NodeCache(remote_cache.in_directory(each, _silent), store)
        for each in (*options.cache_from, *(export.to for export in options.cache_to))
        if isinstance(each, protocol.CacheInDirectory)
    }
    sources = {cache_name(each.name): made[each.name] for each in options.cache_from if each.name in made}
    targets = {
        cache_name(each.to.name): made[each.to.name]
        for each in options.cache_to
        if isinstance(each.to, protocol.CacheInDirectory)
    }
    return NodeCaches(sources, targets)


def _silent(_message: protocol.Message) -> None:
    """Report nothing: the executor does."""
