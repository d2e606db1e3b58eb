"""Attack 4 (CVE-2026-11940 and after): filters that hold for every entry alone fell to two or three together."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path

import pytest
import raw_tar as raw
from hostile_tar import canary, universe

from executor.snapshotter.unpack import UnpackLimits, extract, unpack
from platforms.errors import ArchiveError

LIMITS = UnpackLimits()


@pytest.mark.parametrize(
    ("length", "stride"),
    [pytest.param(3, 1, id="every mix of three"), pytest.param(4, 59, id="every 59th mix of four")],
)
def test_no_mix_reaches_the_canary(tmp_path: Path, length: int, stride: int) -> None:
    outside = canary(tmp_path / "outside")
    before = raw.fingerprint(outside)
    roots = tmp_path / "roots"
    roots.mkdir()
    mixes = itertools.islice(itertools.product(universe(outside), repeat=length), 0, None, stride)
    for number, mix in enumerate(mixes):
        root = roots / str(number)
        root.mkdir()
        with contextlib.suppress(ArchiveError):
            unpack(raw.stream(*mix), str(root), limits=LIMITS)
    assert raw.fingerprint(outside) == before


PUBLISHED = {
    "hard link to a link, moved deeper": [
        raw.header(b"a/", raw.DIRECTORY, mode=0o755),
        raw.header(b"a/b/", raw.DIRECTORY, mode=0o755),
        raw.header(b"a/b/up", raw.SYMLINK, link=b"../../outside"),
        raw.header(b"up", raw.HARDLINK, link=b"a/b/up"),
        raw.file(b"up/file", b"evil"),
    ],
    "hard link to a shallow link": [
        raw.header(b"deep/er/", raw.DIRECTORY, mode=0o755),
        raw.header(b"deep/er/link", raw.SYMLINK, link=b"../../../outside"),
        raw.header(b"link", raw.HARDLINK, link=b"deep/er/link"),
        raw.header(b"link/dir/", raw.DIRECTORY, mode=0o777),
    ],
    "link with an empty name": [raw.header(b"", raw.SYMLINK, link=b"../outside"), raw.file(b"file", b"evil")],
    "link with an empty target": [raw.header(b"a", raw.SYMLINK), raw.file(b"a/file", b"evil")],
    "out and in again": [
        raw.header(b"a", raw.SYMLINK, link=b"../roots/../outside"),
        raw.file(b"a/file", b"evil"),
        raw.header(b"b", raw.SYMLINK, link=b"../root/../outside"),
        raw.file(b"b/file", b"evil"),
    ],
}


@pytest.mark.parametrize("case", PUBLISHED)
@pytest.mark.parametrize("apply", [unpack, extract])
def test_the_published_mixes(tmp_path: Path, case: str, apply: object) -> None:
    outside, root = canary(tmp_path / "outside"), tmp_path / "root"
    root.mkdir()
    before = raw.fingerprint(outside)
    with contextlib.suppress(ArchiveError):
        apply(raw.stream(*PUBLISHED[case]), str(root), limits=LIMITS)  # type: ignore[operator]
    assert raw.fingerprint(outside) == before
