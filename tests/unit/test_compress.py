"""Layer blobs: both digests, the same bytes on any number of cores, and every compression taken apart again."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import random
import threading
from pathlib import Path

import pytest
import zstandard

from executor.rootfs.compress import COMPRESSIONS, CompressedLayer, Decompressed, Packer, pack, recompress, sniff
from executor.rootfs.entry import Entry, Kind
from executor.rootfs.streams import BLOCK, Ahead, Digest
from platforms.errors import ArchiveError, UsageError

BIG = 1 << 40


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sample(size: int) -> bytes:
    """Half text, half noise, the same every time."""
    source = random.Random(size)
    text = b" ".join(b"%d" % source.randint(0, 9999) for _ in range(size // 8))
    return (text + source.randbytes(size))[:size]


def inflated(data: bytes, compression: str) -> bytes:
    """``data`` decompressed by somebody else."""
    if compression == "gzip":
        return gzip.decompress(data)
    if compression == "zstd":
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


def packed(
    path: Path, data: bytes, compression: str = "gzip", level: int | None = None
) -> tuple[CompressedLayer, bytes]:
    found = recompress(io.BytesIO(data), str(path), compression, level)
    return found, path.read_bytes()


def read_all(stream: Decompressed, size: int = 70_000) -> bytes:
    pieces = []
    while piece := stream.read(size):
        assert len(piece) <= size
        pieces.append(piece)
    assert stream.read(size) == b""
    return b"".join(pieces)


# -- compressing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("size", [0, 1, 524_287, 524_288, 524_289, 3_000_000])
def test_both_digests_and_sizes_are_right(tmp_path: Path, compression: str, size: int) -> None:
    data = sample(size)
    found, blob = packed(tmp_path / "blob", data, compression)
    assert found == CompressedLayer(digest(data), digest(blob), len(blob), size)
    assert inflated(blob, compression) == data
    assert read_all(Decompressed(io.BytesIO(blob), limit=BIG)) == data


@pytest.mark.parametrize("level", range(10))
def test_every_gzip_level(tmp_path: Path, level: int) -> None:
    data = sample(1_200_000)
    _, blob = packed(tmp_path / "blob", data, "gzip", level)
    assert gzip.decompress(blob) == data
    assert (len(blob) > len(data)) is (level == 0), "0 stores, all others compress"


@pytest.mark.parametrize("level", range(1, 10))
def test_what_is_dense_is_stored_and_what_follows_is_compressed(tmp_path: Path, level: int) -> None:
    dense, text = random.Random(1).randbytes(1 << 20), b"word " * 200_000
    _, blob = packed(tmp_path / "blob", dense + text, "gzip", level)
    assert dense[:65535] in blob
    assert len(blob) < len(dense) + 20_000
    assert gzip.decompress(blob) == dense + text


def test_what_only_repeats_afar_is_compressed(tmp_path: Path) -> None:
    piece = random.Random(1).randbytes(20_000)
    _, blob = packed(tmp_path / "blob", piece * 100)
    assert len(blob) < 100_000


def test_a_gzip_blob_is_one_member_without_name_or_time(tmp_path: Path) -> None:
    _, blob = packed(tmp_path / "blob", sample(2_000_000))
    assert blob[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    assert blob.count(blob[:10]) == 1


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_number_of_cores_makes_no_difference(
    tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = sample(20_000_000 if compression == "zstd" else 4_000_000)
    blobs = set()
    for cores in (1, 2, 7):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        blobs.add(packed(tmp_path / "blob", data, compression)[0].digest)
    assert len(blobs) == 1


def test_how_the_archive_arrives_makes_no_difference(tmp_path: Path) -> None:
    data = sample(1_500_000)
    with Packer(str(tmp_path / "a")) as one:
        one.write(data)
        first = one.finish()
    with Packer(str(tmp_path / "b")) as other:
        for at in range(0, len(data), 99_991):
            reused = bytearray(data[at : at + 99_991])
            other.write(memoryview(reused))
            reused[:] = bytes(len(reused))
        assert other.finish() == first


def test_entries_become_a_layer(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    entries = [Entry(b"f", Kind.FILE, size=7, source=os.fsencode(tmp_path / "f"))]
    found = pack(entries, str(tmp_path / "blob"), "uncompressed")
    assert found.diff_id == found.digest
    assert b"content" in (tmp_path / "blob").read_bytes()


def test_a_layer_of_one_block_starts_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise AssertionError("a thread was started")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    packed(tmp_path / "blob", sample(500_000))


def test_threads_end_when_something_fails(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="stop"), Packer(str(tmp_path / "blob")) as packer:
        packer.write(sample(3_000_000))
        raise RuntimeError("stop")
    assert threading.active_count() == before


def test_a_full_disk_is_an_error() -> None:
    before = threading.active_count()
    with pytest.raises(OSError, match="No space left"):
        recompress(io.BytesIO(sample(4_000_000)), "/dev/full", "uncompressed")
    assert threading.active_count() == before


def test_a_link_in_the_blobs_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "blob").symlink_to("target")
    with pytest.raises(OSError, match="symbolic"):
        packed(tmp_path / "blob", b"x")
    assert (tmp_path / "target").read_bytes() == b"precious"


@pytest.mark.parametrize(("compression", "level"), [("lz4", None), ("gzip", 10), ("zstd", 0), ("zstd", 23)])
def test_unknown_compressions_and_levels(tmp_path: Path, compression: str, level: int | None) -> None:
    with pytest.raises(UsageError) as caught:
        packed(tmp_path / "blob", b"", compression, level)
    assert caught.value.problem.remedy
    assert not (tmp_path / "blob").exists()


# -- decompressing --------------------------------------------------------------------------------------------------

MAKERS = {
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("compression", MAKERS)
def test_compressions_are_told_by_their_first_bytes(compression: str) -> None:
    data = sample(300_000)
    stream = Decompressed(io.BytesIO(MAKERS[compression](data)), limit=BIG)
    assert stream.compression == compression
    assert read_all(stream) == data


@pytest.mark.parametrize("data", [b"", b"x", b"plain text", bytes(2000), b"\x1f", b"(\xb5"])
def test_what_is_not_compressed_comes_as_it_is(data: bytes) -> None:
    stream = Decompressed(io.BytesIO(data), limit=BIG)
    assert stream.compression == ""
    assert read_all(stream) == data


def test_a_skippable_frame_is_zstd() -> None:
    skip = b"\x5e\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    assert sniff(skip) == "zstd"
    data = skip + zstandard.compress(b"one") + skip + zstandard.compress(b"two") + skip
    assert read_all(Decompressed(io.BytesIO(data), limit=BIG)) == b"onetwo"


@pytest.mark.parametrize("compression", MAKERS)
def test_several_members_are_one_stream(compression: str) -> None:
    pieces = [sample(size) for size in (70_000, 0, 1, 200_000)]
    data = b"".join(map(MAKERS[compression], pieces))
    assert read_all(Decompressed(io.BytesIO(data), limit=BIG)) == b"".join(pieces)


@pytest.mark.parametrize("compression", MAKERS)
def test_padding_is_let_pass_and_garbage_is_not(compression: str) -> None:
    data = MAKERS[compression](b"content")
    assert read_all(Decompressed(io.BytesIO(data + bytes(200_000)), limit=BIG)) == b"content"
    for garbage in (b"x", b"garbage" * 10_000, bytes(100) + b"x"):
        with pytest.raises(ArchiveError, match="damaged"):
            read_all(Decompressed(io.BytesIO(data + garbage), limit=BIG))


@pytest.mark.parametrize("compression", MAKERS)
def test_truncated_data_is_an_error(compression: str) -> None:
    data = MAKERS[compression](sample(100_000))
    for cut in (7, len(data) // 2, len(data) - 1):
        with pytest.raises(ArchiveError, match=r"truncated|damaged"):
            read_all(Decompressed(io.BytesIO(data[:cut]), limit=BIG))


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "xz"])
def test_damaged_data_is_an_error(compression: str) -> None:
    data = bytearray(MAKERS[compression](sample(100_000)))
    data[len(data) // 2] ^= 0x10
    with pytest.raises(ArchiveError, match="damaged"):
        read_all(Decompressed(io.BytesIO(bytes(data)), limit=BIG))


@pytest.mark.parametrize("compression", [*MAKERS, ""])
def test_no_more_than_the_limit_is_decompressed(compression: str) -> None:
    data = bytes(3_000_000)
    blob = MAKERS[compression](data) if compression else data
    assert len(read_all(Decompressed(io.BytesIO(blob), limit=3_000_000))) == 3_000_000
    with pytest.raises(ArchiveError, match="too large"):
        read_all(Decompressed(io.BytesIO(blob), limit=2_999_999))


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_pieces_are_about_as_large_as_was_asked_for(compression: str) -> None:
    """Each piece is handed from thread to thread, and that is dear."""
    stream = Decompressed(io.BytesIO(MAKERS[compression](sample(3_000_000))), limit=3_000_000)
    pieces = 0
    while stream.read(100_000):
        pieces += 1
    assert pieces <= 90


# -- streams --------------------------------------------------------------------------------------------------------


def test_reading_ahead_gives_the_same_bytes() -> None:
    data = sample(3_000_000)
    with Ahead(io.BytesIO(data)) as ahead:
        pieces = []
        while piece := ahead.read(random.Random(len(pieces)).randint(1, 400_000)):
            pieces.append(piece)
        assert b"".join(pieces) == data
        assert ahead.read(1) == b""


def test_an_error_ahead_is_raised_where_it_belongs() -> None:
    class Breaks(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if piece := super().read(size):
                return piece
            raise ConnectionError("gone")

    with Ahead(Breaks(bytes(3 * BLOCK))) as ahead:
        for _ in range(3):
            assert ahead.read(1 << 20)
        with pytest.raises(ConnectionError, match="gone"):
            ahead.read(1)
        assert ahead.read(1) == b""


def test_leaving_early_ends_the_thread() -> None:
    before = threading.active_count()
    with Ahead(io.BytesIO(bytes(50_000_000))) as ahead:
        ahead.read(10)
    assert threading.active_count() == before


@pytest.mark.parametrize("blocks", [0, 1, 2, 50])
def test_a_digest_in_a_thread_is_the_digest(blocks: int) -> None:
    pieces = [sample(1000 + number) for number in range(blocks)]
    found = Digest()
    for piece in pieces:
        found.update(piece)
    assert found.finish() == digest(b"".join(pieces)) == found.finish()
    assert found.size == sum(map(len, pieces))
