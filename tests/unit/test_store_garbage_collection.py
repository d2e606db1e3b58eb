"""A store keeps its size: what goes, in which order, what never does, and when nothing has to be done at all."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import store_check
from conftest import Clock

from executor.store import blobs, cache_records, cachemounts, garbage_collection, locks, prune, snapshots
from executor.store.policy import Disk, Policy
from executor.store.prune import usage
from executor.store.store import Store, open_store

KIB = 1 << 10
DAY = 86400.0
ROOMY = Policy(reserved=0, max_used=1 << 40, min_free=0, keep=60 * DAY)


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """Whoever keeps the store's size; what is in it was made by others that have ended."""
    with open_store(str(tmp_path / "store"), clock=clock) as opened:
        yield opened


def add(store: Store, name: str, kib: int = 100) -> str:
    with open_store(store.root, clock=store.clock) as maker, blobs.ingest(maker) as ingest:
        ingest.write(name.encode().ljust(kib * KIB))
        return ingest.commit().digest


def add_mount(store: Store, name: str, kib: int = 100) -> None:
    with open_store(store.root, clock=store.clock) as maker:
        with cachemounts.acquire(maker, name) as place:
            (Path(place) / "file").write_bytes(bytes(kib * KIB))
        (mount,) = [each for each in cachemounts.list_all(maker) if each.id == name]
        cachemounts.measure(maker, mount)


def left(store: Store) -> set[str]:
    return {row.id for row in usage(store) if row.kind != "partial"}


def limited(kib: int, reserved: int = 0) -> Policy:
    return Policy(reserved=reserved * KIB, max_used=kib * KIB, min_free=0, keep=0)


def test_a_store_within_its_limits_is_left_alone(store: Store) -> None:
    add(store, "a")
    assert not garbage_collection.is_due(store, ROOMY)
    assert garbage_collection.collect(store, ROOMY).removed == ()


def test_what_was_used_longest_ago_goes_first_until_the_store_is_somewhat_below_its_limit(
    store: Store, clock: Clock
) -> None:
    names = []
    for name in "abcdef":
        names.append(add(store, name))
        clock.now += 1000
    with open_store(store.root, clock=clock) as user:
        blobs.find(user, names[0])
    clock.now += 1000
    policy = limited(500)
    assert garbage_collection.is_due(store, policy)
    garbage_collection.collect(store, policy)
    assert left(store) == {names[0], *names[3:]}
    assert not garbage_collection.is_due(store, policy)


def test_what_is_reserved_is_kept(store: Store, clock: Clock) -> None:
    for name in "abcd":
        add(store, name)
        clock.now += 90 * DAY
    policy = Policy(reserved=250 * KIB, max_used=1, min_free=1 << 60, keep=DAY)
    assert garbage_collection.is_due(store, policy)
    garbage_collection.collect(store, policy)
    assert len(left(store)) == 2
    assert not garbage_collection.is_due(store, policy)


def test_what_nobody_has_used_for_long_goes_although_there_is_room(store: Store, clock: Clock) -> None:
    add(store, "old")
    clock.now += 61 * DAY
    young = add(store, "young")
    assert garbage_collection.is_due(store, ROOMY)
    garbage_collection.collect(store, ROOMY)
    assert left(store) == {young}
    assert not garbage_collection.is_due(store, ROOMY)


def test_cache_directories_that_were_not_used_for_two_days_go_before_anything_else(store: Store, clock: Clock) -> None:
    blob = add(store, "older than the directory")
    clock.now += 1000
    add_mount(store, "stale")
    clock.now += 2 * DAY + 1000
    add_mount(store, "fresh")
    garbage_collection.collect(store, limited(400, reserved=250))
    assert left(store) == {blob, "fresh"}


def test_a_disk_that_has_too_little_free_space_gets_it_back(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for name in "abcdef":
        names.append(add(store, name))
        clock.now += 1
    monkeypatch.setattr(garbage_collection, "disk", lambda root: Disk(10_000 * KIB, 50 * KIB))
    policy = Policy(reserved=0, max_used=0, min_free=200 * KIB, keep=0)
    assert garbage_collection.is_due(store, policy)
    garbage_collection.collect(store, policy)
    assert left(store) == set(names[2:])


def test_nothing_that_a_living_process_uses_goes_whatever_the_limit(store: Store, clock: Clock) -> None:
    used, unused = add(store, "used"), add(store, "unused")
    add_mount(store, "mount")
    clock.now += 100 * DAY
    with open_store(store.root, clock=lambda: clock.now - 99 * DAY) as user, cachemounts.acquire(user, "mount"):
        assert blobs.has(user, used)
        draft = snapshots.prepare(user)
        garbage_collection.collect(store, Policy(0, 1, 1 << 60, 1.0))
        assert left(store) == {used, "mount"}
        assert unused not in left(store)
        assert os.path.isdir(draft.fs)
        assert blobs.read(user, used, 1 << 20).startswith(b"used")
    garbage_collection.collect(store, Policy(0, 1, 1 << 60, 1.0))
    assert left(store) == set()


def test_a_record_that_a_living_process_may_have_found_stays(store: Store, clock: Clock) -> None:
    with open_store(store.root, clock=clock) as maker:
        cache_records.put(maker, "step", b"value")
    add(store, "a")
    clock.now += 61 * DAY
    with open_store(store.root, clock=clock) as build:
        build.session.lease_until_closed("anything")
        assert cache_records.get(build, "step") == b"value"
        garbage_collection.collect(store, ROOMY)
        assert cache_records.get(build, "step") == b"value"
    add(store, "b")
    clock.now += 61 * DAY
    garbage_collection.collect(store, ROOMY)
    assert cache_records.get(store, "step") is None


def test_one_process_keeps_the_size_at_a_time(store: Store) -> None:
    add(store, "a")
    with open_store(store.root) as another, locks.lock(another, "keeping"):
        assert garbage_collection.collect(store, limited(1)).removed == ()
    assert len(garbage_collection.collect(store, limited(1)).removed) == 1


def test_the_user_may_see_to_the_size(store: Store) -> None:
    add(store, "a")
    assert not garbage_collection.is_due(store, Policy(0, 1, 1 << 60, 1.0, enabled=False))


def test_a_cache_directory_is_measured_once_in_a_while_and_counts(store: Store, clock: Clock) -> None:
    add_mount(store, "mount", kib=10)

    def grow(kib: int) -> None:
        clock.now += 1000
        with open_store(store.root, clock=clock) as user, cachemounts.acquire(user, "mount") as place:
            (Path(place) / "file").write_bytes(bytes(kib * KIB))
        clock.now += 1000

    grow(1000)
    garbage_collection.measure(store)
    assert not garbage_collection.is_due(store, limited(500))
    clock.now += 3600
    garbage_collection.measure(store)
    assert garbage_collection.is_due(store, limited(500))
    garbage_collection.collect(store, limited(500))
    assert left(store) == set()


def test_what_a_killed_process_has_left_is_removed_whatever_the_limit(store: Store) -> None:
    child = os.fork()
    if not child:
        with open_store(store.root) as maker:
            snapshots.prepare(maker)
            (Path(maker.session.temporary())).write_bytes(bytes(KIB))
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert garbage_collection.is_due(store, ROOMY)
    assert len(garbage_collection.collect(store, ROOMY).removed) == 2
    assert not garbage_collection.is_due(store, ROOMY)


@pytest.mark.parametrize("moment", ["the choice", "the removal"])
def test_a_store_whose_collection_is_killed_is_whole_and_the_next_one_continues(store: Store, moment: str) -> None:
    for name in "abcd":
        add(store, name)
    child = os.fork()
    if not child:
        place = "_path_of" if moment == "the choice" else "remove_tree"
        setattr(prune, place, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        with open_store(store.root) as keeper:
            garbage_collection.collect(keeper, limited(200))
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert not store_check.verify(store)
    rows = [row for row in usage(store) if row.kind == "blob"]
    assert all(blobs.read(store, row.id, 1 << 20) for row in rows)
    assert garbage_collection.is_due(store, ROOMY)
    garbage_collection.collect(store, ROOMY)
    assert not [row for row in usage(store) if row.kind == "partial" and not row.in_use]
    assert not garbage_collection.is_due(store, ROOMY)


def test_a_disk_that_is_nearly_full_during_a_build_is_given_room(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond what is reserved, but for what is in use."""
    names = []
    for name in "abcdefgh":
        names.append(add(store, name))
        clock.now += 1
    free = threading.Event()
    total = 4000 * KIB  # of which a twentieth is little

    def disk(root: str) -> Disk:
        taken = sum(each.stat().st_size for each in Path(root, "blobs", "sha256").iterdir())
        return Disk(total, 900 * KIB - taken)

    monkeypatch.setattr(garbage_collection, "disk", disk)
    done: list[prune.Pruned] = []

    def removed(what: prune.Pruned) -> None:
        done.append(what)
        free.set()

    with open_store(store.root, clock=clock) as build:
        assert blobs.has(build, names[0])
        watch = garbage_collection.DiskMonitor(lambda: open_store(store.root, clock=clock), store.root, removed)
        assert free.wait(20)
        watch.close()
        assert left(store) == {names[0], *names[4:]}
    assert [each.freed for each in done] == [300 * KIB]


def test_what_is_kept_by_name_stays_until_the_name_is_given_up(store: Store, clock: Clock) -> None:
    with open_store(store.root, clock=clock) as maker:
        draft = snapshots.prepare(maker)
        (Path(draft.fs) / "file").write_bytes(bytes(100 * KIB))
        key = f"{snapshots.KEPT}for a test"
        made = snapshots.commit(maker, draft, diff_id=None, size=100 * KIB, keys=(key,))
    clock.now += 90 * DAY
    policy = Policy(reserved=0, max_used=1, min_free=0, keep=DAY)
    assert not garbage_collection.is_due(store, policy)
    add(store, "a")
    clock.now += 2 * DAY
    garbage_collection.collect(store, policy)
    prune.prune(store, all=True)
    assert left(store) == {str(made.number)}
    assert snapshots.forget(store, key)
    prune.prune(store)
    assert left(store) == set()
