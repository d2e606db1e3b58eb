"""Reading tar archives: every dialect, and every way to be refused."""

from __future__ import annotations

import io
import itertools
import random
import tarfile
import time
from collections.abc import Callable

import pytest
import raw_tar as raw
from hypothesis import given
from hypothesis import strategies as st

from executor.rootfs import tarreader
from executor.rootfs.entry import Entry, Kind
from platforms.errors import ArchiveError

SECOND = 1_000_000_000


def read(*parts: bytes, end: bytes = raw.END) -> list[tuple[Entry, bytes]]:
    return [(member.entry, member.read(1 << 20)) for member in tarreader.read(raw.stream(*parts, end=end))]


def names(*parts: bytes) -> list[bytes]:
    return [entry.path for entry, _ in read(*parts)]


# -- dialects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_tarfile_writes_is_read(dialect: int) -> None:
    out = io.BytesIO()
    long = "d" * 90 + "/" + "f" * 90
    with tarfile.open(fileobj=out, mode="w", format=dialect) as tar:
        for name, kind, link in (
            (long, tarfile.REGTYPE, ""),
            ("dir", tarfile.DIRTYPE, ""),
            ("sym", tarfile.SYMTYPE, "t" * (99 if dialect == tarfile.USTAR_FORMAT else 300)),
            ("hard", tarfile.LNKTYPE, "dir/x"),
            ("null", tarfile.CHRTYPE, ""),
            ("pipe", tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mtime, info.uid = (
                kind.encode() if isinstance(kind, str) else kind,
                link,
                5,
                7,
            )
            info.devmajor, info.devminor, info.mode = 1, 3, 0o4711
            info.size = 600 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"x" * info.size))
    found = [(member.entry, member.read(1000)) for member in tarreader.read(io.BytesIO(out.getvalue()))]
    assert [(entry.path, entry.kind) for entry, _ in found] == [
        (long.encode(), Kind.FILE),
        (b"dir", Kind.DIRECTORY),
        (b"sym", Kind.SYMLINK),
        (b"hard", Kind.HARDLINK),
        (b"null", Kind.CHARACTER),
        (b"pipe", Kind.FIFO),
    ]
    assert found[0][1] == b"x" * 600
    assert found[2][0].link.startswith(b"t" * 99)
    assert found[3][0].link == b"dir/x"
    assert found[4][0].device == (1, 3)
    assert all((entry.mode, entry.uid, entry.mtime_ns) == (0o4711, 7, 5 * SECOND) for entry, _ in found)


def test_v7_directories_are_files_with_a_slash() -> None:
    (found,) = read(raw.header(b"dir/", b"\0", magic=b""))
    assert (found[0].path, found[0].kind) == (b"dir", Kind.DIRECTORY)


def test_the_prefix_counts_only_in_posix_archives() -> None:
    assert names(raw.header(b"name", prefix=b"some/dir")) == [b"some/dir/name"]
    assert names(raw.header(b"name", prefix=b"some/dir", magic=b"ustar\0  ")) == [b"some/dir/name"]
    assert names(raw.header(b"name", prefix=b"00000000005\0", magic=b"ustar  \0")) == [b"name"]
    assert names(raw.header(b"name", prefix=b"some/dir", magic=b"")) == [b"name"]
    star = bytearray(raw.header(b"name", prefix=b"p" * 131 + b"00000000005\x0000000000006\x00"))
    star[508:512] = b"tar\0"
    assert names(raw.sealed(bytes(star))) == [b"p" * 131 + b"/name"]


def test_gnu_long_names_and_links() -> None:
    name, link = b"n" * 300, b"l" * 300
    (found,) = read(raw.long_name(link, b"K"), raw.long_name(name), raw.header(b"cut", raw.SYMLINK, link=b"cut"))
    assert (found[0].path, found[0].link) == (name, link)


def test_base_256_numbers() -> None:
    size = b"\x80" + (5).to_bytes(11, "big")
    uid = b"\x80" + (4_000_000_000).to_bytes(7, "big")
    mtime = b"\x80" + (2**33).to_bytes(11, "big")
    (found,) = read(raw.header(b"f", size=size, uid=uid, mtime=mtime), raw.padded(b"hello"))
    assert found[1] == b"hello"
    assert (found[0].uid, found[0].mtime_ns) == (4_000_000_000, 2**33 * SECOND)


def test_pax_records_override_the_header() -> None:
    (found,) = read(
        raw.pax(
            (b"path", b"dir/\xff name"),
            (b"size", b"5"),
            (b"uid", b"3000000"),
            (b"gid", b"0"),
            (b"mtime", b"12.345678901234"),
            (b"SCHILY.xattr.user.b", b"2\n="),
            (b"SCHILY.xattr.user.a", b""),
            (b"comment", b"of no interest"),
        ),
        raw.header(b"other", gid=5),
        raw.padded(b"hello"),
    )
    entry, content = found
    assert content == b"hello"
    assert (entry.path, entry.uid, entry.gid) == (b"dir/\xff name", 3_000_000, 0)
    assert entry.mtime_ns == 12_345_678_901
    assert entry.xattrs == ((b"user.a", b""), (b"user.b", b"2\n="))


def test_an_empty_record_changes_nothing() -> None:
    assert names(raw.pax((b"path", b"")), raw.header(b"name")) == [b"name"]


def test_a_global_header_with_a_comment_is_passed_over() -> None:
    assert names(raw.pax((b"comment", b"0123"), kind=b"g"), raw.header(b"name")) == [b"name"]


@pytest.mark.parametrize(
    ("mtime", "expected"),
    [(b"-5", 0), (b"-0.5", 0), (b"9" * 20, 0), (b"7.", 7 * SECOND), (b"1.5", SECOND + SECOND // 2)],
)
def test_times_outside_of_what_containerd_sets_are_none(mtime: bytes, expected: int) -> None:
    ((entry, _),) = read(raw.pax((b"mtime", mtime)), raw.header(b"f", mtime=99))
    assert entry.mtime_ns == expected


def test_a_time_before_1970_in_base_256_is_none() -> None:
    ((entry, _),) = read(raw.header(b"f", mtime=b"\xff" * 12))
    assert entry.mtime_ns == 0


def test_an_archive_may_end_without_its_mark_and_with_anything_behind_it() -> None:
    assert [entry.path for entry, _ in read(raw.file(b"f", b"x"), end=b"")] == [b"f"]
    assert [entry.path for entry, _ in read(raw.file(b"f", b"x"), end=bytes(512))] == [b"f"]
    behind = raw.stream(raw.file(b"f"), end=raw.END + b"anything" * 1000)
    assert len(list(tarreader.read(behind))) == 1
    assert behind.read() == b"", "what follows is part of the stream's digest"


def test_content_nobody_asks_for_is_passed_over() -> None:
    parts = [raw.file(b"%d" % number, b"x" * number * 100) for number in range(20)]
    assert [member.entry.path for member in tarreader.read(raw.stream(*parts))] == [b"%d" % each for each in range(20)]


def test_any_size_of_reads_gives_the_same() -> None:
    class Dribble(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(random.Random(self.tell()).randint(1, 700))

    parts = raw.pax((b"path", b"p" * 900)) + raw.file(b"f", b"abc" * 1000) + raw.file(b"g", b"z") + raw.END
    found = [(member.entry.path, member.read(4000)) for member in tarreader.read(Dribble(parts))]
    assert found == [(b"p" * 900, b"abc" * 1000), (b"g", b"z")]


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"a", b"a"),
        (b"/a", b"a"),
        (b"./a", b"a"),
        (b"//a//b", b"a/b"),
        (b"a/./b", b"a/b"),
        (b"a/x/../b", b"a/b"),
        (b"a/b/../..", b""),
        (b".", b""),
        (b"./", b""),
        (b"/", b""),
        (b"", b""),
        (b"...", b"..."),
        (b"..a/b..", b"..a/b.."),
        (b"a/.b", b"a/.b"),
        (b" ", b" "),
    ],
)
def test_names_are_cleaned(name: bytes, expected: bytes) -> None:
    assert tarreader.clean(name) == expected
    ((entry, _),) = read(raw.header(name + b"/" if name else b"", raw.DIRECTORY))
    assert entry.path == expected


@pytest.mark.parametrize("name", [b"..", b"../a", b"a/../../b", b"/..", b"./../a", b"a" * 4096, b"nul\0"])
def test_names_that_lead_out_are_refused(name: bytes) -> None:
    with pytest.raises(ArchiveError):
        tarreader.clean(name)


@given(st.lists(st.sampled_from([b"..", b".", b"", b"a", b"b"]), max_size=8).map(b"/".join))
def test_a_clean_name_is_relative_and_has_no_dots(name: bytes) -> None:
    try:
        found = tarreader.clean(name)
    except ArchiveError:
        assert b".." in name
        return
    assert not found or all(part not in (b"", b".", b"..") for part in found.split(b"/"))
    assert tarreader.clean(found) == found


@pytest.mark.parametrize("name", [b".", b"/", b"./", b"a/.."])
@pytest.mark.parametrize("kind", [raw.FILE, raw.HARDLINK, raw.SYMLINK, raw.CHARACTER, raw.BLOCK, raw.FIFO])
def test_only_a_directory_may_stand_for_the_root(name: bytes, kind: bytes) -> None:
    with pytest.raises(ArchiveError):
        read(raw.header(name, kind, link=b"x"))


# -- refusals --------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[bytes, ...]] = {
    "checksum": (b"garbage".ljust(512, b"\0"),),
    "negative size": (raw.header(b"f", size=b"\xff" * 12),),
    "huge size": (raw.header(b"f", size=b"\x80" + b"\xff" * 11),),
    "size not octal": (raw.header(b"f", size=b"99"),),
    "size with a sign": (raw.header(b"f", size=b"+7"),),
    "size with an underscore": (raw.header(b"f", size=b"1_0"),),
    "size as a literal": (raw.header(b"f", size=b"0o7"),),
    "owner of chown's nobody": (raw.pax((b"uid", b"4294967295")), raw.header(b"f")),
    "pax size negative": (raw.pax((b"size", b"-1")), raw.header(b"f")),
    "pax size not a number": (raw.pax((b"size", b"0x10")), raw.header(b"f")),
    "pax size endless": (raw.pax((b"size", b"9" * 5000)), raw.header(b"f")),
    "pax mtime nonsense": (raw.pax((b"mtime", b"noon")), raw.header(b"f")),
    "pax record without length": (raw.raw_pax(b"path=x\n"), raw.header(b"f")),
    "pax record of length 0": (raw.raw_pax(b"0 path=x\n"), raw.header(b"f")),
    "pax record too short": (raw.raw_pax(b"5 path=x\n"), raw.header(b"f")),
    "pax record too long": (raw.raw_pax(b"99 path=x\n"), raw.header(b"f")),
    "pax record of negative length": (raw.raw_pax(b"-9 path=x\n"), raw.header(b"f")),
    "pax record without newline": (raw.raw_pax(b"9 path=xx"), raw.header(b"f")),
    "pax record without key": (raw.raw_pax(b"6 =xx\n"), raw.header(b"f")),
    "pax record without equals sign": (raw.raw_pax(b"7 path\n"), raw.header(b"f")),
    "pax path with a nul": (raw.pax((b"path", b"a\0b")), raw.header(b"f")),
    "pax header for nothing": (raw.pax((b"path", b"x")),),
    "two pax headers": (raw.pax((b"path", b"x")), raw.pax((b"path", b"y")), raw.header(b"f")),
    "pax and gnu name": (raw.long_name(b"x"), raw.pax((b"path", b"y")), raw.header(b"f")),
    "two gnu names": (raw.long_name(b"x"), raw.long_name(b"y"), raw.header(b"f")),
    "gnu name for nothing": (raw.long_name(b"x"),),
    "gnu name empty": (raw.long_name(b""), raw.header(b"f")),
    "global path": (raw.pax((b"path", b"x"), kind=b"g"), raw.header(b"f")),
    "global size": (raw.pax((b"size", b"0"), kind=b"g"), raw.header(b"f")),
    "directory with data": (raw.header(b"d/", raw.DIRECTORY, size=512), bytes(512)),
    "link with data": (raw.header(b"l", raw.SYMLINK, link=b"x", size=512), bytes(512)),
    "device with data": (raw.header(b"c", raw.CHARACTER, size=512), bytes(512)),
    "hard link with pax data": (raw.pax((b"size", b"512")), raw.header(b"h", raw.HARDLINK, link=b"x"), bytes(512)),
    "hard link to the root": (raw.header(b"h", raw.HARDLINK, link=b"/"),),
    "hard link out": (raw.header(b"h", raw.HARDLINK, link=b"../x"),),
    "link without target": (raw.header(b"l", raw.SYMLINK),),
    "file with a slash": (raw.header(b"f/"),),
    "unknown kind": (raw.header(b"f", b"Z"),),
    "multi-volume": (raw.header(b"f", b"M"),),
    "dump directory": (raw.header(b"f", b"D"),),
    "old long name": (raw.header(b"f", b"N"),),
    "device out of range": (raw.header(b"c", raw.CHARACTER, device=(4096, 0)),),
    "xattr without name": (raw.pax((b"SCHILY.xattr.", b"x")), raw.header(b"f")),
    "xattr name too long": (raw.pax((b"SCHILY.xattr." + b"x" * 256, b"x")), raw.header(b"f")),
    "xattr too big": (raw.pax((b"SCHILY.xattr.user.x", bytes(65537))), raw.header(b"f")),
    "prefix in a gnu header": (raw.header(b"f", prefix=b"dir", magic=b"ustar  \0"),),
    "lone zero block": (bytes(512), raw.header(b"f")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    started = time.process_time()
    with pytest.raises(ArchiveError) as caught:
        read(raw.file(b"before", b"x"), *REFUSED[case])
    assert caught.value.problem.why
    assert time.process_time() - started < 1


def test_an_archive_cut_off_anywhere_is_an_error_or_ends_between_members() -> None:
    whole = raw.pax((b"path", b"p")) + raw.file(b"f", b"x" * 700) + raw.long_name(b"q") + raw.file(b"g", b"y")
    ends_well = {0, 1024 + 512 + 1024, len(whole)}
    for cut in range(0, len(whole) + 1, 64):
        if cut in ends_well:
            read(whole[:cut], end=b"")
        else:
            with pytest.raises(ArchiveError, match=r"truncated|padding"):
                read(whole[:cut], end=b"")


@given(st.binary(max_size=1536), st.integers(0, 511), st.integers(0, 255))
def test_noise_is_read_or_refused_and_never_anything_else(tail: bytes, at: int, value: int) -> None:
    block = bytearray(raw.header(b"f", size=len(tail)))
    block[at] = value
    for head in (bytes(block), raw.sealed(bytes(block))):
        try:
            for member in tarreader.read(io.BytesIO(head + tail)):
                member.read(4096)
        except ArchiveError:
            pass


# -- sparse files ----------------------------------------------------------------------------------------------------

CONTENT = b"\0" * 1000 + b"one" + b"\0" * 2000 + b"two" + b"\0" * 94
"""3,100 bytes with two regions of data."""


def old_gnu(real: int, *regions: tuple[int, int], data: bytes, more: bytes = b"") -> bytes:
    block = bytearray(raw.header(b"sparse", b"S", size=len(data), magic=b"ustar  \0", prefix=b""))
    for number, (offset, length) in enumerate(regions[:4]):
        block[386 + 24 * number : 410 + 24 * number] = b"%011o\0%011o\0" % (offset, length)
    block[482] = bool(more)
    block[483:495] = b"%011o\0" % real
    return raw.sealed(bytes(block)) + more + raw.padded(data)


def pax_sparse(data: bytes, *records: tuple[bytes, bytes]) -> bytes:
    return raw.pax(*((b"GNU.sparse." + key, value) for key, value in records)) + raw.file(b"x/sparse", data)


SPARSE: dict[str, Callable[[], bytes]] = {
    "old": lambda: old_gnu(3100, (1000, 3), (3003, 3), (3100, 0), data=b"onetwo"),
    "old, continued": lambda: old_gnu(
        3100,
        (0, 0),
        (0, 0),
        (500, 0),
        (1000, 3),
        data=b"onetwo",
        more=(b"%011o\0%011o\0%011o\0%011o\0" % (3003, 3, 3100, 0)).ljust(512, b"\0"),
    ),
    "0.0": lambda: pax_sparse(
        b"onetwo",
        (b"size", b"3100"),
        (b"numblocks", b"2"),
        (b"offset", b"1000"),
        (b"numbytes", b"3"),
        (b"offset", b"3003"),
        (b"numbytes", b"3"),
        (b"name", b"sparse"),
    ),
    "0.1": lambda: pax_sparse(
        b"onetwo", (b"size", b"3100"), (b"numblocks", b"2"), (b"map", b"1000,3,3003,3"), (b"name", b"sparse")
    ),
    "1.0": lambda: pax_sparse(
        raw.padded(b"2\n1000\n3\n3003\n3\n") + b"onetwo",
        (b"major", b"1"),
        (b"minor", b"0"),
        (b"realsize", b"3100"),
        (b"name", b"sparse"),
    ),
}


@pytest.mark.parametrize("version", SPARSE)
def test_sparse_files_are_expanded(version: str) -> None:
    (entry, content), (following, _) = read(SPARSE[version](), raw.file(b"next", b"x"))
    assert following.path == b"next"
    assert (entry.path, entry.size, entry.kind) == (b"sparse", 3100, Kind.FILE)
    assert content == CONTENT


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(old_gnu(10, (5, 3), (0, 3), data=b"onetwo"), id="descending"),
        pytest.param(old_gnu(10, (0, 3), (2, 3), data=b"onetwo"), id="overlapping"),
        pytest.param(old_gnu(4, (0, 6), data=b"onetwo"), id="beyond the end"),
        pytest.param(old_gnu(10, (0, 3), data=b"onetwo"), id="less than the data"),
        pytest.param(old_gnu(10, (0, 7), data=b"onetwo"), id="more than the data"),
        pytest.param(old_gnu(10, (0, 6), data=b"onetwo", more=b"\1" * 512), id="nonsense continued"),
        pytest.param(pax_sparse(b"x", (b"map", b"0,1")), id="no size"),
        pytest.param(pax_sparse(b"x", (b"size", b"5"), (b"map", b"0,1,2")), id="odd map"),
        pytest.param(pax_sparse(b"x", (b"size", b"5"), (b"map", b"0,-1")), id="negative"),
        pytest.param(pax_sparse(b"x", (b"size", b"5"), (b"numblocks", b"2"), (b"map", b"0,1")), id="wrong count"),
        pytest.param(pax_sparse(b"x", (b"size", b"5"), (b"offset", b"0")), id="offset alone"),
        pytest.param(pax_sparse(b"x", (b"size", b"5"), (b"numbytes", b"0")), id="length alone"),
        pytest.param(pax_sparse(b"x", (b"size", b"5"), (b"major", b"2"), (b"minor", b"0")), id="unknown version"),
        pytest.param(
            pax_sparse(b"9\n1\n", (b"major", b"1"), (b"minor", b"0"), (b"realsize", b"5")), id="map beyond the data"
        ),
        pytest.param(
            pax_sparse(b"x" * 512, (b"major", b"1"), (b"minor", b"0"), (b"realsize", b"5")), id="map not a number"
        ),
    ],
)
def test_sparse_maps_that_make_no_sense_are_refused(part: bytes) -> None:
    with pytest.raises(ArchiveError):
        read(part)


def test_a_member_says_where_its_data_goes() -> None:
    (member,) = tarreader.read(raw.stream(SPARSE["1.0"]()))
    assert (member.regions, member.stored) == (((1000, 3), (3003, 3)), 6)


def test_a_header_is_told_from_other_blocks() -> None:
    assert tarreader.is_header(raw.header(b"f"))
    assert tarreader.is_header(raw.header("ü".encode()))
    for other in (bytes(512), b"x" * 512, raw.header(b"f")[:511], b""):
        assert not tarreader.is_header(other)


def test_signed_checksums_of_old_systems_are_taken() -> None:
    block = raw.header(b"\xff\xfe")
    blank = block[:148] + b" " * 8 + block[156:]
    signed = sum(byte - 256 if byte > 127 else byte for byte in blank)
    assert names(block[:148] + b"%06o\0 " % signed + block[156:]) == [b"\xff\xfe"]


def test_every_pair_of_special_headers_is_read_or_refused() -> None:
    specials = [
        raw.pax((b"path", b"p")),
        raw.pax((b"comment", b"c"), kind=b"g"),
        raw.long_name(b"n"),
        raw.long_name(b"l", b"K"),
        raw.header(b"label", b"V"),
    ]
    for pair in itertools.product(specials, repeat=2):
        try:
            found = names(*pair, raw.header(b"f"))
        except ArchiveError:
            continue
        assert found in ([b"f"], [b"p"], [b"n"])
