"""Directories that ext4 is to spread over the disk."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from executor.store.store import spread
from platforms import syscalls

EXT4 = 0xEF53
TMPFS = 0x01021994


def attributes(path: Path) -> set[str]:
    return set(
        subprocess.run(["lsattr", "-d", str(path)], capture_output=True, text=True, check=True).stdout.split()[0]
    )


def test_ext4_is_told_to_spread_what_is_in_a_directory_and_nothing_else_of_it_changes(tmp_path: Path) -> None:
    if syscalls.file_system_type(str(tmp_path)) != EXT4 or shutil.which("lsattr") is None:
        pytest.skip("needs ext4 and lsattr")
    before = attributes(tmp_path)
    spread(str(tmp_path))
    (tmp_path / "below").mkdir()
    assert attributes(tmp_path) - before == {"T"}
    assert "T" not in attributes(tmp_path / "below")


def test_other_file_systems_are_left_as_they_are() -> None:
    if syscalls.file_system_type("/dev/shm") != TMPFS:
        pytest.skip("no tmpfs")
    spread("/dev/shm")
