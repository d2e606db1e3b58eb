"""Attack 5 (CVE-2025-47290): leaving out the walk of the tree let a link of one layer lead the next one out."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pytest
import raw_tar as raw
from hostile_tar import canary, flipping
from kernel_calls import exchange

from executor.snapshotter.unpack import UnpackLimits, unpack, unpack_onto
from platforms.errors import ArchiveError

LIMITS = UnpackLimits()


@pytest.mark.parametrize("target", ["../outside", "/../../outside", "absolute"])
def test_layer_two_through_layer_ones_link(tmp_path: Path, target: str) -> None:
    outside, root = canary(tmp_path / "outside"), tmp_path / "root"
    root.mkdir()
    link = os.fsencode(outside) if target == "absolute" else target.encode()
    before = raw.fingerprint(outside)
    unpack_onto(raw.stream(raw.header(b"a", raw.SYMLINK, link=link)), str(root), limits=LIMITS)
    for part in (
        raw.file(b"a/file", b"evil"),
        raw.header(b"a/dir/", raw.DIRECTORY, mode=0o777, uid=1),
        raw.file(b"a/.wh.file"),
        raw.file(b"a/.wh..wh..opq"),
        raw.header(b"h", raw.HARDLINK, link=b"a/file"),
        raw.header(b"a/dir/sym", raw.SYMLINK, link=b"x"),
        raw.header(b"a/", raw.DIRECTORY, mode=0o777),
    ):
        with contextlib.suppress(ArchiveError):
            unpack_onto(raw.stream(part), str(root), limits=LIMITS)
        assert raw.fingerprint(outside) == before


@pytest.mark.parametrize("apply", [unpack, unpack_onto])
def test_a_directory_that_becomes_a_link_meanwhile_leads_nowhere(tmp_path: Path, apply: object) -> None:
    outside, root, trap = canary(tmp_path / "outside"), tmp_path / "root", tmp_path / "trap"
    (root / "a").mkdir(parents=True)
    parts = []
    for number in range(500):
        parts += [raw.header(b"other", raw.DIRECTORY), raw.file(b"a/file%d" % number, b"evil"), raw.file(b"a/.wh.file")]
        parts += [raw.file(b"other/f%d" % number), raw.header(b"a/dir", raw.DIRECTORY, mode=0o777)]
        parts += [raw.file(b"other/g%d" % number), raw.file(b"a/file", b"evil", mode=0o777)]
        parts += [raw.file(b"other/h%d" % number), raw.header(b"h%d" % number, raw.HARDLINK, link=b"a/file")]
    before = raw.fingerprint(outside)
    swapped = 0

    def swap() -> None:
        nonlocal swapped
        if not trap.is_symlink():  # the link gave way to a directory, which came here in its stead
            shutil.rmtree(trap, ignore_errors=True)
            trap.symlink_to(outside)
        exchange(str(trap), str(root / "a"))
        swapped += 1

    with flipping(swap):
        while swapped <= 10:  # an archive that is refused at once is no trial
            with contextlib.suppress(ArchiveError):
                apply(raw.stream(*parts), str(root), limits=LIMITS)  # type: ignore[operator]
    assert raw.fingerprint(outside) == before
