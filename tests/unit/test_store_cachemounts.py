"""Cache directories: found by their id, filled once, shared as the Dockerfile says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from executor.store import cachemounts
from executor.store.store import Store, open_store
from platforms.errors import Interrupted


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "root")) as opened:
        yield opened


def test_what_one_step_leaves_the_next_one_finds(store: Store) -> None:
    with cachemounts.acquire(store, "id") as directory:
        Path(directory, "file").write_text("content")
    with open_store(store.root) as later, cachemounts.acquire(later, "id") as directory:
        assert Path(directory, "file").read_text() == "content"
    with cachemounts.acquire(store, "another id") as directory:
        assert os.listdir(directory) == []


@pytest.mark.parametrize("identity", ["../../../etc", "/", "", "a\0b", "x" * 5000, "\udcff"])
def test_an_id_never_leads_out_of_the_cache(store: Store, tmp_path: Path, identity: str) -> None:
    with cachemounts.acquire(store, identity) as directory:
        inside = Path(directory).resolve().relative_to(tmp_path / "root/cache")
        assert len(inside.parts) == 2
    assert [each.id for each in cachemounts.list_all(store)] == [identity]


def test_a_new_directory_is_filled_once(store: Store) -> None:
    filled = []

    def populate(directory: str) -> None:
        filled.append(directory)
        Path(directory, "seed").touch()
        os.chmod(directory, 0o1777)

    def use(_: int) -> None:
        with cachemounts.acquire(store, "id", populate=populate) as directory:
            assert os.listdir(directory) == ["seed"]
            assert os.stat(directory).st_mode & 0o7777 == 0o1777

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(8)))
    assert len(filled) == 1


def test_a_directory_that_could_not_be_filled_is_not_there(store: Store) -> None:
    def fail(directory: str) -> None:
        Path(directory, "half").touch()
        raise LookupError

    with pytest.raises(LookupError), cachemounts.acquire(store, "id", populate=fail):
        pass
    assert cachemounts.list_all(store) == ()
    assert os.listdir(os.path.join(store.root, "tmp")) == ["partial"]
    with cachemounts.acquire(store, "id") as directory:
        assert os.listdir(directory) == []


def test_shared_private_and_locked(store: Store) -> None:
    with cachemounts.acquire(store, "id") as first, cachemounts.acquire(store, "id") as second:
        assert first == second
    with cachemounts.acquire(store, "id", "private") as first, cachemounts.acquire(store, "id", "private") as second:
        assert first != second
    with cachemounts.acquire(store, "id", "private") as third:
        assert third == first
    stop: Future[None] = Future()
    stop.set_result(None)
    with (
        cachemounts.acquire(store, "id", "locked"),
        pytest.raises(Interrupted),
        cachemounts.acquire(store, "id", "locked", cancel=stop),
    ):
        pass
