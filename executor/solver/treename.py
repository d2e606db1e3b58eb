"""Names of file systems in cache keys: what they are called in this store, and what outside caches call them.

An outside cache knows a layer by the result that its step is said to have had, and so keys that such a cache is asked
for hold that result. Its word for it counts for builds that ask the cache and for no other: a key of this store holds,
in place of such a result, the name under which the imported layer is known here, which no step of our own comes to.
Where nothing was imported both are the same.
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
    """As far as outside caches are to be believed."""
    places: tuple[str, ...] = ()
    """The outside caches by whose word it is what it is, sorted."""


Observed = Part | Name | tuple["Observed", ...]
"""What a step can observe: a part of a key in which file systems are not spelled out yet."""


def name(text: str) -> Name:
    """The name of a file system that is the same everywhere."""
    return Name(text, text)


def above(below: Name, outcome: CacheEntry, places: tuple[str, ...]) -> Name:
    """The name of ``below`` with the layer of ``outcome`` on it, which rests on what ``places`` say, and its own."""
    return Name(
        keys.key("tree", below.here, outcome.layer),
        keys.key("tree", below.outside, outcome.result),
        united(below.places, places, (outcome.place,) if outcome.place else ()),
    )


def by_content(text: str, places: tuple[str, ...]) -> Name:
    """The name of files that are known by their content alone, although ``places`` had a say in what they are.

    Their content is no cache's word. But what else there is about them, a time for one, may be a cache's making.
    """
    return Name(keys.key("content", text, places) if places else text, text, places)


def here(observed: Observed) -> Part:
    """``observed`` for a key of this store."""
    if isinstance(observed, Name):
        return observed.here
    return tuple(map(here, observed)) if isinstance(observed, tuple) else observed


def outside(observed: Observed) -> Part:
    """``observed`` for a key that outside caches know."""
    if isinstance(observed, Name):
        return observed.outside
    return tuple(map(outside, observed)) if isinstance(observed, tuple) else observed


def places(observed: Observed) -> tuple[str, ...]:
    """The outside caches that had a say in what is ``observed``."""
    if isinstance(observed, Name):
        return observed.places
    return united(*map(places, observed)) if isinstance(observed, tuple) else ()


def united(*every: tuple[str, ...]) -> tuple[str, ...]:
    """All places among ``every``, sorted."""
    return tuple(sorted({place for each in every for place in each}))
