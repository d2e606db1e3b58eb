"""What ``usage`` counts and ``prune`` removes, and what it must not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Clock

from executor.store import blobs, cache_records, cachemounts, metadata_cache, snapshots, stat_cache
from executor.store.prune import UsageInfo, parse_duration, parse_filter, prune, usage
from executor.store.store import Store, open_store
from platforms.errors import UsageError

HOUR = 3600.0
DAY = 24 * HOUR


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """The pruner's store; what is in it was made by others that have ended."""
    with open_store(str(tmp_path), clock=clock) as opened:
        yield opened


def other(store: Store) -> Store:
    """Another process's view of the same store."""
    return open_store(store.root, clock=store.clock)


def add_blob(store: Store, content: bytes) -> str:
    with other(store) as maker, blobs.ingest(maker) as ingest:
        ingest.write(content)
        return ingest.commit().digest


def add_step(store: Store, name: str, size: int = 1000) -> snapshots.Snapshot:
    """A snapshot of ``size`` bytes, and the record that leads to it."""
    with other(store) as maker:
        made = snapshots.commit(maker, snapshots.prepare(maker), diff_id=None, size=size, description=f"RUN {name}")
        cache_records.put(maker, name, b"", refers=(made,), description=f"RUN {name}")
        return made


def there(store: Store) -> set[tuple[str, str]]:
    return {(row.kind, row.id) for row in usage(store)}


def names(rows: tuple[UsageInfo, ...]) -> set[tuple[str, str]]:
    return {(row.kind, row.id) for row in rows}


def test_usage_lists_everything_least_recently_used_first(store: Store, clock: Clock) -> None:
    digest = add_blob(store, b"12345")
    clock.now += HOUR
    snapshot = add_step(store, "make", 700)
    clock.now += HOUR
    with other(store) as maker, cachemounts.acquire(maker, "/root/.cache") as directory:
        Path(directory, "file").write_bytes(bytes(50_000))
    rows = usage(store)
    assert [(row.kind, row.id) for row in rows] == [
        ("blob", digest),
        ("snapshot", str(snapshot.number)),
        ("record", "make"),
        ("cache-mount", "/root/.cache"),
    ]
    assert [row.size for row in rows[:3]] == [5, 700, 0]
    assert rows[3].size >= 50_000
    assert [row.description for row in rows[:3]] == ["", "RUN make", "RUN make"]
    assert [row.created for row in rows] == [clock.now - 2 * HOUR, clock.now - HOUR, clock.now - HOUR, clock.now]
    assert [row.last_used for row in rows] == [row.created for row in rows]
    assert not any(row.in_use or row.shared for row in rows)


def test_usage_tells_what_is_in_use_shared_and_unfinished(store: Store) -> None:
    add_step(store, "idle")
    with other(store) as user:
        shared = snapshots.commit(user, snapshots.prepare(user), diff_id=None, size=1)
        cache_records.put(user, "one", b"", refers=(shared,))
        cache_records.put(user, "two", b"", refers=(shared,))
        draft = snapshots.prepare(user)
        with cachemounts.acquire(user, "cache"), blobs.ingest(user) as ingest:
            ingest.write(b"x")
            rows = {(row.kind, row.id): row for row in usage(store)}
    assert rows["snapshot", str(shared.number)].shared
    in_use = {key for key, row in rows.items() if row.in_use}
    assert in_use == {
        ("snapshot", str(shared.number)),
        ("record", "one"),
        ("record", "two"),
        ("cache-mount", "cache"),
        ("partial", f"snapshots/{draft.number}"),
        ("partial", f"tmp/{os.path.basename(ingest.path)}"),
    }


def test_without_conditions_only_garbage_goes(store: Store) -> None:
    digest = add_blob(store, b"kept")
    add_step(store, "kept")
    nameless = snapshots.commit(maker := other(store), snapshots.prepare(maker), diff_id=None, size=5)
    maker.close()
    before = there(store) - {("snapshot", str(nameless.number))}
    pruned = prune(store)
    assert names(pruned.removed) == {("snapshot", str(nameless.number))}
    assert pruned.freed == 5
    assert there(store) == before
    assert blobs.has(store, digest)


def test_all_leaves_nothing(store: Store) -> None:
    add_blob(store, b"12345")
    snapshot = add_step(store, "step", 700)
    metadata_cache.put(store, "kind", "key", b"")
    stat_cache.put(store, [(b"/file", stat_cache.stat_signature(os.stat("/")), "sha256:" + "0" * 64)], read_at=1 << 62)
    with other(store) as maker, cachemounts.acquire(maker, "cache"):
        pass
    pruned = prune(store, all=True)
    assert {row.kind for row in pruned.removed} == {"blob", "snapshot", "record", "cache-mount"}
    assert pruned.freed >= 705
    assert usage(store) == ()
    assert metadata_cache.get(store, "kind", "key") is None
    assert not os.path.exists(snapshot.fs)
    assert os.listdir(os.path.join(store.root, "blobs/sha256")) == []
    assert os.listdir(os.path.join(store.root, "cache")) == []


def test_storage_is_kept_down_by_removing_what_was_not_used_for_longest(store: Store, clock: Clock) -> None:
    for name in ("a", "b", "c", "d"):
        add_step(store, name, 1000)
        clock.now += HOUR
    with other(store) as user:
        assert cache_records.get(user, "a") is not None  # a is used again: b is the oldest now
    assert prune(store, keep_storage=4000).removed == ()
    pruned = prune(store, keep_storage=2500)
    assert {row.id for row in pruned.removed if row.kind == "record"} == {"b", "c"}
    assert pruned.freed == 2000
    assert {row.id for row in usage(store) if row.kind == "record"} == {"a", "d"}


def test_age_counts_from_the_last_use(store: Store, clock: Clock) -> None:
    for name in ("old", "used"):
        add_step(store, name)
    clock.now += 2 * DAY
    with other(store) as user:
        cache_records.get(user, "used")
    add_step(store, "new")
    clock.now += 60
    prune(store, older_than=DAY)
    assert {row.id for row in usage(store) if row.kind == "record"} == {"used", "new"}


def test_conditions_are_all_demanded(store: Store, clock: Clock) -> None:
    add_step(store, "old", 10)
    digest = add_blob(store, b"old blob")
    clock.now += DAY
    young = add_blob(store, b"young blob")
    prune(store, older_than=HOUR, filters=("kind=blob",))
    assert there(store) >= {("record", "old"), ("blob", young)}
    assert ("blob", digest) not in there(store)


def test_a_record_goes_with_what_it_needs_and_a_snapshot_when_nothing_leads_to_it(store: Store) -> None:
    first = add_step(store, "first")
    second = add_step(store, "second")
    pruned = prune(store, filters=(f"id={first.number}", "kind=snapshot"))
    assert names(pruned.removed) == {("snapshot", str(first.number)), ("record", "first")}
    pruned = prune(store, filters=("id=second",))
    assert names(pruned.removed) == {("record", "second"), ("snapshot", str(second.number))}
    assert cache_records.get(store, "first") is None


def test_what_a_living_store_has_found_or_made_stays(store: Store) -> None:
    digest = add_blob(store, b"found")
    snapshot = add_step(store, "found by its record")
    with other(store) as user:
        assert blobs.has(user, digest)
        assert cache_records.get(user, "found by its record") is not None
        draft = snapshots.prepare(user)
        with cachemounts.acquire(user, "cache") as directory, blobs.ingest(user) as ingest:
            ingest.write(b"made")
            assert prune(store, all=True).removed == ()
            made = ingest.commit()
            assert os.path.isdir(directory)
        assert prune(store, filters=("kind!=cache-mount",)).removed == ()
        committed = snapshots.commit(user, draft, diff_id=None, size=0)
        assert prune(store, filters=("kind!=cache-mount",)).removed == ()
        for kept in (snapshot.fs, committed.fs, blobs.path(user, made.digest)):
            assert os.path.exists(kept)
    prune(store, all=True)
    assert usage(store) == ()


def test_a_released_lease_no_longer_protects(store: Store) -> None:
    made = add_step(store, "step")
    user = other(store)
    user.session.lease(f"s{made.number}", f"s{made.number}")
    user.session.release(f"s{made.number}")
    assert prune(store, all=True).removed == ()
    user.session.release(f"s{made.number}")
    assert len(prune(store, all=True).removed) == 2
    user.close()


def test_a_lookup_that_comes_too_late_is_a_miss(store: Store) -> None:
    made = add_step(store, "step")
    digest = add_blob(store, b"blob")
    with other(store) as user:
        prune(store, all=True)
        assert cache_records.get(user, "step") is None
        assert snapshots.get(user, made.number) is None
        assert not blobs.has(user, digest)


def test_leftovers_of_the_dead_are_garbage(store: Store, clock: Clock, tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:  # dies without closing anything
        dead = other(store)
        Path(snapshots.prepare(dead).fs, "file").touch()
        with open(dead.session.temporary(), "w") as file:
            file.write("x")
        blobs.ingest(dead).write(b"y")
        os._exit(0)
    os.waitpid(pid, 0)
    (tmp_path / "blobs/sha256" / ("0" * 64)).write_bytes(b"renamed, but without its row")
    (tmp_path / "cache/strange").mkdir()
    assert len(os.listdir(tmp_path / "leases")) == 1
    pruned = prune(store)
    assert {row.kind for row in pruned.removed} == {"partial"}
    assert len(pruned.removed) == 5
    assert usage(store) == ()
    assert len(os.listdir(tmp_path / "leases")) == 1, "only the pruner's own"


def test_a_partial_download_is_kept_for_a_day(store: Store, clock: Clock) -> None:
    digest = "sha256:" + "1" * 64
    with other(store) as maker, blobs.ingest(maker, digest) as ingest:
        ingest.write(b"the first half")
    changed = os.stat(ingest.path).st_mtime
    clock.now = changed + DAY - 60
    assert prune(store).removed == ()
    clock.now = changed + DAY + 60
    with other(store) as maker, blobs.resume(maker, digest):
        assert prune(store).removed == (), "it is being resumed"
    assert [row.id for row in prune(store).removed] == [f"tmp/partial/{digest.replace(':', '-')}"]


def test_old_knowledge_is_forgotten_in_the_end(store: Store, clock: Clock) -> None:
    metadata_cache.put(store, "kind", "old", b"")
    clock.now += 61 * DAY
    metadata_cache.put(store, "kind", "new", b"")
    prune(store)
    assert metadata_cache.get(store, "kind", "old") is None
    assert metadata_cache.get(store, "kind", "new") == b""


ROW = UsageInfo("snapshot", "12", 0, 0.0, 1000.0, True, False, "RUN apt-get update")


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("kind=snapshot", True),
        ("kind==snapshot", True),
        ("type=snapshot", True),
        ("kind=blob", False),
        ("kind!=blob", True),
        ("type==regular", True),
        ("type!=regular", False),
        ("type=exec.cachemount", False),
        ("type~=snap", True),
        ("id=12", True),
        ("id=1", False),
        ("id~=1", True),
        ("description~=apt-get", True),
        ("description~=x=y", False),
        ("inuse", True),
        ("in-use=true", True),
        ("inuse=false", False),
        ("shared", False),
        ("shared=false", True),
        ("private", True),
        ("private=false", False),
        ("until=1h", False),
        ("until=30m", True),
    ],
)
def test_filters(text: str, matches: bool) -> None:
    assert parse_filter(text)(ROW, 1000.0 + 45 * 60) is matches


@pytest.mark.parametrize(
    "text", ["", "kind", "colour=red", "inuse=perhaps", "until=", "until=soon", "type=frontend", "inuse!=true", "=x"]
)
def test_filters_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_filter(text)
    assert caught.value.problem.remedy


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1h30m", 5400), ("7d", 604800), ("1.5h", 5400), ("2w", 1209600)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "h", "1h5", "1.2.3h", ".h", "-1h", "1 h", "1y", "١h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)
