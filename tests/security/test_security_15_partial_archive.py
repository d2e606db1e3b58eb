"""Attack 15 (CVE-2026-44517): what a broken archive leaves behind is written through by whatever is tried next."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import Final

import pytest
from registry_server import Said, served

from executor.context.add_archive import extract, is_archive
from executor.context.http import download
from platforms.errors import ArchiveError, StoreError


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "canary"
    path.write_text("alive")
    return path


DOWNLOADED: Final = "content"
"""What the file is called that a download makes."""


def partial(canary: Path, tail: bytes, name: str = "Dockerfile") -> bytes:
    """An archive whose one entry is a link ``name`` to ``canary``, and which then goes on as ``tail``."""
    buffer = io.BytesIO()
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, str(canary)
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(info)
    return buffer.getvalue()[:512] + tail


TAILS = [b"", b"FROM scratch\n", b"FROM scratch\n".ljust(512, b"#"), b"\1" * 600]


@pytest.mark.parametrize("tail", TAILS[1:])
@pytest.mark.parametrize("packed", [bytes, gzip.compress])
def test_what_begins_as_an_archive_is_never_taken_for_something_else(
    tmp_path: Path, canary: Path, tail: bytes, packed: object
) -> None:
    source, out = tmp_path / "context", tmp_path / "out"
    out.mkdir()
    source.write_bytes(packed(partial(canary, tail)))  # type: ignore[operator]
    assert is_archive(str(source))
    with pytest.raises(ArchiveError):
        extract(str(source), str(out))
    assert canary.read_text() == "alive"


@pytest.mark.parametrize("tail", TAILS)
def test_nothing_is_written_through_what_an_archive_left(tmp_path: Path, canary: Path, tail: bytes) -> None:
    source, out = tmp_path / "context", tmp_path / "out"
    out.mkdir()
    source.write_bytes(partial(canary, tail, DOWNLOADED))
    try:
        extract(str(source), str(out))
    except ArchiveError:
        assert tail
    assert (out / DOWNLOADED).is_symlink()
    with served(lambda _: Said(body=b"FROM evil\n")) as server, pytest.raises(StoreError):
        download(f"{server.url}/Dockerfile", str(out))
    assert canary.read_text() == "alive"
