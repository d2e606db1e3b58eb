"""A disk that is full: one clear error, a store that is whole, and the space given back."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import store_check

from executor.image.manifest import Descriptor
from executor.registry.transfer import BlobWriter
from executor.solver.inflight import fetch_blob
from executor.store import blobs, cache_records, durability, snapshots
from executor.store.prune import prune, usage
from executor.store.store import Store, open_store
from platforms.errors import StoreError

SIZE = 8 << 20
PIECE = os.urandom(1 << 18)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of eight mebibytes."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_snapshots_are_spread_over_an_ext4_disk(tmp_path: Path) -> None:
    """Else a new one goes where others were deleted, and ext4 passes over their inodes one by one for some minutes."""
    with open_store(str(tmp_path / "store")) as store:
        words = ["lsattr", "-d", f"{store.root}/snapshots"]
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(tmp_path)], check=True, capture_output=True, text=True).stdout
    if kind.strip() != "ext2/ext3" or shutil.which("lsattr") is None:
        pytest.skip(f"needs lsattr, and ext4 below the tests' temporary directory, which is {kind.strip()}")
    assert "T" in subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[0]


def free(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def fill(store: Store) -> None:
    with blobs.ingest(store) as ingest:
        for _ in range(SIZE // len(PIECE) + 1):
            ingest.write(PIECE)
        ingest.commit()


def fill_resumable(store: Store) -> None:
    with blobs.ingest(store, "sha256:" + "0" * 64) as ingest:
        for _ in range(SIZE // len(PIECE) + 1):
            ingest.write(PIECE)


def fill_by_download(store: Store) -> None:
    def fetch(_descriptor: Descriptor, sink: BlobWriter) -> None:
        for _ in range(SIZE // len(PIECE) + 1):
            sink.write(PIECE)

    fetch_blob(store, Descriptor("", "sha256:" + "0" * 64, SIZE), fetch)


@pytest.mark.parametrize("work", [fill, fill_resumable, fill_by_download])
def test_a_blob_that_does_not_fit_is_one_clear_error_and_gives_its_space_back(
    small: Path, work: Callable[[Store], None]
) -> None:
    with open_store(str(small)) as store:
        cache_records.put(store, "before", b"value")
        before = free(small)
        with pytest.raises(StoreError) as caught:
            work(store)
        assert "no space left" in caught.value.problem.why
        assert "prune" in caught.value.problem.remedy
        assert before - free(small) < 1 << 16
        assert store_check.verify(store) == ()
        assert cache_records.get(store, "before") == b"value"
        assert [row for row in usage(store) if row.kind == "partial"] == []


def test_a_disk_filled_by_others_stops_everything_cleanly_and_lets_it_go_on_later(small: Path) -> None:
    with open_store(str(small)) as store:
        draft = snapshots.prepare(store)
        made = snapshots.commit(store, draft, diff_id=None, size=0, keys=("key",))
        cache_records.put(store, "record", b"value", refers=(made,))
    hog = small / "hog"
    with open(hog, "wb", buffering=0) as file, pytest.raises(OSError, match="space"):
        while True:
            file.write(bytes(4096))

    with pytest.raises(StoreError), open_store(str(small)) as store:
        for number in range(1000):
            cache_records.put(store, str(number), bytes(4096))
    with pytest.raises(StoreError), open_store(str(small)) as store:
        for _ in range(1000):
            snapshots.prepare(store)

    hog.unlink()
    with open_store(str(small)) as store:
        assert store_check.verify(store) == ()
        assert cache_records.get(store, "record") == b"value"
        assert snapshots.find(store, "key") == made
        durability.sync(store)
    with open_store(str(small)) as store:
        prune(store, all=True)
        assert usage(store) == ()


def test_pruning_works_on_a_full_disk(small: Path) -> None:
    with open_store(str(small)) as store, blobs.ingest(store) as ingest:
        for _ in range(SIZE // 2 // len(PIECE)):
            ingest.write(PIECE)
        ingest.commit()
    hog = small / "hog"
    with open(hog, "wb", buffering=0) as file, pytest.raises(OSError, match="space"):
        while True:
            file.write(bytes(4096))
    assert free(small) == 0
    with open_store(str(small)) as store:
        prune(store, all=True)
    assert free(small) > SIZE // 3


def test_a_limit_on_file_sizes_is_one_clear_error(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            with open_store(str(tmp_path)) as store:
                cache_records.put(store, "before", b"value")
                resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
                try:
                    fill(store)
                except StoreError as error:
                    status = 0 if "ulimit" in error.problem.remedy else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with open_store(str(tmp_path)) as store:
        assert store_check.verify(store) == ()
        assert cache_records.get(store, "before") == b"value"
        prune(store)
        assert [row for row in usage(store) if row.kind == "partial"] == []
