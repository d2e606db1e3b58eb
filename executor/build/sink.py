"""Blobs on their way into the store, from those who verify what they hand over: a registry's client, a layout."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO

from executor.image.manifest import Descriptor
from executor.registry.transfer import Sink
from executor.store import blobs, faults
from executor.store.store import Store


def bring(store: Store, descriptor: Descriptor, fetch: Callable[[Descriptor, Sink], None]) -> None:
    """Let ``fetch`` write the blob of ``descriptor``, and keep it.

    Its bytes are hashed once, where they come from: there a wrong one is asked for again, or elsewhere. When ``fetch``
    returns, they were right.
    """
    path = store.session.temporary()
    try:
        with open(path, "xb", buffering=0) as file:
            fetch(descriptor, _FileSink(store, file))
        blobs.adopt(store, path, descriptor.digest, descriptor.size)
    finally:
        if os.path.exists(path):
            os.unlink(path)


class _FileSink:
    """A file of the store as what a download is written to."""

    def __init__(self, store: Store, file: BinaryIO) -> None:
        self._root = store.root
        self._file = file

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        left = memoryview(data)
        with faults.translated(self._root, "cannot write a blob"):
            while left:
                left = left[self._file.write(left) :]

    def reset(self) -> None:
        """Start again at 0."""
        with faults.translated(self._root, "cannot write a blob"):
            self._file.seek(0)
            self._file.truncate()
