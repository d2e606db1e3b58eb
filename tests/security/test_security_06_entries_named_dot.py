"""Attack 6 (CVE-2021-29136, CVE-2021-32760): an entry named ``.`` replaced the root, or changed the mode of a target"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import raw_tar as raw
from hostile_tar import canary

from executor.snapshotter.unpack import UnpackLimits, extract, unpack, unpack_onto
from platforms.errors import ArchiveError

NAMES = [b".", b"/", b"./", b"", b"././", b"a/..", b"//./"]
KINDS = {
    "file": raw.FILE,
    "hard link": raw.HARDLINK,
    "symbolic link": raw.SYMLINK,
    "character device": raw.CHARACTER,
    "block device": raw.BLOCK,
    "fifo": raw.FIFO,
}


@pytest.mark.parametrize("apply", [unpack, unpack_onto, extract])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_takes_the_roots_place(tmp_path: Path, kind: str, apply: object) -> None:
    outside, root = canary(tmp_path / "outside"), tmp_path / "root"
    root.mkdir()
    before = raw.fingerprint(outside)
    for name in NAMES:
        with pytest.raises(ArchiveError):
            apply(  # type: ignore[operator]
                raw.stream(raw.header(name, KINDS[kind], link=b"../outside"), raw.file(b"file", b"evil")),
                str(root),
                limits=UnpackLimits(),
            )
        assert stat.S_ISDIR(root.lstat().st_mode)
        assert os.listdir(root) == []
    assert raw.fingerprint(outside) == before


@pytest.mark.parametrize("name", NAMES)
def test_the_roots_own_entry_says_nothing(tmp_path: Path, name: bytes) -> None:
    """As for Docker and containerd: the mode of ``/`` is the builder's, or every step of a mode 0700 image fails."""
    root = tmp_path / "root"
    root.mkdir()
    unpack(
        raw.stream(raw.header(name, raw.DIRECTORY, mode=0, uid=7), raw.file(b"f", b"x")),
        str(root),
        limits=UnpackLimits(),
    )
    assert (stat.S_IMODE(root.stat().st_mode), root.stat().st_uid) == (0o755, os.getuid())
    assert (root / "f").read_bytes() == b"x"


def test_a_mode_never_reaches_a_links_target(tmp_path: Path) -> None:
    """CVE-2021-32760: chmod followed the link that an earlier entry had put there."""
    outside, root = canary(tmp_path / "outside"), tmp_path / "root"
    root.mkdir()
    before = raw.fingerprint(outside)
    target = os.fsencode(outside / "file")
    parts = [
        raw.header(b"l", raw.SYMLINK, link=target, mode=0o777, uid=1),
        raw.header(b"h", raw.HARDLINK, link=b"l", mode=0o777),
        raw.header(b"p", raw.FIFO, mode=0o777),
    ]
    for apply in (unpack, unpack_onto):
        apply(raw.stream(*parts), str(root), limits=UnpackLimits())
    assert os.readlink(root / "h") == os.fsdecode(target)
    assert raw.fingerprint(outside) == before
