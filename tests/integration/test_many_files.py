"""Layers of many files: what a build holds in memory does not grow with their number."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Base, Kanifold

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: RUN without a user's mappings")

FOLDER = 500
"""Files in a directory."""
GROWTH = 6 << 20
"""Bytes that some thousand more files may add; as objects, these took more than twice as much."""

RUN = """\
FROM {base}
RUN i=0; while [ $i -lt {folders} ]; do i=$((i+1)); mkdir $i; \\
      j=0; while [ $j -lt 500 ]; do j=$((j+1)); : > $i/a-name-of-usual-length-$j; done; done
"""
_PEAK = """
import os, resource, sys
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status = os.waitpid(pid, 0)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A command's peak memory, as told by a process that is small itself: a child begins with its parent's."""


def peak(kanifold: Kanifold, context: Path) -> int:
    """The peak resident bytes of the largest process of a build."""
    words = [*kanifold.command, "build", str(context), "--output", f"type=oci,dest={context.with_suffix('.tar')}"]
    done = subprocess.run(
        [sys.executable, "-S", "-c", _PEAK, *words, "--no-cache"],
        env=kanifold.environment(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def fill(place: Path, files: int) -> None:
    for number in range(files):
        folder = place / str(number // FOLDER)
        if number % FOLDER == 0:
            folder.mkdir(parents=True)
        (folder / f"a-name-of-usual-length-{number}").touch()


def test_memory_does_not_grow_with_the_number_of_files(kanifold: Kanifold, busybox: Base, tmp_path: Path) -> None:
    fill(tmp_path / "context/few", 5000)
    fill(tmp_path / "context/more", 6000)
    filled = time.time()

    def built(dockerfile: str) -> int:
        (tmp_path / "context/Dockerfile").write_text(dockerfile)
        return peak(kanifold, tmp_path / "context")

    def run(files: int) -> int:
        return built(RUN.format(base=busybox.ref, folders=files // FOLDER))

    assert run(7000) - run(1000) < GROWTH
    while time.time() < filled + 2.5:  # what was changed in the last two seconds is taken for being written
        time.sleep(0.1)
    assert built("FROM scratch\nCOPY . /\n") - built("FROM scratch\nCOPY few /\n") < GROWTH
