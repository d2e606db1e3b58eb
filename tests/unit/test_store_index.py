"""The index: a damaged one costs the cache, never a build."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import zlib
from pathlib import Path

import pytest
import store_check

from executor.store import cache_records, metadata_cache, snapshots, stat_cache
from executor.store.index import SCHEMA, checksum
from executor.store.store import open_store
from platforms.errors import Problem, StoreError

DIGEST = "sha256:" + "f" * 64
STAMP = stat_cache.stat_signature(os.stat("/"))


def fill(root: Path) -> int:
    """A store with a bit of everything; the number of its snapshot."""
    with open_store(str(root)) as store:
        for number in range(20):
            snapshot = snapshots.commit(
                store, snapshots.prepare(store), diff_id=None, size=0, keys=(f"key {number}", f"other {number}")
            )
            cache_records.put(store, f"record {number}", f"value {number}".encode(), refers=(snapshot,))
            metadata_cache.put(store, "kind", str(number), f"fact {number}".encode())
            stat_cache.put(store, [(b"/file/%d" % number, STAMP, f"sha256:{number:064x}")], read_at=1 << 62)
        return snapshot.number


def set_aside(root: Path) -> list[Path]:
    return sorted(root.glob("index.db.corrupt-*"))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"not a database at all, but a text that is longer than a header" * 50, id="text"),
        pytest.param(b"SQLite format 3\0" + bytes(5000), id="header only"),
    ],
)
def test_what_is_no_database_is_set_aside_with_a_warning(tmp_path: Path, content: bytes) -> None:
    fill(tmp_path)
    (tmp_path / "index.db").write_bytes(content)
    warnings: list[Problem] = []
    with open_store(str(tmp_path), warn=warnings.append) as store:
        assert cache_records.get(store, "record 1") is None
        cache_records.put(store, "record 1", b"new")
        assert cache_records.get(store, "record 1") == b"new"
        assert snapshots.prepare(store).number > 20
    assert [problem.kind for problem in warnings] == ["StoreError"]
    assert warnings[0].remedy
    assert [path.read_bytes() for path in set_aside(tmp_path)] == [content]


def test_a_warning_goes_to_stderr_when_nobody_listens(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path)
    (tmp_path / "index.db").write_bytes(b"damaged" * 1000)
    with open_store(str(tmp_path)) as store:
        assert cache_records.get(store, "record 1") is None
    assert capfd.readouterr().err.count("\n") == 1


def test_a_flipped_byte_anywhere_never_gives_a_wrong_answer(tmp_path: Path) -> None:
    fill(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "index.db")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database = (tmp_path / "index.db").resolve()
    whole = database.read_bytes()
    used = [at for at in range(len(whole)) if whole[at]]
    for at in used[:: max(1, len(used) // 300)]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        for path in tmp_path.glob("index*"):
            path.unlink()
        database.write_bytes(damaged)
        (tmp_path / "index.db").symlink_to(database.name)
        with open_store(str(tmp_path), warn=lambda _: None) as store, contextlib.suppress(StoreError):
            for number in range(0, 20, 3):
                assert cache_records.get(store, f"record {number}") in (None, f"value {number}".encode())
                assert metadata_cache.get(store, "kind", str(number)) in (None, f"fact {number}".encode())
                known = stat_cache.get(store, [(b"/file/%d" % number, STAMP)])
                assert known in ([None], [f"sha256:{number:064x}"])
                found = snapshots.find(store, f"key {number}")
                assert found is None or found.number == number + 1


def test_damage_that_no_lookup_meets_is_found_by_the_check(tmp_path: Path) -> None:
    fill(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "index.db")) as db:
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_schema SET rootpage=9999 WHERE name='refs_by_thing'")
        db.commit()
    with open_store(str(tmp_path), warn=lambda _: None) as store:
        assert [problem.kind for problem in store_check.verify(store)] == ["StoreError"]
        assert store_check.verify(store) == ()
    assert len(set_aside(tmp_path)) == 1


def test_a_store_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    fill(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "index.db")) as db:
        db.execute(f"PRAGMA user_version={SCHEMA + 1}")
        db.execute(f"PRAGMA application_id={zlib.crc32(b'kanifold index %d' % (SCHEMA + 1)) >> 1}")
    with open_store(str(tmp_path)) as store, pytest.raises(StoreError) as caught:
        cache_records.get(store, "record 1")
    assert "newer" in caught.value.problem.why
    assert caught.value.problem.remedy
    assert set_aside(tmp_path) == []


def test_a_store_of_an_older_version_begins_anew(tmp_path: Path) -> None:
    fill(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "index.db")) as db:
        db.execute(f"PRAGMA user_version={SCHEMA - 1}")
        db.execute(f"PRAGMA application_id={zlib.crc32(b'kanifold index %d' % (SCHEMA - 1)) >> 1}")
    warnings: list[Problem] = []
    with open_store(str(tmp_path), warn=warnings.append) as store:
        assert cache_records.get(store, "record 1") is None
    assert len(warnings) == len(set_aside(tmp_path)) == 1
    assert "is of an earlier kanifold and has been replaced" in warnings[0].what


def test_who_still_has_the_old_index_open_goes_over_to_the_new_one(tmp_path: Path) -> None:
    fill(tmp_path)
    with open_store(str(tmp_path), warn=lambda _: None) as first, open_store(str(tmp_path)) as second:
        assert cache_records.get(second, "record 1") == b"value 1"
        connection = sqlite3.connect(tmp_path / "index.db")
        connection.execute("UPDATE records SET seal=seal+1 WHERE key='record 2'")
        connection.commit()
        connection.close()
        assert cache_records.get(first, "record 2") is None
        cache_records.put(second, "new", b"from the second")
        assert cache_records.get(first, "new") == b"from the second"
    assert len(set_aside(tmp_path)) == 1
    assert (tmp_path / "index.db").resolve().exists()


def test_a_file_in_place_of_the_index_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "index.db").write_bytes(b"something else")
    with open_store(str(tmp_path)) as store:
        assert cache_records.get(store, "record 1") is None
    assert [path.read_bytes() for path in set_aside(tmp_path)] == [b"something else"]


def test_a_lost_database_is_begun_anew(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "index.db").resolve().unlink()
    with open_store(str(tmp_path)) as store:
        assert cache_records.get(store, "record 1") is None
        cache_records.put(store, "record 1", b"new")
        assert cache_records.get(store, "record 1") == b"new"


def test_a_failed_transaction_leaves_nothing_and_the_next_one_works(tmp_path: Path) -> None:
    with open_store(str(tmp_path)) as store:

        def fail(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO facts VALUES('k', 'k', x'00', 0, 0)")
            raise LookupError

        with pytest.raises(LookupError):
            store.index.write(fail)
        assert metadata_cache.get(store, "k", "k") is None


def test_a_child_after_a_fork_has_a_connection_and_leases_of_its_own(tmp_path: Path) -> None:
    number = fill(tmp_path)
    with open_store(str(tmp_path)) as store:
        assert cache_records.get(store, "record 1") == b"value 1"
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                assert cache_records.get(store, "record 2") == b"value 2"
                cache_records.put(store, "from the child", b"x")
                assert snapshots.get(store, number) is not None
                assert len(os.listdir(tmp_path / "leases")) == 2
                store.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert cache_records.get(store, "from the child") == b"x"
        assert len(os.listdir(tmp_path / "leases")) == 1


def test_a_seal_tells_fields_apart() -> None:
    assert checksum("ab", "c") != checksum("a", "bc")
    assert checksum("a") != checksum("a", "")
    assert checksum("1", b"x") == checksum(1, "x")
