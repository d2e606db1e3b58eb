"""Deleting whatever a step may have made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from executor.store.removal import disk_usage, remove_tree


def test_a_tree_goes_and_what_its_links_point_to_stays(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    tree = tmp_path / "tree"
    (tree / "a/b/c").mkdir(parents=True)
    (tree / "a/b/file").write_text("x")
    (tree / "a/link").symlink_to(outside)
    (tree / "top").symlink_to(outside)
    os.mkfifo(tree / "a/pipe")
    remove_tree(str(tree))
    assert not tree.exists()
    assert (outside / "kept").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
@pytest.mark.skipif(not shutil.which("mkfs.btrfs"), reason="no mkfs.btrfs (Debian: btrfs-progs)")
def test_a_tree_goes_where_directories_are_read_as_they_were_when_they_were_opened(tmp_path: Path) -> None:
    """btrfs: what is moved into a directory does not show to a descriptor that was there before."""
    image, place = tmp_path / "image", tmp_path / "place"
    with image.open("wb") as file:
        file.truncate(200 << 20)
    place.mkdir()
    subprocess.run(["mkfs.btrfs", "-q", image], check=True, capture_output=True)
    mounted = f"mount -t btrfs -o loop {image} {place} || exit 77; mkdir -p {place}/tree/a/b/c {place}/tree/a/d; "
    removing = "import sys; from executor.store.removal import remove_tree; remove_tree(sys.argv[1])"
    removed = 'exec "$0" -c "$1" "$2"'
    command = ["unshare", "--mount", "sh", "-c", mounted + removed, sys.executable, removing, f"{place}/tree"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(f"cannot mount btrfs: {done.stderr}")
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_gone_already_is_no_error(tmp_path: Path) -> None:
    remove_tree(str(tmp_path / "none"))


def test_a_link_in_place_of_the_tree_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    with pytest.raises(OSError, match="link"):
        remove_tree(str(tmp_path / "link"))
    assert (tmp_path / "kept").exists()


def test_depth_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    above = os.open(tmp_path / "tree", os.O_RDONLY)
    for _ in range(3000):  # more than descriptors, Python's frames, and (with the names) bytes of a path allow
        os.mkdir("directory", dir_fd=above)
        below = os.open("directory", os.O_RDONLY, dir_fd=above)
        os.close(above)
        above = below
    os.close(above)
    remove_tree(str(tmp_path / "tree"))
    assert not (tmp_path / "tree").exists()


def test_names_that_the_removal_uses_itself_may_be_there(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in (".1", ".2", "x"):
        for inner in (".1", ".2", ".3", "file"):
            (tree / name / inner / "deep").mkdir(parents=True)
    (tree / ".3").touch()
    remove_tree(str(tree))
    assert not tree.exists()


@pytest.mark.parametrize("mode", [0o000, 0o200, 0o500])
def test_modes_do_not_protect(tmp_path: Path, mode: int) -> None:
    inner = tmp_path / "tree/outer/inner"
    inner.mkdir(parents=True)
    (inner / "file").touch()
    for each in (inner, inner.parent):
        each.chmod(mode)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                for folder, _, _ in os.walk(tmp_path):
                    os.chown(folder, 12345, 12345)
                os.chown(inner / "file", 12345, 12345)
                os.chdir(tmp_path)  # those above are not this user's to pass
                os.setresgid(12345, 12345, 12345)
                os.setresuid(12345, 12345, 12345)
                remove_tree("tree")
            else:
                remove_tree(str(tmp_path / "tree"))
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert not (tmp_path / "tree").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files that another user cannot delete")
def test_what_cannot_be_deleted_is_told_and_the_rest_goes(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "mine/file").mkdir(parents=True)
    (tree / "theirs/deep/file").mkdir(parents=True)
    os.chown(tmp_path, 12345, 12345)
    for each in (tree, tree / "mine", tree / "mine/file"):
        os.chown(each, 12345, 12345)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.chdir(tmp_path)
            os.setresuid(12345, 12345, 12345)
            try:
                remove_tree("tree")
            except PermissionError:
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert not (tree / "mine").exists()
    assert (tree / "theirs/deep/file").exists()


def test_several_threads_remove_a_wide_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one of them cannot remove is told, and keeps nothing else from being removed."""
    tree = tmp_path / "tree" / "fs"
    for number in range(100):
        (tree / str(number) / ".1" / ".2").mkdir(parents=True)
        (tree / str(number) / ".1" / "file").write_text("x")
        (tree / str(number) / "link").symlink_to(tmp_path)
    (tree / "50" / ".1" / "kept").write_text("x")
    unlink, removers = os.unlink, set()

    def refuse(name: str, *, dir_fd: int) -> None:
        removers.add(threading.get_ident())
        if name == "kept":
            raise PermissionError(1, "refused", name)
        unlink(name, dir_fd=dir_fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", refuse)
        with pytest.raises(PermissionError, match="refused"):
            remove_tree(str(tree.parent), threads=2)
    assert len(removers) > 1
    assert [each.name for each in tree.parent.rglob("*") if not each.is_dir()] == ["kept"]
    assert len([*tree.parent.rglob("*")]) == 2
    remove_tree(str(tree.parent), threads=2)
    assert [*tmp_path.iterdir()] == []


def test_usage_counts_blocks_and_hard_links_once(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a").mkdir(parents=True)
    empty = disk_usage(str(tree))
    (tree / "file").write_bytes(b"x" * 100_000)
    one = disk_usage(str(tree))
    assert 100_000 <= one - empty <= 200_000
    (tree / "a/same").hardlink_to(tree / "file")
    (tree / "link").symlink_to("/usr")
    with open(tree / "sparse", "wb") as file:
        file.truncate(1 << 40)
    assert disk_usage(str(tree)) - one < 10_000
    assert disk_usage(str(tmp_path / "none")) == 0


def test_a_limit_of_threads_makes_removal_slower_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(100):
        (tmp_path / "tree" / str(number)).mkdir(parents=True)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    remove_tree(str(tmp_path / "tree"), threads=2)
    assert not (tmp_path / "tree").exists()
