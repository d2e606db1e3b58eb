"""Names of file systems in cache keys: one for keys of this store, one for keys of remote caches.

A remote cache identifies a layer by the result that its entry states, and keys for that cache contain this result. The
statement is trusted only by builds that use the cache: keys of this store contain the name under which the imported
layer is stored, which no step on this machine can have. Without imports both names are the same.
"""

from __future__ import annotations

import msgspec

from executor.solver import keys
from executor.solver.cache import CacheEntry
from executor.solver.keys import Part


class Name(msgspec.Struct, frozen=True):
    """A file system, for keys: equal names, equal files."""

    local: str
    remote: str
    """In keys of remote caches."""
    sources: tuple[str, ...] = ()
    """The remote caches that the name rests on, sorted."""


Observed = Part | Name | tuple["Observed", ...]
"""What a step can observe: a part of a key, with ``Name``s for file systems."""


def name(text: str) -> Name:
    """Return a name that is the same in this store and in remote caches."""
    return Name(text, text)


def above(below: Name, outcome: CacheEntry, sources: tuple[str, ...]) -> Name:
    """Return the name of ``below`` with the layer of ``outcome`` added, whose key rests on the remote caches
    ``sources``."""
    return Name(
        keys.key("tree", below.local, outcome.layer),
        keys.key("tree", below.remote, outcome.result),
        united(below.sources, sources, (outcome.source,) if outcome.source else ()),
    )


def by_content(text: str, sources: tuple[str, ...]) -> Name:
    """Return the name of files that are identified by their content ``text`` but rest on the remote caches ``sources``.

    The content was read here. Other metadata, such as times, may come from a remote cache.
    """
    return Name(keys.key("content", text, sources) if sources else text, text, sources)


def local(observed: Observed) -> Part:
    """Return ``observed`` for a key of this store."""
    if isinstance(observed, Name):
        return observed.local
    return tuple(map(local, observed)) if isinstance(observed, tuple) else observed


def remote(observed: Observed) -> Part:
    """Return ``observed`` for a key of remote caches."""
    if isinstance(observed, Name):
        return observed.remote
    return tuple(map(remote, observed)) if isinstance(observed, tuple) else observed


def sources(observed: Observed) -> tuple[str, ...]:
    """Return the remote caches that ``observed`` rests on."""
    if isinstance(observed, Name):
        return observed.sources
    return united(*map(sources, observed)) if isinstance(observed, tuple) else ()


def united(*every: tuple[str, ...]) -> tuple[str, ...]:
    """Return the union of ``every``, sorted."""
    return tuple(sorted({source for each in every for source in each}))
