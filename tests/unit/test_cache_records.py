"""What the build cache writes into a store, and that it reads what earlier versions wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.protocol import CacheInDirectory, CacheInRegistry
from executor.solver import cache
from executor.solver.cache import CacheEntry, ElfFiles, LayerInfo, LayerRecord
from executor.store import cache_records
from executor.store.store import Store, open_store

BLOB = LayerRecord("gzip", "sha256:" + "a" * 64, 7)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path)) as opened:
        yield opened


def test_what_is_known_of_a_layer_is_read_as_it_was_written(store: Store) -> None:
    caches = (CacheInRegistry("reg.example/cache:x"), CacheInDirectory("/mnt/a cache"))
    known = LayerInfo("sha256:" + "b" * 64, (BLOB,), (ElfFiles("amd64", 1, ("/bin/x",)),), caches, deferred=True)
    cache.put_layer_info(store, "r", known)
    assert cache.get_layer_info(store, "r") == known
    assert cache.get_layer_info(store, "other") == LayerInfo()


def test_records_keep_the_fields_of_stores_of_today(store: Store) -> None:
    entry = CacheEntry("r", "2000-01-01T00:00:00Z", imported="layer", source="cache")
    cache.put_imported_entry(store, "k", "cache", entry, "")
    cache.put_layer_info(store, "layer", LayerInfo(deferred=True))
    written = b'{"result":"r","created":"2000-01-01T00:00:00Z","foreign":"layer","place":"cache"}'
    assert cache_records.get(store, "step:k from cache") == written
    assert cache_records.get(store, "result:layer") == b'{"promised":true}'
    assert cache.get_imported_entry(store, "k", ("other", "cache")) == entry
    assert cache.get_layer_info(store, "layer").deferred


def test_caches_that_an_earlier_version_wrote_as_text_are_read(store: Store) -> None:
    """Until they had a type, a registry's and a directory's stood there as ``registry REF`` and ``directory PATH``."""
    blob = b'{"kind":"gzip","digest":"sha256:%s","size":7}' % (b"a" * 64)
    places = b'["registry reg.example/cache:x","directory /mnt/a cache"]'
    cache_records.put(store, "result:r", b'{"diff_id":"sha256:b","blobs":[%s],"places":%s}' % (blob, places))
    found = cache.get_layer_info(store, "r")
    assert found.blobs == (BLOB,)
    assert found.caches == (CacheInRegistry("reg.example/cache:x"), CacheInDirectory("/mnt/a cache"))
    assert cache.is_available(store, "r")
    cache.put_layer_info(store, "r", found)
    assert cache.get_layer_info(store, "r") == found
