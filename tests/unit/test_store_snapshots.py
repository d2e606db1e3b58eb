"""Snapshots: a draft is its maker's, a committed one is everybody's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.store import snapshots
from executor.store.store import Store, open_store
from platforms.errors import StoreError

DIFF = "sha256:" + "d" * 64
CHAIN = "sha256:" + "c" * 64


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path)) as opened:
        yield opened


def test_a_draft_is_two_empty_directories_under_a_short_number(store: Store) -> None:
    draft = snapshots.prepare(store)
    assert os.listdir(draft.fs) == os.listdir(draft.work) == []
    assert draft.fs == f"{store.root}/snapshots/{draft.number}/fs"
    assert snapshots.prepare(store).number == draft.number + 1


def test_a_snapshot_is_found_by_its_diff_id_and_all_its_keys(store: Store, tmp_path: Path) -> None:
    draft = snapshots.prepare(store)
    Path(draft.fs, "file").write_text("content")
    made = snapshots.commit(store, draft, diff_id=DIFF, size=7, keys=("key",))
    named = snapshots.name(store, made, CHAIN)
    with open_store(str(tmp_path)) as other:
        for found in (
            snapshots.find(other, DIFF),
            snapshots.find(other, "key"),
            snapshots.find(other, CHAIN),
            snapshots.get(other, made.number),
        ):
            assert found == made == named
    assert Path(made.fs, "file").read_text() == "content"


def test_a_diff_id_can_become_known_later(store: Store) -> None:
    made = snapshots.commit(store, snapshots.prepare(store), diff_id=None, size=0, keys=("key",))
    assert made.diff_id is None
    assert snapshots.name(store, made, DIFF, diff_id=DIFF).diff_id == DIFF
    assert snapshots.find(store, "key") == snapshots.Snapshot(made.number, made.fs, DIFF, 0)


def test_a_draft_is_not_found_before_its_commit(store: Store) -> None:
    draft = snapshots.prepare(store)
    assert snapshots.get(store, draft.number) is None


def test_a_commit_deletes_the_work_directory_whatever_its_mode(store: Store) -> None:
    draft = snapshots.prepare(store)
    Path(draft.work, "work").mkdir(0o000)
    made = snapshots.commit(store, draft, diff_id=None, size=0)
    assert os.listdir(os.path.dirname(made.fs)) == ["fs"]


def test_a_discarded_draft_leaves_nothing(store: Store) -> None:
    draft = snapshots.prepare(store)
    Path(draft.fs, "directory").mkdir(0o000)
    snapshots.discard(store, draft)
    assert os.listdir(os.path.join(store.root, "snapshots")) == []
    assert os.listdir(os.path.join(store.root, "tmp")) == ["partial"]


def test_who_comes_second_does_not_take_a_key_away(store: Store) -> None:
    first = snapshots.commit(store, snapshots.prepare(store), diff_id=DIFF, size=0)
    second = snapshots.commit(store, snapshots.prepare(store), diff_id=DIFF, size=0, keys=("second",))
    assert snapshots.find(store, DIFF) == first
    assert snapshots.find(store, "second") == second


def test_a_key_of_a_lost_snapshot_can_be_given_anew(store: Store) -> None:
    first = snapshots.commit(store, snapshots.prepare(store), diff_id=DIFF, size=0)
    os.rmdir(first.fs)
    assert snapshots.find(store, DIFF) is None
    second = snapshots.commit(store, snapshots.prepare(store), diff_id=DIFF, size=0)
    assert snapshots.find(store, DIFF) == second


def test_numbers_go_on_after_a_lost_index(store: Store, tmp_path: Path) -> None:
    numbers = [snapshots.prepare(store).number for _ in range(3)]
    store.close()
    (tmp_path / "index.db").unlink()
    assert snapshots.prepare(store).number > max(numbers)


def test_using_a_snapshot_that_is_gone_is_one_clear_error(store: Store) -> None:
    made = snapshots.commit(store, snapshots.prepare(store), diff_id=DIFF, size=0)
    with snapshots.lease(store, made, made.number):
        pass
    with pytest.raises(StoreError) as caught:
        snapshots.lease(store, made.number + 1)
    assert caught.value.problem.remedy
