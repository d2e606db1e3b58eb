"""Attack 81 (review): where a step has its container's /proc, the process that records owners acts for it on files of
other processes, by their links there.

The kernel keeps the step from those links (Landlock), but not the supervisor, which resolves the step's paths.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import containers
import ordinary_user
import pytest
from conftest import Base
from ordinary_user import User

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make containers")

REACH = """\
FROM {base}
WORKDIR /place
RUN exec >/log 2>&1; \\
    for each in /proc/[0-9]*; do \\
        for link in $each/root $each/cwd $each/task/*/root ../$each/root; do \\
            ln -sfn $link way; \\
            for way in $link way; do \\
                mknod $way/box/made c 1 3; mknod $way/made c 1 3; chown 5:6 $way/box/canary; \\
            done; \\
        done; \\
        chown 5:6 $each/exe $each/fd/*; \\
    done; \\
    ls -d /proc/[0-9]* | wc -l
RUN mkdir own && touch own/file && ln -s /place/own link && chown 5:6 /place/own/file && chown 7:8 link/../own \\
    && mknod link/device c 1 3 && chown 9:9 /dev/stdout /proc/self/fd/2 && chmod 600 /proc/self/fd/2 \\
    && stat -c %u:%g own /place/link/file >/owners
FROM scratch
COPY --from=0 /log /owners /
"""


def test_the_supervisor_follows_no_link_to_another_process(tmp_path: Path, busybox: Base) -> None:
    for each in (tmp_path, *tmp_path.parents[:2]):
        each.chmod(0o755)
    box, scratch = tmp_path / "box", tmp_path / "scratch"
    environment = containers.ENVIRONMENTS["k8s-user"]
    for each in (box, scratch, box / "context"):
        each.mkdir()
        os.chown(each, environment.user, environment.user)
    (box / "context/Dockerfile").write_text(REACH.format(base=busybox.ref))
    (box / "canary").touch()
    os.chown(box / "canary", environment.user, environment.user)
    (box / "canary").chmod(0o4755)
    found = ordinary_user.reachable(User("user", environment.user, environment.user, box), scratch)
    if found is None:
        pytest.skip(f"no Python that an ordinary user may run (this one is {sys.executable})")
    command, extra = found
    before = _entries(box)

    words = ["build", "/box/context", "--isolation", "single", "-o", "type=local,dest=/box/files", "--progress=plain"]
    try:
        done = containers.run(
            environment, [*command, *words], box, variables={"KANIFOLD_ROOT": "/box/store", **extra}, timeout=120,
            seen=[Path(sys.prefix), Path(__file__).resolve().parents[2], scratch],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except containers.UnavailableError as error:
        pytest.skip(str(error))
    assert done.returncode == 0, done.stdout
    log = (box / "files/log").read_text().splitlines()
    assert int(log[-1]) > 3, "the step saw no process of others: nothing was tried"
    assert {name: each for name, each in _entries(box).items() if name not in ("files", "store")} == before
    assert not list(box.rglob("made"))
    assert (box / "files/owners").read_text().split() == ["7:8", "5:6"]


def _entries(box: Path) -> dict[str, tuple[int, int, int, int]]:
    """Return mode, owner and time of the last change of what is in a directory."""
    found = {path.name: path.lstat() for path in box.iterdir()}
    return {name: (each.st_mode, each.st_uid, each.st_gid, each.st_ctime_ns) for name, each in found.items()}
