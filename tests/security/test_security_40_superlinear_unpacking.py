"""Attack 40 (GHSA-rp3h-jf77-q9p4): layers that take four times as long to unpack when they are twice as long."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import raw_tar as raw

from executor.snapshotter.unpack import UnpackLimits, unpack, unpack_onto

RATIO = 2.3
"""How much longer twice as many entries may take."""
DOUBLINGS = 3
ROUNDS = 15


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


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: how long a disk's file system takes for a file is its own affair."""
    with contextlib.ExitStack() as stack:
        folder = tmp_path
        if os.access("/dev/shm", os.W_OK):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
            try:
                os.setxattr(folder, "user.kanifold.probe", b"")
            except OSError:  # tmpfs has such attributes since Linux 6.6
                folder = tmp_path
        yield folder


@pytest.mark.parametrize("apply", [unpack, unpack_onto])
@pytest.mark.parametrize("shape", SHAPES)
def test_twice_the_entries_take_twice_the_time(memory: Path, shape: str, apply: object) -> None:
    archives = {factor: SHAPES[shape](factor * 500) for factor in (1, 2**DOUBLINGS)}
    best = dict.fromkeys(archives, float("inf"))
    # The least of several rounds, since what disturbs a measurement only ever makes it longer. Collections of garbage
    # would walk what all the tests before have left.
    gc.freeze()
    for number in range(ROUNDS):
        for factor, data in archives.items():
            root = memory / f"{number}-{factor}"
            root.mkdir()
            begun = time.process_time()
            apply(raw.stream(data), str(root), limits=UnpackLimits())  # type: ignore[operator]
            best[factor] = min(best[factor], time.process_time() - begun)
            shutil.rmtree(root)
        if number >= 2 and within(best):
            break
    assert within(best), f"for factors of entries, these seconds: {best}"


def within(best: dict[int, float]) -> bool:
    return best[2**DOUBLINGS] <= RATIO**DOUBLINGS * best[1]
