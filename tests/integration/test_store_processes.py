"""Many processes on one store: real forks, real locks, real deaths."""

from __future__ import annotations

import hashlib
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import store_check

from executor.store import blobs, cache_records, locks, metadata_cache, snapshots
from executor.store.prune import prune, usage
from executor.store.store import Store, open_store

CONTENT = bytes(range(256)) * 4096
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Gate:
    """Lets processes begin together, or tells that one has come to a point: bytes through a pipe."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def wait(self) -> None:
        assert os.read(self._read, 1) == b"x"

    def open(self, times: int = 1) -> None:
        os.write(self._write, b"x" * times)

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@contextmanager
def gates(count: int) -> Iterator[tuple[Gate, ...]]:
    made = tuple(Gate() for _ in range(count))
    try:
        yield made
    finally:
        for each in made:
            each.close()


def fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def finish(*pids: int) -> None:
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * len(pids)


def check(root: Path) -> None:
    with open_store(str(root)) as store:
        assert store_check.verify(store) == ()
        prune(store)
        assert [row for row in usage(store) if row.kind == "partial"] == []


def test_one_blob_from_many_writers_is_one_blob(tmp_path: Path) -> None:
    with gates(1) as (start,):

        def write(expected: str | None) -> None:
            start.wait()
            with open_store(str(tmp_path)) as store, blobs.ingest(store, expected) as ingest:
                ingest.restart()
                for at in range(0, len(CONTENT), 1 << 16):
                    ingest.write(CONTENT[at : at + (1 << 16)])
                assert ingest.commit() == blobs.StoredBlob(DIGEST, len(CONTENT))
                assert blobs.read(store, DIGEST, len(CONTENT)) == CONTENT

        writers = [fork(lambda number=number: write(DIGEST if number % 2 else None)) for number in range(8)]  # type: ignore[misc]
        start.open(8)
        finish(*writers)
    assert os.listdir(tmp_path / "blobs/sha256") == [DIGEST.removeprefix("sha256:")]
    check(tmp_path)


def test_a_new_store_is_opened_by_many_at_once(tmp_path: Path) -> None:
    with gates(1) as (start,):

        def use(number: int) -> None:
            start.wait()
            with open_store(str(tmp_path / "root")) as store:
                for turn in range(20):
                    metadata_cache.put(store, "kind", f"{number}/{turn}", b"x")

        users = [fork(lambda number=number: use(number)) for number in range(8)]  # type: ignore[misc]
        start.open(8)
        finish(*users)
    with open_store(str(tmp_path / "root")) as store:
        assert store.index.read(lambda db: db.execute("SELECT count(*) FROM facts").fetchone()) == (160,)
    assert len(list((tmp_path / "root").glob("index*"))) == 2, "the link and one database"


def once(store: Store, done: Path) -> None:
    """Do the work, unless somebody else has."""
    with locks.lock(store, "work"):
        if cache_records.get(store, "work") is None:
            with open(done, "a") as file:
                file.write("done\n")
            cache_records.put(store, "work", b"result")


def test_of_many_one_does_the_work(tmp_path: Path) -> None:
    done = tmp_path / "done"
    with gates(1) as (start,):

        def work() -> None:
            start.wait()
            with open_store(str(tmp_path / "root")) as store:
                once(store, done)
                assert cache_records.get(store, "work") == b"result"

        workers = [fork(work) for _ in range(8)]
        start.open(8)
        finish(*workers)
    assert done.read_text() == "done\n"


def test_when_the_holder_is_killed_the_waiter_goes_on(tmp_path: Path) -> None:
    with gates(2) as (holding, never):

        def hold() -> None:
            with open_store(str(tmp_path / "root")) as store, locks.lock(store, "work"):
                holding.open()
                never.wait()

        holder = fork(hold)
        holding.wait()
        with open_store(str(tmp_path / "root")) as store:
            assert locks.try_lock(store, "work") is None
        waiter = fork(lambda: once(open_store(str(tmp_path / "root")), tmp_path / "done"))
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        finish(waiter)
    assert (tmp_path / "done").read_text() == "done\n"


def test_pruning_spares_what_a_living_process_uses_and_takes_it_when_that_dies(tmp_path: Path) -> None:
    with open_store(str(tmp_path)) as store:
        made = snapshots.commit(store, snapshots.prepare(store), diff_id=None, size=1, keys=("key",))
        cache_records.put(store, "record", b"", refers=(made,))
    with gates(2) as (using, never):

        def use() -> None:
            store = open_store(str(tmp_path))
            assert cache_records.get(store, "record") is not None
            Path(snapshots.prepare(store).fs, "file").touch()
            using.open()
            never.wait()

        user = fork(use)
        using.wait()
        with open_store(str(tmp_path)) as store:
            assert prune(store, all=True).removed == ()
            os.kill(user, signal.SIGKILL)
            os.waitpid(user, 0)
            assert {row.kind for row in prune(store, all=True).removed} == {"snapshot", "record", "partial"}
    assert os.listdir(tmp_path / "snapshots") == []


def test_builds_and_pruners_side_by_side(tmp_path: Path) -> None:
    """What a build has found or made stays whole to its end, however much is being pruned meanwhile."""
    with gates(1) as (start,):

        def build(number: int) -> None:
            start.wait()
            for turn in range(15):
                with open_store(str(tmp_path)) as store:
                    content = f"content {turn % 3}".encode()
                    digest = "sha256:" + hashlib.sha256(content).hexdigest()
                    if not blobs.has(store, digest):
                        with locks.lock(store, digest), blobs.ingest(store, digest) as ingest:
                            ingest.restart()
                            ingest.write(content)
                            ingest.commit()
                    key = f"step {turn % 4}"
                    if (found := snapshots.find(store, key)) is None:
                        draft = snapshots.prepare(store)
                        Path(draft.fs, "file").write_text(key)
                        found = snapshots.commit(store, draft, diff_id=None, size=1, keys=(key,))
                    cache_records.put(store, key, str(number).encode(), refers=(found, digest))
                    assert cache_records.get(store, key) is not None
                    assert Path(found.fs, "file").read_text() == key
                    assert blobs.read(store, digest, 100) == content

        def clean() -> None:
            start.wait()
            for _ in range(30):
                with open_store(str(tmp_path)) as store:
                    prune(store, all=True)

        workers = [fork(lambda number=number: build(number)) for number in range(4)] + [fork(clean)]  # type: ignore[misc]
        start.open(5)
        finish(*workers)
    check(tmp_path)


def test_builds_killed_at_random_leave_nothing_that_matters(tmp_path: Path) -> None:
    with gates(1) as (working,):

        def build() -> None:
            turn = 0
            while True:
                with open_store(str(tmp_path)) as store:
                    with locks.lock(store, "step"):
                        draft = snapshots.prepare(store)
                        Path(draft.fs, "file").write_bytes(CONTENT)
                        made = snapshots.commit(store, draft, diff_id=None, size=1, keys=(f"{os.getpid()} {turn}",))
                        cache_records.put(store, "step", str(turn).encode(), refers=(made,))
                    working.open()
                turn += 1

        for _ in range(25):
            builders = [fork(build) for _ in range(2)]
            for _ in range(3):
                working.wait()
            for pid in builders:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            with open_store(str(tmp_path)) as store:
                taken = locks.try_lock(store, "step")
                assert taken is not None, "a lock is stuck"
                taken.release()
                assert store_check.verify(store) == ()
                assert cache_records.get(store, "step") is not None
    with open_store(str(tmp_path)) as store:
        (rows,) = store.index.read(lambda db: db.execute("SELECT count(*) FROM snapshots").fetchone())
        for row in usage(store):
            if row.kind == "snapshot":
                assert Path(store.root, "snapshots", row.id, "fs/file").read_bytes() == CONTENT
        assert rows > 25
    check(tmp_path)


def test_many_find_the_damaged_index_and_one_replaces_it(tmp_path: Path) -> None:
    with open_store(str(tmp_path)) as store:
        cache_records.put(store, "key", b"value")
    (tmp_path / "index.db").write_bytes(b"damage" * 2000)
    with gates(1) as (start,):

        def use(number: int) -> None:
            start.wait()
            with open_store(str(tmp_path), warn=lambda _: None) as store:
                assert cache_records.get(store, "key") is None
                cache_records.put(store, f"new {number}", b"")

        users = [fork(lambda number=number: use(number)) for number in range(6)]  # type: ignore[misc]
        start.open(6)
        finish(*users)
    assert len(list(tmp_path.glob("index.db.corrupt-*"))) == 1
    with open_store(str(tmp_path)) as store:
        assert all(cache_records.get(store, f"new {number}") == b"" for number in range(6))
