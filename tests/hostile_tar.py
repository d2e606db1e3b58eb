"""Tar entries that, combined, have escaped from unpackers, and a canary that detects it."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import raw_tar as raw


def canary(path: Path) -> Path:
    """Make a directory outside of the root; ``raw_tar.fingerprint`` tells whether it was changed."""
    (path / "dir").mkdir(parents=True)
    (path / "file").write_text("precious")
    (path / "dir" / "file").write_text("precious too")
    (path / "link").symlink_to("file")
    return path


def universe(outside: Path) -> list[bytes]:
    """Return entries that aim at the canary ``outside``, which is beside the directory with the root."""
    absolute = os.fsencode(outside)
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


@contextlib.contextmanager
def flipping(*swaps: Callable[[], None]) -> Iterator[None]:
    """Call ``swaps`` in turn on another thread for the length of the block."""
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
