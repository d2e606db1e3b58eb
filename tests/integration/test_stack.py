"""Overlay mounts that are attached nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from executor.snapshotter.overlayfs import mount_stack


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_the_end_of_a_mount_that_was_written_to_waits_for_no_disk(tmp_path: Path) -> None:
    """Else it writes out the whole file system, with what other builds have on it (overlayfs.rst, Volatile mount)."""
    for name in ("lower", "empty", "upper", "work"):
        (tmp_path / name).mkdir()
    fd = mount_stack(
        [str(tmp_path / "lower")], str(tmp_path / "empty"), upper=str(tmp_path / "upper"), work=str(tmp_path / "work")
    )
    try:
        assert (tmp_path / "work" / "work" / "incompat" / "volatile").is_dir()
    finally:
        os.close(fd)
