"""A store survives its user's death at every single call that writes, and every such call's failure.

Two promises hold at each point: nothing that was acknowledged is lost, and nothing is visible that is not whole.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import store_check
import syscall_faults

from executor.store import (
    blobs,
    cache_records,
    cachemounts,
    durability,
    locks,
    metadata_cache,
    snapshots,
    stat_cache,
)
from executor.store.prune import prune, usage
from executor.store.store import open_store
from platforms.errors import StoreError

_UNAVAILABLE = syscall_faults.unavailable()
pytestmark = pytest.mark.skipif(bool(_UNAVAILABLE), reason=_UNAVAILABLE or "available")

EXPECTED = b"a blob whose digest was known beforehand" * 100
COMPUTED = b"a blob whose digest was not" * 100
PRUNED = b"a blob that is pruned again"
LAYER = "sha256:" + hashlib.sha256(b"layer").hexdigest()
STAMP = stat_cache.stat_signature(os.stat("/"))


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory in memory where there is one: this is about the order of calls, not about a disk."""
    folder = tempfile.mkdtemp(prefix="kanifold-store-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    yield Path(folder)
    shutil.rmtree(folder)


class StepError(Exception):
    """What the build's step wrote itself, past the store, could not be written."""


@contextmanager
def step() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StepError from error


def script(root: Path, done: mmap.mmap | bytearray) -> None:
    """Everything that a build does with a store. Step n sets ``done[n]`` when it has been acknowledged."""
    with open_store(str(root)) as store:
        with blobs.resume(store, digest(EXPECTED)) as ingest:
            ingest.write(EXPECTED[ingest.resume_offset :])
            ingest.commit()
        done[0] = 1
        with blobs.ingest(store) as ingest:
            ingest.write(COMPUTED)
            ingest.commit()
        done[1] = 1
        draft = snapshots.prepare(store)
        with step():
            Path(draft.fs, "file").write_bytes(b"content")
            Path(draft.work, "work").mkdir(0)
        snapshot = snapshots.commit(store, draft, diff_id=None, size=7, keys=("step",))
        done[2] = 1
        snapshots.name(store, snapshot, LAYER, diff_id=LAYER)
        done[3] = 1
        cache_records.put(store, "record", b"{}", refers=(snapshot, digest(EXPECTED)))
        done[4] = 1
        metadata_cache.put(store, "manifest", "m", b"fact")
        stat_cache.put(store, [(b"/a/file", STAMP, digest(b"file"))], read_at=1 << 62)
        done[5] = 1
        durability.sync(store)
        done[6] = 1
        with locks.lock(store, "work"), cachemounts.acquire(store, "apt", "locked") as directory, step():
            Path(directory, "package").touch()
        done[7] = 1
        with blobs.resume(store, digest(PRUNED)) as ingest:
            ingest.write(PRUNED[ingest.resume_offset :])
            ingest.commit()
        snapshots.discard(store, snapshots.prepare(store))
    with open_store(str(root)) as store:
        prune(store, filters=(f"id={digest(PRUNED)}",))
    done[8] = 1


def check(root: Path, done: mmap.mmap | bytearray) -> None:
    """What was acknowledged is here and right; what was not is whole or absent."""
    with open_store(str(root)) as store:
        assert store_check.verify(store) == ()
        for step, content in enumerate((EXPECTED, COMPUTED)):
            if done[step] or blobs.has(store, digest(content)):
                assert blobs.read(store, digest(content), len(content)) == content
        for step, key in ((2, "step"), (3, LAYER)):
            found = snapshots.find(store, key)
            assert found is not None or not done[step]
            if found is not None:
                assert Path(found.fs, "file").read_bytes() == b"content"
                assert os.listdir(Path(found.fs).parent) == ["fs"]
        record = cache_records.get(store, "record")
        assert record == b"{}" or (record is None and not done[4])
        fact, known = metadata_cache.get(store, "manifest", "m"), stat_cache.get(store, [(b"/a/file", STAMP)])
        assert (fact, known) == (b"fact", [digest(b"file")]) or not done[5]
        with locks.lock(store, "work"):
            assert locks.try_lock(store, "work") is None
        assert not done[8] or not blobs.has(store, digest(PRUNED))


def check_recovery(root: Path) -> None:
    """The same work succeeds now, and pruning leaves no trace of the accident."""
    script(root, bytearray(16))
    check(root, bytearray(b"\1" * 16))
    with open_store(str(root), clock=lambda: time.time() + 2 * 86400) as store:
        prune(store)
        assert [row for row in usage(store) if row.kind == "partial"] == []
    assert os.listdir(root / "leases") == []
    assert os.listdir(root / "tmp") == ["partial"]
    assert os.listdir(root / "tmp/partial") == []


def emptied(root: Path) -> None:
    for entry in root.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def test_dying_at_any_write_loses_nothing_and_shows_nothing_half(root: Path) -> None:
    done = mmap.mmap(-1, 16)
    for point in range(1, 2000):
        emptied(root)
        done[:] = bytes(16)
        outcome = syscall_faults.die_at(point, lambda: script(root, done), ())
        check(root, done)
        if not outcome.reached:
            assert outcome.status == 0
            assert done[8] == 1
            assert point > 100, "the script must write at more than a hundred points, else this tests nothing"
            break
        check_recovery(root)
    else:
        pytest.fail("the script never ended")


# What a full disk refuses is space: these calls free it, or need none.
_NEED_NO_SPACE = frozenset(
    {"flock", "unlink", "unlinkat", "rmdir", "ftruncate", "chmod", "fchmod", "fchmodat", "utimensat"}
)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="calls are made to fail by x86-64's registers")
@pytest.mark.parametrize(
    ("number", "spared"),
    [
        pytest.param(errno.ENOSPC, _NEED_NO_SPACE, id="full-disk"),
        pytest.param(errno.EDQUOT, _NEED_NO_SPACE, id="quota", marks=pytest.mark.slow),
        pytest.param(errno.EIO, frozenset({"flock"}), id="broken-disk", marks=pytest.mark.slow),
    ],
)
def test_any_write_may_fail_and_the_store_stays_whole(root: Path, number: int, spared: frozenset[str]) -> None:
    done = mmap.mmap(-1, 16)
    failures = 0
    for point in range(1, 2000):
        emptied(root)
        done[:] = bytes(16)
        outcome = syscall_faults.fail_at(point, number, lambda: script(root, done), (StoreError, StepError), spared)
        assert outcome.status in (0, syscall_faults.FAILED), f"not a StoreError at write {point}, {outcome.call}"
        failures += outcome.status == syscall_faults.FAILED
        if outcome.call not in ("syncfs", "fsync", "fdatasync"):
            check(root, done)
        if not outcome.reached:
            break
        check_recovery(root)
    else:
        pytest.fail("the script never ended")
    assert failures > 50
