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

    here: str
    outside: str
    """In keys of remote caches."""
    places: tuple[str, ...] = ()
    """The remote caches that the name rests on, sorted."""


Observed = Part | Name | tuple["Observed", ...]
"""What a step can observe: a part of a key, with ``Name``s for file systems."""


def name(text: str) -> Name:
    """Return a name that is the same in this store and in remote caches."""
    return Name(text, text)


def above(below: Name, outcome: CacheEntry, places: tuple[str, ...]) -> Name:
    """Return the name of ``below`` with the layer of ``outcome`` added, whose key rests on the remote caches
    ``places``."""
    return Name(
        keys.key("tree", below.here, outcome.layer),
        keys.key("tree", below.outside, outcome.result),
        united(below.places, places, (outcome.place,) if outcome.place else ()),
    )


def by_content(text: str, places: tuple[str, ...]) -> Name:
    """Return the name of files that are identified by their content ``text`` but rest on the remote caches ``places``.

    The content was read here. Other metadata, such as times, may come from a remote cache.
    """
    return Name(keys.key("content", text, places) if places else text, text, places)


def here(observed: Observed) -> Part:
    """Return ``observed`` for a key of this store."""
    if isinstance(observed, Name):
        return observed.here
    return tuple(map(here, observed)) if isinstance(observed, tuple) else observed


def outside(observed: Observed) -> Part:
    """Return ``observed`` for a key of remote caches."""
    if isinstance(observed, Name):
        return observed.outside
    return tuple(map(outside, observed)) if isinstance(observed, tuple) else observed


def places(observed: Observed) -> tuple[str, ...]:
    """Return the remote caches that ``observed`` rests on."""
    if isinstance(observed, Name):
        return observed.places
    return united(*map(places, observed)) if isinstance(observed, tuple) else ()


def united(*every: tuple[str, ...]) -> tuple[str, ...]:
    """Return the union of ``every``, sorted."""
    return tuple(sorted({place for each in every for place in each}))
