"""Attack 11 (CVE-2024-11218, CVE-2024-23651): another step swaps a directory for a link between its check and its mount

What a step mounts is an open descriptor or a directory that no step can replace; what steps share is the inside of a
cache. So the race is for a mount *below* a cache: its way leads through names that a parallel step swaps.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import Base, Kanifold
from sandbox_process import SandboxProcess

STEPS = 60


@contextmanager
def swapping(place: Path, link: str) -> Iterator[None]:
    """``place`` is by turns a directory and a link, as fast as this machine can."""
    ended = threading.Event()
    libc = ctypes.CDLL(None, use_errno=True)
    other = place.with_name("other")
    place.mkdir()
    place.chmod(0o777)
    other.symlink_to(link)

    def swap() -> None:
        while not ended.is_set():
            assert libc.renameat2(-100, os.fsencode(place), -100, os.fsencode(other), 2) == 0  # RENAME_EXCHANGE

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_mount_below_a_shared_directory_stays_inside(either_sandbox: SandboxProcess, tmp_path: Path) -> None:
    from executor.sandbox import Bind, Tmpfs

    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    canary, shared = tmp_path / "canary", tmp_path / "shared"
    for made in (canary, shared):
        made.mkdir()
        made.chmod(0o777)
    ends = set()
    with swapping(shared / "sub", f"/../../../..{canary}"):
        for _ in range(STEPS // 4):
            specs = [
                either_sandbox.spec(
                    "touch /c/sub/x/evil; echo done", mounts=(Bind(str(shared), "/c"), Tmpfs("/c/sub/x"))
                )
                for _ in range(4)
            ]
            ends |= {done.ended.code for done in either_sandbox.run_all(specs)}
    assert list(canary.iterdir()) == []
    assert ends <= {0, 1, 125}


def test_steps_that_swap_in_a_cache(kanifold: Kanifold, busybox: Base, tmp_path: Path) -> None:
    """As a build: two stages at once, one swaps in a cache what the other mounts below it."""
    canary = tmp_path / "canary"
    canary.mkdir()
    canary.chmod(0o777)
    (canary / "secret").write_text("never seen")
    cache = "--mount=type=cache,id=shared,target=/c"
    swap = (
        f"mkdir -p /c/sub; ln -sfn /../../../..{canary} /c/link; "
        "for i in $(seq 300); do "
        "mv -T /c/sub /c/dir; mv -T /c/link /c/sub; mv -T /c/sub /c/link; mv -T /c/dir /c/sub; done"
    )
    mount = f"RUN {cache} --mount=type=tmpfs,target=/c/sub/x cat /c/sub/secret /c/sub/x/* 2>/dev/null; true\n"
    folder = kanifold.folder("context")
    (folder / "Dockerfile").write_text(
        f"FROM {busybox.ref} AS a\nRUN {cache} {swap}; echo a > /a\n"
        f"FROM {busybox.ref} AS b\n" + "".join(f"ENV N={number}\n{mount}" for number in range(12)) + "RUN echo b > /b\n"
        "FROM scratch\nCOPY --from=a /a /\nCOPY --from=b /b /\n"
    )
    done = kanifold.run("build", folder, "--progress", "plain")
    assert "never seen" not in done.said
    assert {path.name for path in canary.iterdir()} == {"secret"}
    assert done.code in (0, 1)
    assert "Traceback" not in done.said
