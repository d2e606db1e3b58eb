"""Cache directories that are in the root of a step whose processes have been killed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.store import cachemounts, moved_directories, prune
from executor.store.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "store")) as opened:
        yield opened


def moved(store: Store, token: str = "dead") -> tuple[Path, Path]:
    """A cache directory in a root of the session ``token``: where it belongs and where it is."""
    with cachemounts.acquire(store, "name") as path:
        home = Path(path)
    (home / "kept").write_text("kept")
    root = Path(store.root, "tmp", f"{token}.1", "plain-0", "fs")
    root.mkdir(parents=True)
    moved_directories.note(str(home), f"{os.path.realpath(root)}/cache")
    home.rename(root / "cache")
    return home, root / "cache"


def test_what_dead_processes_have_left_is_removed_without_it(store: Store) -> None:
    home, place = moved(store)
    prune.sweep(store, lambda _rows: iter(()), 0.0)
    assert (home / "kept").read_text() == "kept"
    assert not place.parent.exists()
    assert not Path(f"{home}.moved").exists()


def test_while_it_is_being_moved_back_nothing_is_removed(store: Store) -> None:
    """Who moves it may live longer than the session that its root belongs to."""
    home, place = moved(store)
    held = os.open(home.parent, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    prune.sweep(store, lambda _rows: iter(()), 0.0)
    assert (place / "kept").exists()
    os.close(held)
    prune.sweep(store, lambda _rows: iter(()), 0.0)
    assert (home / "kept").exists()


def test_the_next_step_that_uses_it_has_it(store: Store) -> None:
    moved(store)
    with cachemounts.acquire(store, "name") as path:
        assert Path(path, "kept").read_text() == "kept"


@pytest.mark.parametrize("left", ["a link to another", "another directory", "a link on the way", "nothing"])
def test_nothing_else_is_taken_for_it(store: Store, tmp_path: Path, left: str) -> None:
    home, place = moved(store)
    place.rename(tmp_path / "elsewhere")
    match left:
        case "a link to another":
            place.symlink_to(tmp_path / "elsewhere")
        case "another directory":
            place.mkdir()
        case "a link on the way":
            place.parent.rename(tmp_path / "root")
            (tmp_path / "elsewhere").rename(tmp_path / "root/cache")
            place.parent.symlink_to(tmp_path / "root")
    moved_directories.bring_back_all(store.root)
    assert not home.exists()
    assert not Path(f"{home}.moved").exists()


def test_what_is_exchanged_while_it_is_looked_at_is_not_taken_for_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, place = moved(store)
    look = os.stat

    def exchanged(path: str, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        status = look(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
        if path == place.name and not place.is_symlink():
            place.rename(tmp_path / "elsewhere")
            place.symlink_to(tmp_path)
        return status

    monkeypatch.setattr(os, "stat", exchanged)
    moved_directories.bring_back(str(home))
    assert not os.path.lexists(home)
    assert place.is_symlink()


def test_a_kill_on_its_way_loses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    home, _ = moved(store)
    move = os.rename

    def killed(source: str, target: str, **directories: int) -> None:
        if target == str(home):
            raise KeyboardInterrupt
        move(source, target, **directories)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "rename", killed)
        moved_directories.bring_back(str(home))
    moved_directories.bring_back(str(home))
    assert (home / "kept").read_text() == "kept"
