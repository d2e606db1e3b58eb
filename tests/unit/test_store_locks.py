"""Named locks: one holder at a time, between threads as between processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from executor.store.locks import lock, try_lock
from executor.store.store import Store, open_store
from platforms.errors import Interrupted


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path)) as opened:
        yield opened


def lock_files(store: Store) -> list[str]:
    return [name for name in os.listdir(os.path.join(store.root, "locks")) if name not in ("gate", "index")]


def test_a_lock_excludes_everybody_else_until_it_is_released(store: Store) -> None:
    with lock(store, "name"):
        assert try_lock(store, "name") is None
        other = try_lock(store, "other name")
        assert other is not None
        other.release()
    again = try_lock(store, "name")
    assert again is not None
    again.release()
    again.release()


def test_no_file_is_left(store: Store) -> None:
    with lock(store, "a/../strange name\0\udcff"):
        assert len(lock_files(store)) == 1
    assert lock_files(store) == []


def test_threads_do_not_run_over_each_other(store: Store) -> None:
    inside, most, runs = 0, 0, 0

    def work(_: int) -> None:
        nonlocal inside, most, runs
        with lock(store, "name"):
            inside += 1
            most = max(most, inside)
            runs += 1
            os.sched_yield()  # gives the others a chance to be wrong
            inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(400)))
    assert (most, runs) == (1, 400)
    assert lock_files(store) == []


def test_a_wait_ends_when_the_holder_releases(store: Store) -> None:
    held = lock(store, "name")
    with ThreadPoolExecutor(2) as pool:
        plain = pool.submit(lambda: lock(store, "name").release())
        cancellable = pool.submit(lambda: lock(store, "name", cancel=Future()).release())
        assert not plain.done()
        assert not cancellable.done()
        held.release()
        plain.result(10)
        cancellable.result(10)


def test_a_wait_can_be_cancelled_and_the_lock_goes_on_working(store: Store) -> None:
    cancel: Future[None] = Future()
    held = lock(store, "name")
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(lock, store, "name", cancel=cancel)
        assert not waiter.done()
        cancel.set_result(None)
        with pytest.raises(Interrupted):
            waiter.result(10)
    held.release()
    with lock(store, "name"):  # whoever gave up has let go of what it was given too late
        pass


def test_a_cancelled_wait_does_not_begin(store: Store) -> None:
    cancel: Future[None] = Future()
    cancel.set_result(None)
    with lock(store, "name"), pytest.raises(Interrupted):
        lock(store, "name", cancel=cancel)


def test_a_fork_that_inherits_a_lock_does_not_keep_it(store: Store) -> None:
    held = lock(store, "name")
    end, other_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(other_end)
        os.read(end, 1)  # until the parent closes
        os._exit(0)
    os.close(end)
    held.release()
    again = try_lock(store, "name")
    assert again is not None
    again.release()
    os.close(other_end)
    os.waitpid(pid, 0)
