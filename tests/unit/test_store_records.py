"""Cache records, facts, and the stat cache: what is remembered is right, or not remembered."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Clock

from executor.store import blobs, cache_records, metadata_cache, snapshots, stat_cache
from executor.store.store import Store, open_store

DIGEST = "sha256:" + "f" * 64
LONG_AGO = 1 << 62


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with open_store(str(tmp_path / "root"), clock=clock) as opened:
        yield opened


def a_blob(store: Store) -> str:
    with blobs.ingest(store) as ingest:
        ingest.write(b"content")
        return ingest.commit().digest


def a_snapshot(store: Store) -> snapshots.Snapshot:
    return snapshots.commit(store, snapshots.prepare(store), diff_id=None, size=0)


def test_a_record_is_found_until_it_is_replaced_or_forgotten(store: Store) -> None:
    assert cache_records.get(store, "key") is None
    cache_records.put(store, "key", b"one")
    assert cache_records.get(store, "key") == b"one"
    cache_records.put(store, "key", b"two")
    assert cache_records.get(store, "key") == b"two"
    assert cache_records.get(store, "other") is None
    cache_records.forget(store, "key")
    assert cache_records.get(store, "key") is None
    cache_records.forget(store, "key")


def test_a_record_lives_as_long_as_all_that_it_needs(store: Store) -> None:
    blob, snapshot = a_blob(store), a_snapshot(store)
    cache_records.put(store, "blob", b"1", refers=(blob,))
    cache_records.put(store, "both", b"2", refers=(snapshot, blob, snapshot))
    cache_records.put(store, "none", b"3")
    shutil.rmtree(snapshot.fs)
    assert cache_records.get(store, "both") is None
    assert cache_records.get(store, "blob") == b"1"
    os.unlink(blobs.path(store, blob))
    assert cache_records.get(store, "blob") is None
    assert cache_records.get(store, "none") == b"3"


def test_a_record_that_replaces_another_needs_only_its_own_parts(store: Store) -> None:
    snapshot = a_snapshot(store)
    cache_records.put(store, "key", b"1", refers=(snapshot,))
    cache_records.put(store, "key", b"2")
    shutil.rmtree(snapshot.fs)
    assert cache_records.get(store, "key") == b"2"


def used(store: Store) -> float:
    return float(store.index.read(lambda db: db.execute("SELECT used FROM records").fetchone())[0])


def test_finding_a_record_counts_as_use_once_in_a_while(store: Store, clock: Clock) -> None:
    cache_records.put(store, "key", b"")
    made = clock.now
    clock.now += 60
    cache_records.get(store, "key")
    store.flush()
    assert used(store) == made, "a rebuild right after a build writes nothing"
    clock.now += 3600
    cache_records.get(store, "key")
    store.flush()
    assert used(store) == clock.now


def test_facts_are_kept_by_kind_and_key(store: Store, clock: Clock) -> None:
    metadata_cache.put(store, "manifest", "a", b"1")
    metadata_cache.put(store, "tag", "a", b"2")
    assert metadata_cache.get(store, "manifest", "a") == b"1"
    assert metadata_cache.get(store, "tag", "a") == b"2"
    assert metadata_cache.get(store, "tag", "b") is None
    clock.now += 10
    assert metadata_cache.get(store, "tag", "a", max_age=11) == b"2"
    assert metadata_cache.get(store, "tag", "a", max_age=9) is None
    metadata_cache.put(store, "tag", "a", b"3")
    assert metadata_cache.get(store, "tag", "a", max_age=9) == b"3"
    metadata_cache.forget(store, "tag", "a")
    assert metadata_cache.get(store, "tag", "a") is None


def stamp_of(path: Path) -> bytes:
    return stat_cache.stat_signature(path.lstat())


def test_a_file_is_known_until_it_changes(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    known = (os.fsencode(path), stamp_of(path))
    stat_cache.put(store, [(*known, DIGEST)], read_at=LONG_AGO)
    assert stat_cache.get(store, [known]) == [DIGEST]
    before = path.stat()

    for change in (
        lambda: path.write_bytes(b"longer content"),
        lambda: os.utime(path, ns=(0, before.st_mtime_ns + 1)),
        lambda: (path.write_bytes(b"CONTENT"), os.utime(path, ns=(0, before.st_mtime_ns))),
        lambda: (path.unlink(), path.write_bytes(b"content"), os.utime(path, ns=(0, before.st_mtime_ns))),
    ):
        change()
        assert stat_cache.get(store, [(os.fsencode(path), stamp_of(path))]) == [None]


@pytest.mark.parametrize(
    ("changed_ns", "age_ns", "kept"),
    [
        (1_000_000_123, 60_000_000, True),
        (1_000_000_123, 40_000_000, False),
        (1_000_000_123, -5, False),
        (1_000_000_000, 2_100_000_000, True),  # whole seconds: perhaps a file system that has no others
        (1_000_000_000, 1_900_000_000, False),
    ],
)
def test_a_file_that_could_still_change_unseen_is_not_remembered(
    store: Store, tmp_path: Path, changed_ns: int, age_ns: int, kept: bool
) -> None:
    mark = struct.pack("=QQqqq", 1, 2, 3, changed_ns, 5)
    stat_cache.put(store, [(b"/file", mark, DIGEST)], read_at=changed_ns + age_ns)
    assert stat_cache.get(store, [(b"/file", mark)]) == [DIGEST if kept else None]


def test_two_hundred_thousand_files_come_back_in_order(store: Store, tmp_path: Path) -> None:
    mark = stamp_of(tmp_path)
    rows = [(b"/context/%d/%d" % (n % 500, n), mark, f"sha256:{n:064x}") for n in range(200_000)]
    stat_cache.put(store, rows, read_at=LONG_AGO)
    asked = [(path, mark) for path, _, _ in reversed(rows)] + [(b"/context/none", mark), (b"/context/0/0", b"other")]
    assert stat_cache.get(store, asked) == [each for _, _, each in reversed(rows)] + [None, None]


def test_a_file_that_was_written_read_and_renamed_is_known_at_once(store: Store, tmp_path: Path) -> None:
    """What it was when it was renamed is told by when it was written, which has to be a while ago."""
    path = tmp_path / "file"
    path.write_text("content")
    written = path.stat().st_mtime_ns - 10_000_000_001
    os.utime(path, ns=(written, written))  # which, as a rename does, changes the other time to now
    mark = stat_cache.cache_key(stat_cache.stat_signature(path.stat()))
    stat_cache.put_renamed(store, [(*mark, "digest")])
    assert stat_cache.get(store, [mark]) == ["digest"]
    path.write_text("another")
    mark = stat_cache.cache_key(stat_cache.stat_signature(path.stat()))
    stat_cache.put_renamed(store, [(*mark, "digest")])
    assert stat_cache.get(store, [mark]) == [None]
