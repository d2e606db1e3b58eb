"""Attack 37 (CVE-2025-58183, CVE-2022-2879): headers and sparse maps that were read into memory, however long."""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Iterable, Iterator

import pytest
import raw_tar as raw

from executor.rootfs import tarreader
from platforms.errors import ArchiveError


class Made:
    """A stream of pieces that are made while it is read."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces: Iterator[bytes] = iter(pieces)
        self.given = 0

    def read(self, _: int, /) -> bytes:
        piece = next(self._pieces, b"")
        self.given += len(piece)
        return piece


def continued_map() -> Iterator[bytes]:
    """An old GNU sparse map that goes on for ever, all of its regions empty ones."""
    head = bytearray(raw.header(b"f", b"S", size=0, magic=b"ustar  \0"))
    head[482], head[483:495] = 1, b"00000000000\0"
    yield raw.sealed(bytes(head))
    yield from itertools.repeat((b"00000000000\0" * 42).ljust(504, b"\0") + b"\1" * 8)


def map_in_data() -> Iterator[bytes]:
    """A PAX 1.0 sparse map of ten million regions, in a file that is long enough for it."""
    yield raw.pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"0"))
    yield raw.header(b"f", size=1 << 32)
    yield b"9999999\n".ljust(512, b"0")
    yield from itertools.repeat(b"0\n" * 256)


GIB = b"%011o\0" % (1 << 30)

ENDLESS = {
    "extended header of 1 GiB": lambda: itertools.chain(
        [raw.header(b"x", b"x", size=GIB)], itertools.repeat(bytes(512))
    ),
    "global header of 1 GiB": lambda: itertools.chain([raw.header(b"g", b"g", size=GIB)], itertools.repeat(bytes(512))),
    "long name of 1 GiB": lambda: itertools.chain([raw.header(b"L", b"L", size=GIB)], itertools.repeat(b"n" * 512)),
    "long link of 1 GiB": lambda: itertools.chain([raw.header(b"K", b"K", size=GIB)], itertools.repeat(b"n" * 512)),
    "record that claims 1 GiB": lambda: [raw.raw_pax(b"1073741824 path=x\n"), raw.header(b"f")],
    "old sparse map without end": continued_map,
    "sparse map of ten million regions": map_in_data,
    "sparse map of one endless line": lambda: itertools.chain(
        [
            raw.pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"0")),
            raw.header(b"f", size=1 << 32),
        ],
        itertools.repeat(b"1" * 512),
    ),
}


@pytest.mark.parametrize("case", ENDLESS)
def test_what_has_no_end_is_refused_soon(case: str) -> None:
    stream, begun = Made(ENDLESS[case]()), time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArchiveError):
        list(tarreader.read(stream))
    assert stream.given <= 4 << 20
    assert time.monotonic() - begun < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_headers_of_honest_length_are_read() -> None:
    value = bytes(60_000)
    records = [(b"SCHILY.xattr.user.x%d" % number, value) for number in range(16)]
    (member,) = tarreader.read(raw.stream(raw.pax(*records), raw.header(b"f")))
    assert len(member.entry.xattrs) == 16
