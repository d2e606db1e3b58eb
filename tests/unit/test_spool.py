"""Sequences that are too long for memory: what goes in comes out, however often and by however many it is read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from executor.store.spool import BATCH, HELD, SpooledList
from platforms.errors import StoreError

NUMBERS = msgspec.msgpack.Decoder(list[int])


@pytest.mark.parametrize("count", [0, 1, HELD - 1, HELD, HELD + 1, 3 * HELD + BATCH + 7])
def test_what_goes_in_comes_out_as_often_as_one_likes(tmp_path: Path, count: int) -> None:
    spool = SpooledList(NUMBERS, str(tmp_path), range(count))
    assert len(spool) == count
    assert list(spool) == list(spool) == list(range(count))


def test_readers_do_not_disturb_each_other(tmp_path: Path) -> None:
    spool = SpooledList(NUMBERS, str(tmp_path), range(2 * HELD))
    assert all(one == other for one, other in zip(spool, spool, strict=True))
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: sum(spool), range(8))) == {sum(range(2 * HELD))}


def test_the_file_has_no_name(tmp_path: Path) -> None:
    spool = SpooledList(NUMBERS, str(tmp_path), range(2 * HELD))
    assert not list(tmp_path.iterdir())
    assert sum(1 for _ in spool) == 2 * HELD


def test_few_items_need_no_file(tmp_path: Path) -> None:
    spool = SpooledList(NUMBERS, str(tmp_path / "nowhere"), range(HELD - 1))
    assert sum(1 for _ in spool) == HELD - 1
    with pytest.raises(StoreError, match="cannot write a temporary file"):
        spool.append(0)


def test_numbers_that_messagepack_lacks_are_kept(tmp_path: Path) -> None:
    items = [*range(BATCH), 1 << 80, *range(HELD)]
    assert list(SpooledList(NUMBERS, str(tmp_path), items)) == items
