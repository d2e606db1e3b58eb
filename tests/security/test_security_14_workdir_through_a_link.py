"""Attack 14 (CVE-2026-55686 podman): WORKDIR through a symbolic link makes directories on the host."""

from __future__ import annotations

from pathlib import Path

import pytest
from sandbox_process import SandboxProcess


@pytest.mark.parametrize("climb", ["", "/../../../../.."])
def test_working_directory_and_mount_target_stay_inside(
    either_sandbox: SandboxProcess, tmp_path: Path, climb: str
) -> None:
    from executor.sandbox import Tmpfs

    canary = tmp_path / "canary"
    canary.mkdir()
    canary.chmod(0o777)
    layer = either_sandbox.plant({"w": ("->", f"{climb}{canary}")})
    done = either_sandbox.run(
        "touch here; pwd -P", cwd="/w/x/y", layers=(layer, either_sandbox.busybox), mounts=(Tmpfs("/w/m"),)
    )
    assert done.out == f"{canary}/x/y\n"
    assert list(canary.iterdir()) == []
    assert done.diff[f"{str(canary)[1:]}/x/y/here"] == "f 644"
    assert f"{str(canary)[1:]}/m" not in done.diff


def test_what_others_mount_meanwhile_does_not_matter(either_sandbox: SandboxProcess) -> None:
    """The kernel does not follow ``..`` while anything is mounted or renamed anywhere, and says to try again."""
    layer = either_sandbox.plant({"w": ("->", "/../../../tmp")})
    specs = [either_sandbox.spec("pwd -P", cwd="/w/x", layers=(layer, either_sandbox.busybox)) for _ in range(100)]
    assert {(done.out, done.ended.error) for done in either_sandbox.run_all(specs)} == {("/tmp/x\n", "")}
