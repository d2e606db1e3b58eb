"""What survives a power failure: all that was settled, and nothing that was not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import store_check

from executor.store import blobs, cache_records, durability, snapshots
from executor.store.prune import prune, usage
from executor.store.store import Store, open_store
from platforms import syscalls
from platforms.errors import StoreError

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/sys/kernel/random/boot_id"), reason="needs Linux's /proc")


def build(store: Store, name: str) -> str:
    """A blob and a snapshot with a record of them, all called ``name``; the blob's digest."""
    with blobs.ingest(store) as ingest:
        ingest.write(name.encode())
        blob = ingest.commit()
    snapshot = snapshots.commit(store, snapshots.prepare(store), diff_id=None, size=0, keys=(name,))
    cache_records.put(store, name, b"value", refers=(blob.digest, snapshot))
    return blob.digest


def reboot(root: Path) -> None:
    """Let what was written in this boot look as if it had been written in another one."""
    with open_store(str(root)) as store:
        for table in ("blobs", "snapshots"):
            store.index.write(lambda db, table=table: db.execute(f"UPDATE {table} SET boot='x' WHERE boot IS NOT NULL"))


def test_within_a_boot_nothing_needs_to_be_settled(tmp_path: Path) -> None:
    with open_store(str(tmp_path)) as store:
        build(store, "a")
    with open_store(str(tmp_path)) as store:
        assert cache_records.get(store, "a") == b"value"


def test_what_was_settled_is_there_after_a_reboot_and_the_rest_is_garbage(tmp_path: Path) -> None:
    with open_store(str(tmp_path)) as store:
        build(store, "settled")
        assert durability.sync(store) == 2
        assert durability.sync(store) == 0
        build(store, "unsettled")
    reboot(tmp_path)
    with open_store(str(tmp_path)) as store:
        assert cache_records.get(store, "settled") == b"value"
        assert cache_records.get(store, "unsettled") is None
        assert snapshots.find(store, "unsettled") is None
        assert store_check.verify(store) == ()
    with open_store(str(tmp_path)) as store:
        prune(store)
        assert [row.kind for row in usage(store) if row.kind != "blob"] == ["snapshot", "record"]
        assert snapshots.find(store, "settled") is not None


@pytest.mark.parametrize(("committed", "settled"), [(-60.0, 2), (-20.0, 0), (3600.0, 2)])
def test_a_build_waits_for_nothing_that_was_just_written(tmp_path: Path, committed: float, settled: int) -> None:
    with open_store(str(tmp_path)) as store:
        build(store, "a")
        for table in ("blobs", "snapshots"):
            store.index.write(lambda db, table=table: db.execute(f"UPDATE {table} SET created=created+?", (committed,)))
        assert durability.sync(store, durability.WRITTEN_BACK) == settled


def test_an_unsettled_blob_is_hashed_before_it_is_used_again(tmp_path: Path) -> None:
    with open_store(str(tmp_path)) as store:
        whole, torn = build(store, "whole"), build(store, "torn")
        place = blobs.path(store, torn)
    reboot(tmp_path)
    os.chmod(place, 0o600)
    Path(place).write_bytes(bytes(4))  # of the right length: what a journal without its data leaves
    with open_store(str(tmp_path)) as store:
        assert blobs.has(store, whole)
        assert not blobs.has(store, torn)
        assert not os.path.exists(place)
        assert durability.sync(store) == 1


def test_what_another_process_has_committed_is_settled_too(tmp_path: Path) -> None:
    with open_store(str(tmp_path)) as store, open_store(str(tmp_path)) as other:
        build(other, "other's")
        assert durability.sync(store) == 2
    reboot(tmp_path)
    with open_store(str(tmp_path)) as store:
        assert cache_records.get(store, "other's") == b"value"


def test_nothing_is_trusted_after_the_disk_has_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with open_store(str(tmp_path)) as store:
        build(store, "a")
        monkeypatch.setattr(syscalls, "syncfs", refuse)
        with pytest.raises(StoreError) as caught:
            durability.sync(store)
        assert caught.value.problem.remedy
        assert snapshots.find(store, "a") is None
        assert cache_records.get(store, "a") is None
