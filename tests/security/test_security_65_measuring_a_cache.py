"""Attack 65 (review): while the store measures a cache directory, a step swaps a directory in it for a link.

The builder then walks through the machine's own files and counts them, and the store's limits remove what other builds
have left. And what lies deeper than the longest path is not counted at all, so no limit sees it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from executor.store.removal import disk_usage, remove_tree

SIZE = 1 << 20


def test_a_directory_that_becomes_a_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "machine/inner").mkdir(parents=True)
    (tmp_path / "machine/file").write_bytes(os.urandom(SIZE))
    (tmp_path / "machine/inner/file").write_bytes(os.urandom(SIZE))
    cache = tmp_path / "cache"
    (cache / "inner/a").mkdir(parents=True)
    swaps = [(cache / "inner/a", tmp_path / "machine"), (cache / "inner", tmp_path / "machine")]
    scandir = os.scandir

    @contextmanager
    def swapping(directory: int | str) -> Iterator[list[os.DirEntry[str]]]:
        """What is there is told, and then it is something else."""
        with scandir(directory) as entries:
            yield list(entries)
        if swaps:
            place, target = swaps.pop()
            place.rename(tmp_path / f"moved{len(swaps)}")
            place.symlink_to(target)

    monkeypatch.setattr(os, "scandir", swapping)
    assert disk_usage(str(cache)) < SIZE


def test_what_lies_deeper_than_the_longest_path_counts(tmp_path: Path) -> None:
    tree = tmp_path / "cache"
    tree.mkdir()
    here = os.open(tree, os.O_RDONLY)
    for _ in range(100):
        os.mkdir("d" * 200, dir_fd=here)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    file = os.open("file", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=here)
    os.write(file, os.urandom(SIZE))
    os.close(file)
    os.close(here)
    before = len(os.listdir("/proc/self/fd"))
    try:
        assert disk_usage(str(tree)) >= SIZE
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        remove_tree(str(tree))
