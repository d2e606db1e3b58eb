"""Where the store is, and what opening it does."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from executor.store import cache_records
from executor.store.store import default_root, open_store
from platforms.errors import StoreError


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"KANIFOLD_ROOT": "/a", "XDG_DATA_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"KANIFOLD_ROOT": "", "XDG_DATA_HOME": "/b", "HOME": "/c"}, "/b/kanifold"),
        ({"XDG_DATA_HOME": "relative/is/ignored", "HOME": "/c"}, "/c/.local/share/kanifold"),
        ({"HOME": "/c"}, "/c/.local/share/kanifold"),
    ],
)
def test_the_root_is_named_by_the_environment(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KANIFOLD_ROOT", "XDG_DATA_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_root() == expected


def test_opening_makes_the_directories_and_keeps_others_out(tmp_path: Path) -> None:
    open_store(str(tmp_path / "deep/root")).close()
    assert (tmp_path / "deep/root").stat().st_mode & 0o777 == 0o700
    assert {each.name for each in (tmp_path / "deep/root").iterdir()} >= {"blobs", "snapshots", "cache", "tmp", "locks"}


def test_opening_again_after_a_half_made_root_completes_it(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    with open_store(str(tmp_path)) as store:
        assert cache_records.get(store, "none") is None


def test_a_store_that_is_not_used_leaves_no_lease_and_no_index(tmp_path: Path) -> None:
    open_store(str(tmp_path)).close()
    assert os.listdir(tmp_path / "leases") == []
    assert not (tmp_path / "index.db").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_root_that_cannot_be_made_is_one_clear_error() -> None:
    with pytest.raises(StoreError) as caught:
        open_store("/proc/self/store")
    problem = caught.value.problem
    assert "/proc/self/store" in problem.what
    assert problem.why
    assert "--root" in problem.remedy


def test_a_root_that_is_a_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError) as caught:
        open_store(str(tmp_path / "file"))
    assert caught.value.problem.remedy
