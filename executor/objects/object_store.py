"""Objects by key, as remote caches need them: what every kind of storage can do.

A key is a path: words with slashes between them. Objects are whole or absent: one that is being written is not seen.
Everything that a store returns is untrusted; who reads it verifies it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, Final, Protocol

import msgspec

PIECE: Final = 8 << 20
"""Bytes of a large object that are sent or requested at a time, by requests of their own where that is possible."""
SILENCE: Final = 15.0
"""Seconds that a service may take to answer a request, or send nothing of the answer."""


class StoredObject(msgspec.Struct, frozen=True):
    """An object that is there. ``used``: when it was written or touched last, in seconds since the epoch."""

    key: str
    size: int
    used: float


class ObjectStore(Protocol):
    """Storage for objects. Methods raise ``KanifoldError`` or ``OSError``; they are thread-safe."""

    def get(self, key: str, limit: int) -> tuple[bytes, StoredObject] | None:
        """Return the content of the object ``key``; None if there is none. Raises for more than ``limit`` bytes."""
        ...

    def find(self, key: str) -> StoredObject | None:
        """Return the object ``key`` without its content; None if there is none."""
        ...

    def stream(self, key: str, size: int, offset: int) -> Iterator[bytes]:
        """Yield the content of the object ``key``, which has ``size`` bytes, from ``offset`` on. Raises if there is
        none."""
        ...

    def put(self, key: str, content: Callable[[], Iterator[bytes]], size: int) -> None:
        """Write the object ``key``, in place of one that is there. ``content`` yields its ``size`` bytes, again each
        time it is called."""
        ...

    def touch(self, found: StoredObject) -> None:
        """Mark the object as used now, so that those which are not used can be removed by their age."""
        ...

    def list(self, directory: str) -> Iterator[StoredObject]:
        """Yield the objects below ``directory``."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects, of which some may be gone."""
        ...


def shown(key: str) -> str:
    """Return ``key`` as it stands in messages: of a digest, the beginning is enough."""
    return re.sub(r"([0-9a-f]{12})[0-9a-f]{20,}", r"\1…", key)


def pieces(open_file: Callable[[], BinaryIO]) -> Iterator[bytes]:
    """Yield the content of the file that ``open_file`` opens."""
    with open_file() as file:
        while piece := file.read(PIECE):
            yield piece
