"""Wound 14 (CVE-2026-55686 podman): WORKDIR through a symbolic link makes directories on the host."""

from __future__ import annotations

from pathlib import Path

import pytest
from sandbox_house import House


@pytest.mark.parametrize("climb", ["", "/../../../../.."])
def test_working_directory_and_mount_target_stay_inside(either_house: House, tmp_path: Path, climb: str) -> None:
    from executor.sandbox import Tmpfs

    canary = tmp_path / "canary"
    canary.mkdir()
    canary.chmod(0o777)
    layer = either_house.plant({"w": ("->", f"{climb}{canary}")})
    done = either_house.run(
        "touch here; pwd -P", cwd="/w/x/y", layers=(layer, either_house.busybox), mounts=(Tmpfs("/w/m"),)
    )
    assert done.out == f"{canary}/x/y\n"
    assert list(canary.iterdir()) == []
    assert done.diff[f"{str(canary)[1:]}/x/y/here"] == "f 644"
    assert f"{str(canary)[1:]}/m" not in done.diff
