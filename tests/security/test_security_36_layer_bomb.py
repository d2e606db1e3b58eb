"""Attack 36 (CVE-2017-14992): a layer of a few megabytes that unpacks to a terabyte."""

from __future__ import annotations

import gzip
import itertools
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import raw_tar as raw
import zstandard

from executor.rootfs.compress import Decompressed
from executor.snapshotter.unpack import UnpackLimits, unpack
from platforms.errors import ArchiveError

LIMITS = UnpackLimits(size=32 << 20, entries=20_000)
_ZEROS = 16 << 20
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstandard.compress}


class Endless:
    """A compressed stream that is made while it is read: ``head``, then ``body`` again and again."""

    def __init__(self, head: bytes, body: bytes, times: int) -> None:
        self._pieces: Iterator[bytes] = itertools.chain(filter(None, [head]), itertools.repeat(body, times))
        self._left = b""

    def read(self, size: int, /) -> bytes:
        if not self._left:
            self._left = next(self._pieces, b"")
        piece, self._left = self._left[:size], self._left[size:]
        return piece


def peak() -> int:
    """Bytes of memory that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize(
    "head",
    [
        pytest.param(raw.header(b"bomb", size=b"\x80" + (1 << 40).to_bytes(11, "big")), id="one file of a terabyte"),
        pytest.param(raw.file(b"f", b"x") + raw.END, id="a terabyte behind the end"),
        pytest.param(raw.pax((b"size", b"%d" % (1 << 40))) + raw.header(b"bomb"), id="a terabyte by extended header"),
    ],
)
def test_a_bomb_is_a_quota_error_before_it_costs_anything(tmp_path: Path, compression: str, head: bytes) -> None:
    compress = COMPRESS[compression]
    bomb = Endless(compress(head), compress(bytes(_ZEROS)), (1 << 40) // _ZEROS)
    before, begun = peak(), time.monotonic()
    stream = Decompressed(bomb, limit=2 * LIMITS.size)
    with pytest.raises(ArchiveError, match="too large"):
        unpack(stream, str(tmp_path), limits=LIMITS)
    assert time.monotonic() - begun < 10
    assert peak() - before < 64 << 20
    assert used(tmp_path) < 1 << 20


@pytest.mark.parametrize("compression", COMPRESS)
def test_many_small_files_are_a_bomb_too(tmp_path: Path, compression: str) -> None:
    compress = COMPRESS[compression]
    unit = compress(b"".join(raw.file(b"%d" % number, bytes(1 << 20)) for number in range(8)))
    with pytest.raises(ArchiveError, match="too large"):
        unpack(Decompressed(Endless(b"", unit, 1 << 20), limit=1 << 40), str(tmp_path), limits=LIMITS)
    assert used(tmp_path) <= 9 << 20, "the same eight files again and again"


def test_empty_files_are_a_bomb_too(tmp_path: Path) -> None:
    unit = gzip.compress(b"".join(raw.header(b"same") for _ in range(1000)))
    with pytest.raises(ArchiveError, match="too large"):
        unpack(Decompressed(Endless(b"", unit, 1 << 20), limit=1 << 40), str(tmp_path), limits=LIMITS)
    assert os.listdir(tmp_path) == ["same"]


def test_a_sparse_file_counts_with_its_holes(tmp_path: Path) -> None:
    bomb = raw.pax(
        (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"%d" % (1 << 50))
    ) + raw.file(b"bomb", raw.padded(b"0\n"))
    with pytest.raises(ArchiveError, match="too large"):
        unpack(raw.stream(bomb), str(tmp_path), limits=LIMITS)
    assert os.listdir(tmp_path) == []


def used(folder: Path) -> int:
    """Bytes that ``folder`` takes on the disk."""
    return (
        int(subprocess.run(["du", "-sk", folder], check=True, capture_output=True, text=True).stdout.split()[0]) << 10
    )
