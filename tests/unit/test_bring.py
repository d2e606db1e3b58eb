"""Downloads into the store: whole or not at all, and hashed by whoever fetches them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.build.sink import bring
from executor.image.digest import sha256
from executor.image.manifest import Descriptor
from executor.registry.transfer import Sink
from executor.store import blobs
from executor.store.store import Store, open_store
from platforms.errors import RegistryError, StoreError

WANTED = Descriptor("", sha256(b"what was meant"), 14)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path)) as opened:
        yield opened


def leftovers(store: Store) -> list[str]:
    return [name for _, _, names in os.walk(os.path.join(store.root, "tmp")) for name in names]


def test_what_was_written_before_a_reset_is_forgotten(store: Store) -> None:
    def fetch(_: Descriptor, sink: Sink) -> None:
        sink.write(b"something else, and longer")
        sink.reset()
        sink.write(b"what was ")
        sink.write(b"meant")

    bring(store, WANTED, fetch)
    assert blobs.read(store, WANTED.digest, 100) == b"what was meant"
    assert leftovers(store) == []


def test_a_download_that_breaks_off_leaves_nothing(store: Store) -> None:
    def fetch(_: Descriptor, sink: Sink) -> None:
        sink.write(b"what was ")
        raise RegistryError("cannot pull", why="the connection broke")

    with pytest.raises(RegistryError):
        bring(store, WANTED, fetch)
    assert not blobs.has(store, WANTED.digest)
    assert leftovers(store) == []


def test_a_download_of_another_size_is_no_blob(store: Store) -> None:
    def fetch(_: Descriptor, sink: Sink) -> None:
        sink.write(b"what was")

    with pytest.raises(StoreError, match="cannot store"):
        bring(store, WANTED, fetch)
    assert not blobs.has(store, WANTED.digest)
    assert leftovers(store) == []
