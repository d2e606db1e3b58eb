"""Overlay mounts that are attached nowhere, as Linux 6.8 makes them and as earlier ones do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from executor.snapshotter.overlayfs import mount_stack
from platforms import syscalls

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")


@pytest.fixture(params=["6.8", "6.7"], autouse=True)
def linux(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's version: before 6.8 there is no ``lowerdir+``."""
    fsconfig = syscalls.fsconfig

    def earlier(fd: int, command: int, key: str | None = None, value: str | None = None, aux: int = 0) -> None:
        if key == "lowerdir+":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsconfig(fd, command, key, value, aux)

    if request.param == "6.7":
        monkeypatch.setattr(syscalls, "fsconfig", earlier)


def _directories(place: Path, *names: str) -> list[str]:
    paths = [place / name for name in names]
    for each in paths:
        each.mkdir()
    return list(map(str, paths))


def test_the_end_of_a_mount_that_was_written_to_waits_for_no_disk(tmp_path: Path) -> None:
    """Else it writes out the whole file system, with what other builds have on it (overlayfs.rst, Volatile mount)."""
    lower, empty, upper, work = _directories(tmp_path, "lower", "empty", "upper", "work")
    fd = mount_stack([lower], empty, upper=upper, work=work)
    try:
        assert (tmp_path / "work" / "work" / "incompat" / "volatile").is_dir()
    finally:
        os.close(fd)


def test_what_is_written_goes_to_the_upper_directory(tmp_path: Path) -> None:
    lower, empty, upper, work = _directories(tmp_path, "lower", "empty", "upper", "work")
    (tmp_path / "lower" / "below").write_text("below")
    fd = mount_stack([lower], empty, upper=upper, work=work)
    try:
        root = Path(f"/proc/self/fd/{fd}")
        assert (root / "below").read_text() == "below"
        (root / "new").write_text("new")
    finally:
        os.close(fd)
    assert (tmp_path / "upper" / "new").read_text() == "new"


def test_many_layers_are_merged_whatever_their_names(tmp_path: Path) -> None:
    layers = _directories(tmp_path, *(f"{number}:a,b\\c d" for number in range(128)))
    (empty,) = _directories(tmp_path, "empty")
    for number, each in enumerate(layers):
        Path(each, "top").write_text(str(number))
        Path(each, str(number)).write_text("")
    fd = mount_stack(layers, empty)
    try:
        root = Path(f"/proc/self/fd/{fd}")
        assert (root / "top").read_text() == "0", "the first is the top"
        assert len(list(root.iterdir())) == len(layers) + 1
        with pytest.raises(OSError, match="Read-only"):
            (root / "new").write_text("")
    finally:
        os.close(fd)


def test_nothing_stays_mounted_or_is_left_in_the_directory(tmp_path: Path) -> None:
    layer, empty = _directories(tmp_path, "layer", "empty")
    mounts = Path("/proc/self/mountinfo").read_text()
    os.close(mount_stack([layer], empty))
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert sorted(os.listdir(tmp_path)) == ["empty", "layer"]
