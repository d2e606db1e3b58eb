"""ADD of local archives: what is one, what comes of it, and that a hostile one comes to nothing."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from executor.context.add_archive import extract, is_archive
from platforms.errors import ArchiveError, ContextError


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """An archive of ``members``, in pax form."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


ONE = tar(member("a/file", b"content", mode=0o4711, mtime=12345, uid=os.geteuid(), gid=os.getegid()))
COMPRESSIONS = [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.compress]


@pytest.mark.parametrize("compress", COMPRESSIONS)
def test_archives_are_told_by_their_content(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "no-telling-name"
    path.write_bytes(compress(ONE))
    assert is_archive(str(path))
    out = tmp_path / "out"
    out.mkdir()
    found = extract(str(path), str(out))
    assert found is not None
    assert found.implicit == (b"a",)
    file = out / "a/file"
    assert file.read_bytes() == b"content"
    assert file.stat().st_mode & 0o7777 == 0o4711
    assert file.stat().st_mtime == 12345


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text\n",
        bytes(512),
        bytes(10240),
        gzip.compress(b""),
        gzip.compress(b"text"),
        gzip.compress(bytes(10240)),
        gzip.compress(ONE)[:40],
        b"BZh is how this text begins",
        b"\x1f\x8b\x08 is how this one begins",
        ONE[:511],
        b"x" + ONE[1:],
    ],
)
def test_other_files_are_left_as_they_are(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(content)
    out = tmp_path / "out"
    out.mkdir()
    assert extract(str(path), str(out)) is None
    assert list(out.iterdir()) == []


def test_only_regular_files_are_archives(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(ONE)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    assert [is_archive(str(tmp_path / name)) for name in ("real", "link", "directory", "fifo")] == [True, *[False] * 3]


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ContextError, match="cannot read"):
        is_archive(str(tmp_path / "nothing"))


def test_whiteouts_are_names_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(tar(member("d/.wh.gone", b"1"), member("d/.wh..wh..opq", b"2"), member(".wh..wh.plnk", b"3")))
    out = tmp_path / "out"
    out.mkdir()
    assert extract(str(path), str(out)) is not None
    assert sorted(os.listdir(out / "d")) == [".wh..wh..opq", ".wh.gone"]
    assert (out / ".wh..wh.plnk").read_bytes() == b"3"


def test_links_and_directories_arrive(tmp_path: Path) -> None:
    path = tmp_path / "x"
    own = {"uid": os.geteuid(), "gid": os.getegid()}
    path.write_bytes(
        tar(
            member(".", type=tarfile.DIRTYPE, mode=0o700, **own),
            member("d", type=tarfile.DIRTYPE, mode=0o1777, mtime=7, **own),
            member("d/f", b"x", **own),
            member("d/hard", type=tarfile.LNKTYPE, linkname="d/f"),
            member("d/soft", type=tarfile.SYMTYPE, linkname="/etc/passwd", **own),
        )
    )
    out = tmp_path / "out"
    out.mkdir()
    found = extract(str(path), str(out))
    assert found is not None
    assert found.implicit == ()
    assert (out / "d").stat().st_mode & 0o7777 == 0o1777
    assert (out / "d").stat().st_mtime == 7
    assert (out / "d/f").stat().st_ino == (out / "d/hard").stat().st_ino
    assert os.readlink(out / "d/soft") == "/etc/passwd"


HOSTILE = {
    "climbs": tar(member("../canary", b"dead")),
    "through a link": tar(member("l", type=tarfile.SYMTYPE, linkname="../.."), member("l/canary", b"dead")),
    "links out": tar(member("h", type=tarfile.LNKTYPE, linkname="../canary"), member("h", b"dead")),
    "truncated": ONE[:600],
    "damaged later": ONE[:1024] + b"no header".ljust(9216, b"."),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_the_rest_alone(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    canary.write_text("alive")
    path = tmp_path / "x.tar"
    path.write_bytes(HOSTILE[name])
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    if name == "through a link":
        extract(str(path), str(out))  # the link is the archive's own: followed, but inside
        assert (out / "canary").read_bytes() == b"dead"
    else:
        with pytest.raises(ArchiveError):
            extract(str(path), str(out))
    assert canary.read_text() == "alive"
    assert sorted(os.listdir(tmp_path)) == ["canary", "deep", "x.tar"]
