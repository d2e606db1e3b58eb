"""The digest that was first seen of each of many things, in a few bytes for each."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable
from typing import Final

_WORD: Final = (1 << 64) - 1


class Fingerprints:
    """Names and digests, of which 64 and 32 bits are kept. Safe for threads.

    A name's bits are Python's own keyed hash of it, so nobody can prepare two that look alike.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._make(1 << 10)

    def _make(self, size: int) -> None:
        self._mask = size - 1
        self._names = array("Q", bytes(8 * size))
        self._values = array("I", bytes(4 * size))

    def first_different(self, pairs: Iterable[tuple[bytes, str]]) -> bytes | None:
        """Remember the digest of each new name of ``pairs``; the first name that has had another one, if any."""
        with self._lock:
            for name, digest in pairs:
                if not self._note((hash(name) & _WORD) or 1, int(digest[:8], 16)):
                    return name
        return None

    def _note(self, name: int, value: int) -> bool:
        names, mask = self._names, self._mask
        at = name & mask
        while names[at]:
            if names[at] == name:
                return self._values[at] == value
            at = (at + 1) & mask
        names[at] = name
        self._values[at] = value
        self._count += 1
        if self._count * 3 > mask * 2:
            self._grow()
        return True

    def _grow(self) -> None:
        names, values = self._names, self._values
        self._count = 0
        self._make(len(names) * 2)
        for name, value in zip(names, values, strict=True):
            if name:
                self._note(name, value)
