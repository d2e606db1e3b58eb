"""No archive reaches anything outside of its directory, whatever its entries are made of."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import raw_tar as raw

from executor.rootfs.unpack import Limits, Unpacked, extract, unpack, unpack_onto
from platforms.errors import ArchiveError

LIMITS = Limits()
Apply = Callable[..., Unpacked]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """The canary: a directory beside the roots that archives are unpacked into."""
    canary = tmp_path / "outside"
    (canary / "dir").mkdir(parents=True)
    (canary / "file").write_text("precious")
    (canary / "dir" / "file").write_text("precious too")
    (canary / "link").symlink_to("file")
    return canary


def universe(canary: Path) -> list[bytes]:
    """Entries that, combined, have broken every unpacker of the field."""
    absolute = os.fsencode(canary)
    mine = {"uid": os.getuid(), "gid": os.getgid()}
    return [
        raw.file(b"a", b"evil", **mine),
        raw.file(b"a/file", b"evil", mode=0o777, **mine),
        raw.file(b"a/dir/file", b"evil", **mine),
        raw.header(b"a/", raw.DIRECTORY, mode=0o777, **mine),  # type: ignore[arg-type]
        raw.header(b"a/dir/", raw.DIRECTORY, mode=0o777, **mine),  # type: ignore[arg-type]
        raw.header(b"a", raw.SYMLINK, link=b"../../outside", **mine),  # type: ignore[arg-type]
        raw.header(b"a", raw.SYMLINK, link=absolute, **mine),  # type: ignore[arg-type]
        raw.header(b"a", raw.SYMLINK, link=b"../../outside/file", **mine),  # type: ignore[arg-type]
        raw.header(b"a/dir", raw.SYMLINK, link=b"../../../outside/dir", **mine),  # type: ignore[arg-type]
        raw.header(b"a", raw.SYMLINK, link=b"b", **mine),  # type: ignore[arg-type]
        raw.header(b"b", raw.SYMLINK, link=b"a/..", **mine),  # type: ignore[arg-type]
        raw.header(b"b", raw.HARDLINK, link=b"a"),
        raw.header(b"a", raw.HARDLINK, link=b"b/outside/file"),
        raw.header(b"b", raw.HARDLINK, link=b"a/file"),
        raw.file(b"b/outside/file", b"evil", **mine),
        raw.file(b".wh.a"),
        raw.file(b"a/.wh.file"),
        raw.file(b"a/.wh..wh..opq"),
        raw.file(b"../outside/file", b"evil", **mine),
        raw.file(absolute + b"/file", b"evil", **mine),
    ]


@pytest.mark.parametrize("apply", [unpack, unpack_onto, extract])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_no_mix_of_entries_reaches_the_canary(tmp_path: Path, outside: Path, apply: Apply, length: int) -> None:
    parts = universe(outside)
    # Every seventh of the longest mixes (seven and twenty have no common divisor): wound 4's test takes all.
    chosen = itertools.islice(itertools.product(parts, repeat=length), 0, None, 7 if length == 3 else 1)
    before = raw.fingerprint(outside)
    roots = tmp_path / "roots"
    roots.mkdir()
    for number, mix in enumerate(chosen):
        root = roots / str(number)
        root.mkdir()
        with contextlib.suppress(ArchiveError):
            apply(raw.stream(*mix), str(root), limits=LIMITS)
        if number % 200 == 0:
            assert raw.fingerprint(outside) == before
    assert raw.fingerprint(outside) == before


@pytest.mark.parametrize("length", [1, 2])
def test_no_layer_reaches_the_canary_through_the_layer_below(tmp_path: Path, outside: Path, length: int) -> None:
    before = raw.fingerprint(outside)
    for number, mix in enumerate(itertools.product(universe(outside), repeat=length)):
        root = tmp_path / f"root{number}"
        root.mkdir()
        (root / "a").symlink_to("../outside")
        (root / "b").symlink_to(outside)
        with contextlib.suppress(ArchiveError):
            unpack_onto(raw.stream(*mix), str(root), limits=LIMITS)
    assert raw.fingerprint(outside) == before


@contextlib.contextmanager
def flipping(*swaps: Callable[[], None]) -> Iterator[None]:
    """Call ``swaps`` in turn in another thread for as long as the context lasts."""
    stop = threading.Event()

    def run() -> None:
        for swap in itertools.cycle(swaps):
            if stop.is_set():
                return
            with contextlib.suppress(OSError):
                swap()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("apply", [unpack, unpack_onto])
def test_a_directory_that_becomes_a_link_meanwhile_leads_nowhere(tmp_path: Path, outside: Path, apply: Apply) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (tmp_path / "trap").symlink_to("../outside" if apply is unpack else str(outside))
    parts = []
    for number in range(400):
        parts += [raw.header(b"other", raw.DIRECTORY), raw.file(b"a/file%d" % number, b"evil"), raw.file(b"a/.wh.file")]
        parts += [raw.header(b"a", raw.DIRECTORY, mode=0o777), raw.file(b"a/file", b"evil", mode=0o777)]
        parts += [raw.file(b"other/f%d" % number), raw.header(b"h%d" % number, raw.HARDLINK, link=b"a/file")]
    before = raw.fingerprint(outside)
    kept, link = root / "kept", tmp_path / "trap"

    def to_link() -> None:
        os.rename(root / "a", kept)
        os.rename(link, root / "a")

    def to_directory() -> None:
        os.rename(root / "a", link)
        os.rename(kept, root / "a")

    with flipping(to_link, to_directory), contextlib.suppress(ArchiveError):
        apply(raw.stream(*parts), str(root), limits=LIMITS)
    assert raw.fingerprint(outside) == before
