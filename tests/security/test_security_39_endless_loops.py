"""Attack 39 (CVE-2025-8194, CVE-2026-11972, CVE-2019-20907): archives that kept a reader busy for ever."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
import raw_tar as raw

from executor.snapshotter.unpack import UnpackLimits, unpack, unpack_onto
from platforms.errors import ArchiveError

NEGATIVE = b"\xff" * 12
CASES = {
    "negative size, so a negative offset": raw.header(b"f", size=NEGATIVE) + bytes(512),
    "negative size of a special header": raw.header(b"x", b"x", size=NEGATIVE) + bytes(512),
    "negative size of a long name": raw.header(b"L", b"L", size=NEGATIVE) + bytes(512),
    "negative size in an extended header": raw.pax((b"size", b"-512")) + raw.header(b"f"),
    "minus zero": raw.pax((b"size", b"-0")) + raw.header(b"f"),
    "negative sparse offset": raw.pax(
        (b"GNU.sparse.size", b"9"), (b"GNU.sparse.offset", b"-9"), (b"GNU.sparse.numbytes", b"9")
    )
    + raw.header(b"f"),
    "record of length zero": raw.raw_pax(b"0 a=b\n") + raw.header(b"f"),
    "record of length zero, often": raw.raw_pax(b"0 a=b\n" * 1000) + raw.header(b"f"),
    "record that ends in its own length": raw.raw_pax(b"1 ") + raw.header(b"f"),
    "record of an endless number": raw.raw_pax(b"9" * 1000) + raw.header(b"f"),
    "end inside of a header": raw.header(b"f")[:300],
    "end inside of a file": raw.header(b"f", size=1 << 30) + bytes(1000),
    "end inside of a long name": raw.header(b"L", b"L", size=600) + bytes(512),
    "end inside of an extended header": raw.header(b"x", b"x", size=600) + bytes(512),
    "end inside of a sparse map": raw.pax(
        (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")
    )
    + raw.header(b"f", size=5000)
    + b"900\n1\n".ljust(512, b"1"),
    "link to itself as a parent": raw.header(b"l", raw.SYMLINK, link=b"l") + raw.file(b"l/f", b"x") + raw.END,
    "links in a ring as parents": raw.header(b"a", raw.SYMLINK, link=b"b/x")
    + raw.header(b"b", raw.SYMLINK, link=b"a/x")
    + raw.file(b"a/f", b"x")
    + raw.END,
}


@pytest.mark.parametrize("apply", [unpack, unpack_onto])
@pytest.mark.parametrize("case", CASES)
def test_it_ends_in_an_error_within_a_second(tmp_path: Path, case: str, apply: object) -> None:
    begun = time.process_time()
    with pytest.raises(ArchiveError):
        apply(io.BytesIO(CASES[case]), str(tmp_path), limits=UnpackLimits())  # type: ignore[operator]
    assert time.process_time() - begun < 1


def test_a_stream_that_fails_ends_the_unpacking(tmp_path: Path) -> None:
    class Broken:
        left = 3

        def read(self, size: int, /) -> bytes:
            self.left -= 1
            if self.left < 0:
                raise EOFError("the other end is gone")
            return raw.header(b"f", size=1 << 30)

    with pytest.raises(EOFError, match="gone"):
        unpack(Broken(), str(tmp_path), limits=UnpackLimits())


def test_links_that_double_their_length_are_not_walked_for_ever(tmp_path: Path) -> None:
    """Each link leads twice through the one before: forty of them would be a trillion steps."""
    parts = [raw.header(b"d", raw.DIRECTORY, mode=0o755), raw.header(b"l0", raw.SYMLINK, link=b"d")]
    for number in range(1, 40):
        before = b"l%d" % (number - 1)
        parts.append(raw.header(b"l%d" % number, raw.SYMLINK, link=before + b"/../" + before))
    begun = time.process_time()
    with pytest.raises(ArchiveError, match="symbolic links"):
        unpack(raw.stream(*parts, raw.file(b"l39/f", b"x")), str(tmp_path), limits=UnpackLimits())
    assert time.process_time() - begun < 1
