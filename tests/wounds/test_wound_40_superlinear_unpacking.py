"""Wound 40 (GHSA-rp3h-jf77-q9p4): layers that take four times as long to unpack when they are twice as long."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import raw_tar as raw

from executor.rootfs.unpack import Limits, unpack, unpack_onto

RATIO = 2.3


def files(count: int) -> bytes:
    return b"".join(raw.file(b"d/%d" % number) for number in range(count))


def directories(count: int) -> bytes:
    return b"".join(raw.header(b"%d/a/b/c/" % number, raw.DIRECTORY, mode=0o755) for number in range(count // 3))


def depth(count: int) -> bytes:
    """One directory in the other; a path has to be named in full, so the archive itself is what doubles."""
    level = max(1, count // 8)
    deep = b"/".join([b"d"] * 400)
    return b"".join(raw.pax((b"path", deep + b"/%d/f" % (number % 7))) + raw.file(b"f") for number in range(level))


def same_file(count: int) -> bytes:
    return raw.file(b"f", b"x") * count


def file_and_directory(count: int) -> bytes:
    """Directories with something in them that give way to a file, again and again."""
    pair = raw.header(b"x/", raw.DIRECTORY, mode=0o755) + raw.file(b"x/f") + raw.file(b"x")
    return pair * (count // 3)


def deletions(count: int) -> bytes:
    return b"".join(raw.file(b"d/.wh.%d" % number) for number in range(count))


def opaque_marks(count: int) -> bytes:
    """The same full directory hidden again and again, and every directory on a long path."""
    half = count // 2
    return files(half) + raw.file(b"d/.wh..wh..opq") * half


def opaque_path(count: int) -> bytes:
    # A path of 200 directories, hidden from the deepest up, as often as the count asks for.
    names = [b"/".join([b"p"] * level) for level in range(200, 0, -1)]
    marks = [raw.pax((b"path", name + b"/.wh..wh..opq")) + raw.header(b"f") for name in names]
    return b"".join(marks[number % 200] for number in range(count // 8))


def hard_links(count: int) -> bytes:
    return raw.file(b"f", b"x") + b"".join(raw.header(b"d/%d" % each, raw.HARDLINK, link=b"f") for each in range(count))


def links(count: int) -> bytes:
    link = raw.header(b"l", raw.SYMLINK, link=b"a/b/c")
    return (
        raw.header(b"a/b/c/", raw.DIRECTORY, mode=0o755)
        + link
        + b"".join(raw.file(b"l/%d" % number) if number % 2 else raw.file(b"a/%d" % number) for number in range(count))
    )


SHAPES: dict[str, Callable[[int], bytes]] = {
    shape.__name__: shape
    for shape in (
        files,
        directories,
        depth,
        same_file,
        file_and_directory,
        deletions,
        opaque_marks,
        opaque_path,
        hard_links,
        links,
    )
}


@pytest.mark.parametrize("apply", [unpack, unpack_onto])
@pytest.mark.parametrize("shape", SHAPES)
def test_twice_the_entries_take_twice_the_time(tmp_path: Path, shape: str, apply: object) -> None:
    count = 1500
    once, twice = SHAPES[shape](count), SHAPES[shape](2 * count)
    rounds = 0
    best = {1: float("inf"), 2: float("inf")}
    # The least of several rounds: what disturbs a measurement only ever makes it longer.
    while rounds < 3 or (best[2] > RATIO * best[1] and rounds < 15):
        for factor, data in ((1, once), (2, twice)):
            root = tmp_path / f"{rounds}-{factor}"
            root.mkdir()
            begun = time.process_time()
            apply(raw.stream(data), str(root), limits=Limits())  # type: ignore[operator]
            best[factor] = min(best[factor], time.process_time() - begun)
        rounds += 1
    assert best[2] <= RATIO * best[1], f"{best[1]:.3f} s became {best[2]:.3f} s"
