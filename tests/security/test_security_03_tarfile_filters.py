"""Attack 3: the archives that got past CPython's ``data`` and ``tar`` extraction filters, as published."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
import raw_tar as raw
from hostile_tar import canary

from executor.snapshotter.unpack import UnpackLimits, extract, unpack, unpack_onto
from platforms.errors import ArchiveError


def named(name: bytes, block: bytes) -> bytes:
    """``block`` with ``name`` in full, however long."""
    return raw.pax((b"path", name)) + block


def linked(name: bytes, target: bytes) -> bytes:
    return raw.pax((b"path", name), (b"linkpath", target)) + raw.header(b"l", raw.SYMLINK, link=b"t")


def realpath_overflow() -> list[bytes]:
    """CVE-2025-4517: names so long that ``realpath`` gave up resolving them, and so took the rest for harmless."""
    component, steps, path = b"d" * 247, b"abcdefghijklmnop", b""
    parts = []
    for step in steps:
        here = path + b"/" if path else b""
        parts.append(named(here + component, raw.header(b"d/", raw.DIRECTORY, mode=0o755)))
        parts.append(linked(here + bytes([step]), component))
        path = here + component
    long = b"/".join(bytes([step]) for step in steps) + b"/" + b"l" * 254
    parts.append(linked(long, b"../" * len(steps)))
    parts.append(linked(b"escape", long + b"/../../outside"))
    parts.append(raw.pax((b"linkpath", b"escape/file")) + raw.header(b"hard", raw.HARDLINK, link=b"x"))
    return [*parts, raw.file(b"hard", b"evil"), raw.file(b"escape/file", b"evil"), raw.file(b"escape/new", b"evil")]


ARCHIVES = {
    "CVE-2025-4517": realpath_overflow(),
    "CVE-2025-4330": [
        raw.header(b"a/b/", raw.DIRECTORY, mode=0o755),
        raw.header(b"a/b/up", raw.SYMLINK, link=b"../.."),
        raw.header(b"out", raw.SYMLINK, link=b"a/b/up/../outside"),
        raw.file(b"out/file", b"evil"),
    ],
    "CVE-2025-4138": [
        raw.header(b"dir/", raw.DIRECTORY, mode=0o755),
        raw.header(b"dir/here", raw.SYMLINK, link=b"."),
        raw.header(b"out", raw.SYMLINK, link=b"dir/here/../../../outside/file"),
        raw.file(b"out", b"evil"),
    ],
    "CVE-2024-12718": [
        raw.header(b"x", raw.SYMLINK, link=b"../../outside"),
        raw.header(b"x/./", raw.DIRECTORY, mode=0o777, mtime=1),
        raw.header(b"x/dir/", raw.DIRECTORY, mode=0o777, mtime=1),
        raw.header(b"x/..", raw.DIRECTORY, mode=0o777, mtime=1),
    ],
    "CVE-2025-4435": [raw.file(b"../../outside/file", b"evil"), raw.file(b"after", b"x")],
    "CVE-2007-4559": [raw.file(b"../" * 30 + b"tmp/outside/file", b"evil")],
}


@pytest.mark.parametrize("apply", [unpack, unpack_onto, extract])
@pytest.mark.parametrize("archive", ARCHIVES)
def test_the_published_archive_changes_nothing_outside(tmp_path: Path, archive: str, apply: object) -> None:
    outside = canary(tmp_path / "outside")
    root = tmp_path / "in" / "root"
    root.mkdir(parents=True)
    beside = tmp_path / "in" / "outside"
    canary(beside)
    before = raw.fingerprint(outside, beside)
    mode = tmp_path.stat().st_mode
    with contextlib.suppress(ArchiveError):
        apply(raw.stream(*ARCHIVES[archive]), str(root), limits=UnpackLimits())  # type: ignore[operator]
    assert raw.fingerprint(outside, beside) == before
    assert tmp_path.stat().st_mode == mode
    assert sorted(os.listdir(tmp_path / "in")) == ["outside", "root"]


def test_an_entry_that_is_refused_is_not_passed_over(tmp_path: Path) -> None:
    """CVE-2025-4435: with errorlevel 0 the filter skipped what it should have refused."""
    with pytest.raises(ArchiveError):
        extract(raw.stream(*ARCHIVES["CVE-2025-4435"]), str(tmp_path), limits=UnpackLimits())
    assert os.listdir(tmp_path) == []
