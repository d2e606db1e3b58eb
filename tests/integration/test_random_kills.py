"""kill -9 at random moments under parallel builds: no corrupt store, no wrong image, no stuck lock, nothing left.

Several builds share one store, with one snapshotter or the other, and two of them export a cache; one of them, or an
executor of it, is killed. The others must end well, and so must the next build, with the image that a build without
accidents makes.

KANIFOLD_KILL_ROUNDS (3) says how often, KANIFOLD_KILL_SEED (1) when and whom: ``KANIFOLD_KILL_ROUNDS=100`` is the long
form, for whoever changes the store, the locks or how processes end.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import store_check
from conftest import TEST_TIMEOUT, Base, Kanifold
from oci_layout import image_manifests
from protocol_nodes import MARK, Marked

from executor.store.store import open_store

ROUNDS = int(os.environ.get("KANIFOLD_KILL_ROUNDS", "3"))
SEED = int(os.environ.get("KANIFOLD_KILL_SEED", "1"))
DEADLINE = 60.0
"""Seconds within which a build ends unless something is stuck."""

# The mark is no part of what is made: it gives each round steps to do, and lets their processes be found.
DOCKERFILE = f"""\
FROM {{base}} AS one
ARG {MARK}
COPY d /d
RUN cat /d/* > /one; seq 1 50000 > /numbers
FROM {{base}} AS two
ARG {MARK}
RUN --mount=type=cache,target=/c,sharing=locked echo more >> /c/log; echo two > /two
RUN --mount=type=bind,target=/m,source=d cat /m/1 >> /two
FROM {{base}}
COPY --from=one /one /numbers /
COPY --from=two /two /two
RUN md5sum /one /numbers /two > /sums
"""


def test_a_kill_at_any_moment_harms_nothing(kanifold: Kanifold, busybox: Base, registry: str, tmp_path: Path) -> None:
    context = tmp_path / "context"
    (context / "d").mkdir(parents=True)
    for number in range(20):
        (context / "d" / str(number)).write_text(f"{number}\n" * 2000)
    (context / "Dockerfile").write_text(DOCKERFILE.format(base=busybox.ref))
    folder = tmp_path / "cache"
    shared = f"ref={registry}/kills:cache"
    caches = (
        ("--cache-to", f"type=local,dest={folder},mode=max", "--cache-from", f"type=local,src={folder}"),
        ("--cache-to", f"type=registry,{shared},mode=max", "--cache-from", f"type=registry,{shared}"),
        (),
    )

    def start(mark: Marked, out: Path, *arguments: str) -> subprocess.Popen[str]:
        return kanifold.start(
            "build", context, "-o", f"type=oci,tar=false,dest={out}", "--build-arg", f"{MARK}={mark.value}", *arguments,
            "--snapshotter", chance.choice(("overlay", "plain")),
            SOURCE_DATE_EPOCH="1", **mark.environment,
        )  # fmt: skip

    def built(process: subprocess.Popen[str], out: Path) -> str:
        _, said = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, said
        return str(image_manifests(out)["linux/amd64"]["digest"])

    chance = random.Random(SEED)
    began = time.monotonic()
    right = built(start(Marked(), tmp_path / "right", "--root", str(tmp_path / "other-store")), tmp_path / "right")
    usual = time.monotonic() - began

    killed = []
    for turn in range(ROUNDS):
        signal.alarm(TEST_TIMEOUT)  # a round is what may not hang
        mark, own = Marked(), tmp_path / f"turn{turn}"
        own.mkdir()
        outs = [own / str(number) for number in range(chance.choice((2, 3)))]
        builds = [start(mark, out, *cache) for out, cache in zip(outs, caches, strict=False)]
        victim = chance.choice(builds)
        time.sleep(chance.uniform(0, usual * 1.5))  # the random moment
        whom = chance.choice(("orchestrator", "executor"))
        pid = chance.choice(_children(victim.pid) or [victim.pid]) if whom == "executor" else victim.pid
        if victim.poll() is None:
            os.kill(pid, signal.SIGKILL)
            killed.append(whom)
        for process, out in zip(builds, outs, strict=True):
            if process is victim:
                process.communicate(timeout=DEADLINE)
                assert process.returncode in (0, 1, -signal.SIGKILL)
            else:
                assert built(process, out) == right
        assert mark.wait_until_gone(5) == [], "a process is left"
        _check_locks(kanifold.root)
        assert built(start(mark, own / "after"), own / "after") == right
        assert mark.wait_until_gone(5) == []
        assert str(kanifold.root) not in Path("/proc/self/mountinfo").read_text()
        kanifold("du")
    if ROUNDS > 20:
        assert len(killed) > ROUNDS / 3, "most builds had ended before their moment came: this tests little"
    _check_blobs(kanifold.root / "blobs")
    _check_blobs(folder / "blobs")
    with open_store(str(kanifold.root)) as store:
        assert store_check.verify(store) == ()


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _check_locks(root: Path) -> None:
    """Nobody holds a lock now that nobody is there."""
    for path in (root / "locks").iterdir():
        with path.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pytest.fail(f"the lock {path.name} is stuck")


def _check_blobs(folder: Path) -> None:
    """Every file that is named for a digest has it."""
    found: Sequence[Path] = [each for each in folder.rglob("*") if each.is_file() and len(each.name) == 64]
    assert found
    for path in found:
        with path.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == path.name
