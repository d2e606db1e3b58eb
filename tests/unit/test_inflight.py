"""Downloads into the store: whole or not at all, and hashed by whoever fetches them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from executor.image.digest import sha256
from executor.image.manifest import Descriptor
from executor.objects.directory_objects import DirectoryObjects
from executor.protocol import CacheInDirectory, CachePace
from executor.registry.transfer import BlobWriter
from executor.solver.inflight import BlobReader, InFlightBlob, RetryRead, fetch_blob
from executor.solver.lazy import ready
from executor.solver.object_cache import CacheLayout, ObjectCache
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
    def fetch(_: Descriptor, sink: BlobWriter) -> None:
        sink.write(b"something else, and longer")
        sink.reset()
        sink.write(b"what was ")
        sink.write(b"meant")

    fetch_blob(store, WANTED, fetch)
    assert blobs.read(store, WANTED.digest, 100) == b"what was meant"
    assert leftovers(store) == []


def test_a_download_that_breaks_off_leaves_nothing(store: Store) -> None:
    def fetch(_: Descriptor, sink: BlobWriter) -> None:
        sink.write(b"what was ")
        raise RegistryError("cannot pull", why="the connection broke")

    with pytest.raises(RegistryError):
        fetch_blob(store, WANTED, fetch)
    assert not blobs.has(store, WANTED.digest)
    assert leftovers(store) == []


def test_a_download_of_another_size_is_no_blob(store: Store) -> None:
    def fetch(_: Descriptor, sink: BlobWriter) -> None:
        sink.write(b"what was")

    with pytest.raises(StoreError, match="cannot store"):
        fetch_blob(store, WANTED, fetch)
    assert not blobs.has(store, WANTED.digest)
    assert leftovers(store) == []


def test_a_copy_out_of_a_directory_that_was_cut_short_is_gone_on_with(store: Store, tmp_path: Path) -> None:
    blob = tmp_path / "cache/blobs" / WANTED.digest.replace(":", "/")
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"what was meant")
    with blobs.ingest(store, WANTED.digest) as ingest:
        ingest.write(b"what was ")
    place = str(tmp_path / "cache")
    layout, objects = CacheLayout("steps", ("",), "blobs"), ready(DirectoryObjects(place))
    cache = ObjectCache(CacheInDirectory(place), layout, objects, CachePace(), lambda _: None)
    cache.fetch_blob(WANTED, store)
    assert blobs.read(store, WANTED.digest, 100) == b"what was meant"


# -- a blob that is read while it comes --


def test_a_blob_can_be_read_while_it_comes(store: Store) -> None:
    arrival = InFlightBlob()
    seen = []

    def fetch(_: Descriptor, sink: BlobWriter) -> None:
        sink.write(b"what was ")
        with ThreadPoolExecutor(1) as beside:
            following = beside.submit(arrival.follow).result(10)
            assert following is not None
            with following:
                seen.append(beside.submit(following.read, 4).result(10))
                rest = beside.submit(following.read, 100)
                sink.write(b"meant")
                arrival.end()
                seen.append(rest.result(10))
                seen.append(following.read(100))

    fetch_blob(store, WANTED, fetch, arrival)
    assert seen == [b"what", b" was meant", b""]


def test_who_has_read_wrong_bytes_is_told(store: Store) -> None:
    arrival = InFlightBlob()

    def fetch(_: Descriptor, sink: BlobWriter) -> None:
        sink.write(b"something else")
        with arrival.follow() as following:  # type: ignore[union-attr]
            assert following.read(9) == b"something"
            sink.reset()
            sink.write(b"what was meant")
            with pytest.raises(RetryRead):
                following.read(5)

    fetch_blob(store, WANTED, fetch, arrival)
    assert arrival.void
    assert blobs.read(store, WANTED.digest, 100) == b"what was meant"


def test_a_download_that_breaks_off_ends_what_follows_it(store: Store) -> None:
    arrival = InFlightBlob()

    def fetch(_: Descriptor, sink: BlobWriter) -> None:
        sink.write(b"what was ")
        following.append(arrival.follow())
        raise RegistryError("cannot pull", why="the connection broke")

    following: list[BlobReader | None] = []
    with pytest.raises(RegistryError):
        fetch_blob(store, WANTED, fetch, arrival)
    assert following[0] is not None
    with following[0]:
        assert following[0].read(100) == b"what was "
        assert following[0].read(100) == b""


def test_what_is_not_downloaded_by_us_cannot_be_followed() -> None:
    arrival = InFlightBlob()
    arrival.end()
    assert arrival.follow() is None
