"""Attack 2 (CVE-2026-28406): an archive's ``../`` was joined to the target and overwrote the builder's own helpers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import raw_tar as raw
from hostile_tar import canary

from executor.context.add_archive import extract as add
from executor.snapshotter.unpack import UnpackLimits, unpack, unpack_onto
from platforms.errors import ArchiveError


def _unpack(archive: Path, root: Path) -> None:
    with archive.open("rb") as stream:
        unpack(stream, str(root), limits=UnpackLimits())


def _onto(archive: Path, root: Path) -> None:
    with archive.open("rb") as stream:
        unpack_onto(stream, str(root), limits=UnpackLimits())


def _add(archive: Path, root: Path) -> None:
    add(str(archive), str(root))


WAYS = {"layer": _unpack, "layer onto a tree": _onto, "ADD": _add}


def attacks(outside: Path) -> dict[str, tuple[bytes, ...]]:
    absolute = os.fsencode(outside)
    return {
        "dots": (raw.file(b"../outside/file", b"evil"),),
        "dots in between": (raw.file(b"a/../../outside/file", b"evil"),),
        "absolute": (raw.file(absolute + b"/file", b"evil"),),
        "link as parent": (raw.header(b"a", raw.SYMLINK, link=b"../outside"), raw.file(b"a/file", b"evil")),
        "absolute link as parent": (raw.header(b"a", raw.SYMLINK, link=absolute), raw.file(b"a/file", b"evil")),
        "through a link": (raw.header(b"a", raw.SYMLINK, link=absolute + b"/file"), raw.file(b"a", b"evil")),
        "hard link": (raw.header(b"a", raw.HARDLINK, link=absolute + b"/file"), raw.file(b"a", b"evil")),
        "hard link with dots": (raw.header(b"a", raw.HARDLINK, link=b"../outside/file"), raw.file(b"a", b"evil")),
        "hard link through a link": (
            raw.header(b"l", raw.SYMLINK, link=absolute),
            raw.header(b"a", raw.HARDLINK, link=b"l/file"),
            raw.file(b"a", b"evil"),
        ),
        "directory": (raw.header(b"a", raw.SYMLINK, link=absolute), raw.header(b"a/dir/", raw.DIRECTORY, mode=0o777)),
        "deletion": (
            raw.header(b"a", raw.SYMLINK, link=absolute),
            raw.file(b"a/.wh.file"),
            raw.file(b"a/.wh..wh..opq"),
        ),
    }


@pytest.mark.parametrize("way", WAYS)
def test_no_way_out(tmp_path: Path, way: str) -> None:
    outside = canary(tmp_path / "outside")
    before = raw.fingerprint(outside)
    for name, parts in attacks(outside).items():
        root, archive = tmp_path / name, tmp_path / f"{name}.tar"
        root.mkdir()
        archive.write_bytes(raw.stream(*parts).getvalue())
        with contextlib.suppress(ArchiveError):
            WAYS[way](archive, root)
        assert raw.fingerprint(outside) == before, name


@pytest.mark.parametrize("name", ["dots", "dots in between", "hard link with dots"])
def test_a_name_that_climbs_out_is_an_error_and_not_a_file_elsewhere(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(ArchiveError, match="refused"):
        unpack(raw.stream(*attacks(tmp_path)[name]), str(root), limits=UnpackLimits())
    assert os.listdir(root) == []


@pytest.mark.parametrize("way", [_unpack, _onto, _add])
def test_links_of_honest_images_still_work(tmp_path: Path, way: Callable[[Path, Path], None]) -> None:
    """The fix refused images whose links have more ``..`` than they need; chroot does not mind them."""
    parts = (
        raw.header(b"usr/lib/", raw.DIRECTORY, mode=0o755),
        raw.header(b"lib", raw.SYMLINK, link=b"usr/lib"),
        raw.header(b"etc/", raw.DIRECTORY, mode=0o755),
        raw.header(b"etc/mtab", raw.SYMLINK, link=b"../proc/self/mounts"),
        raw.header(b"etc/alternatives", raw.SYMLINK, link=b"../../../../../../usr/lib"),
        raw.file(b"etc/alternatives/found", b"x"),
        raw.file(b"lib/also", b"y"),
        raw.header(b"dangling", raw.SYMLINK, link=b"../../../../nothing/here"),
    )
    root, archive = tmp_path / "root", tmp_path / "image.tar"
    root.mkdir()
    archive.write_bytes(raw.stream(*parts).getvalue())
    way(archive, root)
    assert sorted(os.listdir(root / "usr/lib")) == ["also", "found"]
    assert os.readlink(root / "dangling") == "../../../../nothing/here"
    assert os.readlink(root / "etc/alternatives") == "../../../../../../usr/lib"
