"""Tar archives as we write them, read by Python's tarfile and by our own reader."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from executor.rootfs import tarreader
from executor.rootfs.entry import Entry, Kind
from executor.rootfs.tarwriter import canonical, write
from platforms.errors import BuildError

SECOND = 1_000_000_000


def archive(*entries: Entry) -> bytes:
    out = bytearray()
    write(entries, out.extend)
    return bytes(out)


def judged(*entries: Entry) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(archive(*entries)), errors="surrogateescape", encoding="utf-8") as tar:
        return tar.getmembers()


def source(path: Path, content: bytes, name: bytes = b"file") -> Entry:
    path.write_bytes(content)
    return Entry(name, Kind.FILE, size=len(content), source=os.fsencode(path))


def test_an_empty_archive_is_two_blocks_of_zeros() -> None:
    assert archive() == bytes(1024)


def test_the_form_of_a_header_is_fixed() -> None:
    entry = Entry(b"usr/bin", Kind.DIRECTORY, mode=0o1755, uid=1, gid=2, mtime_ns=3 * SECOND + 999_999_999)
    expected = (
        b"usr/bin/".ljust(100, b"\0")
        + b"0001755\x000000001\x000000002\x0000000000000\x0000000000003\x00"
        + b"010575\x00 5".ljust(109, b"\0")
        + b"ustar\x0000"
        + bytes(64)
        + b"0000000\x000000000\x00"
        + bytes(167)
    )
    assert archive(entry) == expected + bytes(1024)


def test_names_are_written_as_docker_writes_them(tmp_path: Path) -> None:
    found = judged(
        Entry(b"etc", Kind.DIRECTORY, mode=0o755),
        source(tmp_path / "f", b"hello", b"etc/passwd"),
        Entry(b"etc/link", Kind.SYMLINK, link=b"/etc/passwd"),
        Entry(b"etc/hard", Kind.HARDLINK, link=b"etc/passwd"),
        Entry(b"etc/gone", Kind.WHITEOUT, mode=0o644, uid=5, mtime_ns=7 * SECOND),
        Entry(b"etc", Kind.OPAQUE),
        Entry(b"dev", Kind.CHARACTER, device=(1, 3)),
        Entry(b"pipe", Kind.FIFO),
    )
    assert [(each.name, each.type, each.linkname) for each in found] == [
        ("etc", tarfile.DIRTYPE, ""),
        ("etc/passwd", tarfile.REGTYPE, ""),
        ("etc/link", tarfile.SYMTYPE, "/etc/passwd"),
        ("etc/hard", tarfile.LNKTYPE, "etc/passwd"),
        ("etc/.wh.gone", tarfile.REGTYPE, ""),
        ("etc/.wh..wh..opq", tarfile.REGTYPE, ""),
        ("dev", tarfile.CHRTYPE, ""),
        ("pipe", tarfile.FIFOTYPE, ""),
    ]
    assert (found[4].mode, found[4].uid, found[4].mtime) == (0, 0, 0), "a deletion has no owner, mode or time"
    assert (found[6].devmajor, found[6].devminor) == (1, 3)


@pytest.mark.parametrize(
    ("name", "extended"),
    [
        (b"n" * 100, False),
        (b"n" * 101, True),
        (b"p" * 155 + b"/" + b"n" * 100, False),
        (b"p" * 156 + b"/" + b"n" * 100, True),
        (b"p" * 155 + b"/" + b"n" * 101, True),
        (b"d/" * 60 + b"n", False),
        ("naïve".encode(), True),
        (b"\xff\xfe", True),
        (b"a\nb=c", False),
    ],
)
def test_a_name_is_extended_only_when_ustar_cannot_hold_it(name: bytes, extended: bool) -> None:
    for kind in (Kind.FILE, Kind.DIRECTORY):
        data = archive(Entry(name, kind))
        longer_with_slash = kind is Kind.DIRECTORY and len(name) in (100, 256)
        assert (data[156:157] == b"x") is (extended or longer_with_slash)
        (found,) = judged(Entry(name, kind))
        assert os.fsencode(found.name) == name
        (member,) = tarreader.read(io.BytesIO(data))
        assert (member.entry.path, member.entry.kind) == (name, kind)


def test_numbers_that_ustar_cannot_hold(tmp_path: Path) -> None:
    entry = Entry(b"f", Kind.FILE, uid=2_097_152, gid=4_000_000_000, mtime_ns=0o100000000000 * SECOND)
    (found,) = judged(entry)
    assert (found.uid, found.gid, found.mtime) == (2_097_152, 4_000_000_000, 0o100000000000)

    class Enough(Exception):
        pass

    def stop(_: object) -> None:
        pieces.append(bytes(_))  # type: ignore[call-overload]
        raise Enough

    pieces: list[bytes] = []
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(8 << 30)
    with pytest.raises(Enough):
        write([Entry(b"huge", Kind.FILE, size=8 << 30, source=os.fsencode(huge))], stop)
    assert b"19 size=8589934592\n" in pieces[0]


def test_extended_attributes() -> None:
    entry = Entry(b"f", Kind.FILE, xattrs=((b"security.capability", b"\1\0\0\2\n=x"), (b"user.a", b"")))
    (found,) = judged(entry)
    assert found.pax_headers["SCHILY.xattr.security.capability"].encode() == b"\1\0\0\2\n=x"
    (member,) = tarreader.read(io.BytesIO(archive(entry)))
    assert member.entry.xattrs == entry.xattrs


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 262_143, 262_144, 262_145, 1_000_000])
def test_contents_of_any_size_arrive(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    data = archive(source(tmp_path / "f", content), Entry(b"next", Kind.FILE))
    first, second = _contents(data)
    assert first == (b"file", content)
    assert second == (b"next", b"")


def _contents(data: bytes) -> list[tuple[bytes, bytes]]:
    return [(member.entry.path, member.read(1 << 30)) for member in tarreader.read(io.BytesIO(data))]


@pytest.mark.parametrize("size", [10, 500_000])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_that_shrank_or_grew_is_an_error(tmp_path: Path, size: int, change: int) -> None:
    entry = source(tmp_path / "f", bytes(size))
    (tmp_path / "f").write_bytes(bytes(size + change))
    with pytest.raises(BuildError, match="changed while it was read"):
        archive(entry)


@pytest.mark.parametrize("size", [10, 500_000])
def test_what_took_a_files_place_is_not_read(tmp_path: Path, size: int) -> None:
    path = tmp_path / "f"
    entry = source(path, bytes(size))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises((BuildError, OSError)):
        archive(entry)
    path.unlink()
    (tmp_path / "secret").write_bytes(bytes(size))
    path.symlink_to("secret")
    with pytest.raises(OSError, match="symbolic links"):
        archive(entry)


def test_canonical_order_is_by_component_with_parents_first() -> None:
    names = [b"b", b"a-b", b"a/c", b"a", b"a/b/c", b"a/b", b"a b", b"a.b"]
    found = [each.path for each in canonical(Entry(name, Kind.DIRECTORY) for name in names)]
    assert found == [b"a", b"a/b", b"a/b/c", b"a/c", b"a b", b"a-b", b"a.b", b"b"]


def test_an_opaque_mark_follows_its_directory() -> None:
    entries = [Entry(b"a/x", Kind.FILE), Entry(b"a", Kind.OPAQUE), Entry(b"a", Kind.DIRECTORY)]
    assert [each.kind for each in canonical(entries)] == [Kind.DIRECTORY, Kind.OPAQUE, Kind.FILE]


def test_the_first_path_of_hard_links_has_the_content() -> None:
    content = Entry(b"z", Kind.FILE, mode=0o600, size=3, source=b"/z", xattrs=((b"user.x", b"1"),))
    links = [
        Entry(b"m", Kind.HARDLINK, link=b"z"),
        Entry(b"a", Kind.HARDLINK, link=b"m"),
        Entry(b"zz", Kind.HARDLINK, link=b"z"),
    ]
    found = canonical([content, *links])
    assert found[0] == replace(content, path=b"a")
    assert [(each.path, each.kind, each.link, each.mode, each.size) for each in found[1:]] == [
        (b"m", Kind.HARDLINK, b"a", 0o600, 0),
        (b"z", Kind.HARDLINK, b"a", 0o600, 0),
        (b"zz", Kind.HARDLINK, b"a", 0o600, 0),
    ]
    assert canonical(found) == found


def test_hard_links_to_nothing_we_know_are_left_alone() -> None:
    stray = Entry(b"a", Kind.HARDLINK, link=b"below")
    ring = [Entry(b"x", Kind.HARDLINK, link=b"y"), Entry(b"y", Kind.HARDLINK, link=b"x")]
    assert canonical([*ring, stray]) == [stray, *ring]


COMPONENT = st.binary(min_size=1, max_size=12).filter(
    lambda name: name not in (b".", b"..") and not set(name) & {0, 47}
)
PATH = st.lists(COMPONENT, min_size=1, max_size=30).map(b"/".join)
ENTRY = st.builds(
    Entry,
    path=PATH,
    kind=st.sampled_from([Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, Kind.HARDLINK, Kind.FIFO, Kind.BLOCK]),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 2),
    gid=st.integers(0, 2**32 - 2),
    mtime_ns=st.integers(0, 2**33).map(lambda seconds: seconds * SECOND),
    link=PATH,
    device=st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1)),
    xattrs=st.dictionaries(COMPONENT, st.binary(max_size=40), max_size=3).map(
        lambda found: tuple(sorted(found.items()))
    ),
)


@given(st.lists(ENTRY, max_size=5))
def test_what_is_written_is_read_back(entries: list[Entry]) -> None:
    expected = [
        replace(
            each,
            mode=0o777 if each.kind is Kind.SYMLINK else each.mode,
            link=each.link if each.kind in (Kind.SYMLINK, Kind.HARDLINK) else b"",
            device=each.device if each.kind is Kind.BLOCK else (0, 0),
            xattrs=() if each.kind is Kind.HARDLINK else tuple(pair for pair in each.xattrs if b"=" not in pair[0]),
        )
        for each in entries
    ]
    assert [member.entry for member in tarreader.read(io.BytesIO(archive(*entries)))] == expected


@given(st.lists(ENTRY, max_size=6, unique_by=lambda each: each.path), st.randoms(use_true_random=False))
def test_canonical_order_does_not_depend_on_the_given_one(entries: list[Entry], random: object) -> None:
    once = canonical(entries)
    shuffled = list(entries)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert archive(*canonical(shuffled)) == archive(*once)
