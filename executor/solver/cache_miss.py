"""Why a step was not found in the cache: which parts of its key differ from those of the last time that it was made.

For each instruction as written, and each platform if that matters, the store keeps digests of the parts of the last
key. They explain, and decide nothing: a record that is missing or wrong makes an explanation vague.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec

from executor.solver import keys
from executor.solver.keys import Part
from executor.solver.step import Step
from executor.store import cache_records
from executor.store.store import Store
from platforms import decoding

FIRST: Final = "it was not made before, as it is written"
IGNORED: Final = "the cache was not to be used"
GONE: Final = "its result is no longer in the store"
_DIGITS: Final = 16
"""Number of hexadecimal digits of a part's digest."""
_KNOWN: Final = msgspec.json.Decoder(dict[str, str])


class CacheMiss(msgspec.Struct, frozen=True):
    """Why a step is made, and what is to be known the next time."""

    reason: str
    name: str
    """Of the record."""
    parts: Mapping[str, str]
    """The digests of the parts of the key, by what they are; "" for one that is too long to be digested again."""

    def record(self, store: Store) -> None:
        """Record the parts of the key, now that the step was made."""
        cache_records.put(store, self.name, msgspec.json.encode(self.parts))


def compare(store: Store, step: Step, seen: Part, times: tuple[Part, ...], *, fresh: bool) -> CacheMiss:
    """Return why ``step``, whose key has the parts ``seen`` and ``times``, has to be made."""
    parts = {**_parts(step, seen), "the time that files get": _digest(times)}
    # What is made of files alone is shared by the platforms of a build, whichever of them makes it.
    platform = "" if step.by_content else str(step.state.platform)
    name = f"parts:{keys.key('parts', step.title, platform)}"
    data = cache_records.get(store, name)
    try:
        known = decoding.decode(_KNOWN, data) if data is not None else None
    except msgspec.DecodeError:
        known = None
    return CacheMiss(_reason(known, parts, fresh=fresh), name, parts)


def _reason(known: Mapping[str, str] | None, parts: Mapping[str, str], *, fresh: bool) -> str:
    if fresh:
        return IGNORED
    if known is None:
        return FIRST
    changed = [name for name, digest in parts.items() if known.get(name) != digest]
    if not changed:
        changed = [name for name, digest in parts.items() if not digest]
    return f"changed: {', '.join(changed)}" if changed else GONE


def _parts(step: Step, seen: Part) -> dict[str, str]:
    names = step.key_parts
    found = seen[1:] if isinstance(seen, tuple) else ()
    more = len(found) - len(names)
    labels = (*names[:-1], *names[-2:-1] * more, *names[-1:]) if more > 0 else names
    parts: dict[str, list[Part]] = {}
    for name, each in zip(labels, found, strict=False):
        parts.setdefault(name, []).append(each)
    return {name: _digest(tuple(each)) for name, each in parts.items()}


def _digest(part: Part) -> str:
    try:
        return hashlib.sha256(keys.encoded(part)).hexdigest()[:_DIGITS]
    except TypeError:  # it has rows, which take as long to encode as the key did
        return ""
