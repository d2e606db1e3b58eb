"""Attack 13 (CVE-2024-23652, GHSA-32pv-7hq5-qhwq BuildKit): removing a mount point's stub removes a path of the host"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sandbox_process import SandboxProcess

from executor.sandbox import Tmpfs
from executor.sandbox.targets import unmake


@pytest.mark.parametrize("target", ["/a/b/stub", "/a/stub"])
def test_a_canary_survives_the_cleanup(either_sandbox: SandboxProcess, tmp_path: Path, target: str) -> None:
    """The step moves the mount point's parent away and puts a link to the host in its place."""
    for directory in ("b/stub", "stub"):
        (tmp_path / "canary" / directory).mkdir(parents=True)
    done = either_sandbox.run(
        f"mv /a /moved; ln -s /../../../../../..{tmp_path}/canary /a; true", mounts=(Tmpfs(target),)
    )
    assert done.ended.code == 0
    assert sorted(os.listdir(tmp_path / "canary")) == ["b", "stub"]
    assert os.listdir(tmp_path / "canary" / "b") == ["stub"]
    assert done.diff["a"].startswith("l ")


def test_what_the_step_put_in_the_stubs_place_stays(either_sandbox: SandboxProcess) -> None:
    done = either_sandbox.run("mv /a /moved; mkdir -p /a/stub; echo x > /a/stub/mine", mounts=(Tmpfs("/a/stub"),))
    assert done.diff["a/stub/mine"] == "f 644"
    done = either_sandbox.run("mv /a /moved; mkdir -p /a/stub", mounts=(Tmpfs("/a/stub"),))
    assert done.diff["a/stub"] == "d 755"  # empty like the stub, but not ours


def test_links_are_not_followed_in_any_component(tmp_path: Path) -> None:
    upper, canary = tmp_path / "upper", tmp_path / "canary"
    (canary / "stub").mkdir(parents=True)
    upper.mkdir()
    (upper / "a").symlink_to(canary)
    inode = (canary / "stub").stat().st_ino
    fd = os.open(upper, os.O_PATH)
    try:
        unmake(fd, [("a/stub", inode), ("../canary/stub", inode)], [])
    finally:
        os.close(fd)
    assert (canary / "stub").is_dir()
