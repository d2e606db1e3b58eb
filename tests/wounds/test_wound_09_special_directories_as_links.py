"""Wound 9 (CVE-2026-41579 runc): an image's /dev is a symbolic link, and the runtime deletes on the host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sandbox_house import House, listing


@pytest.mark.parametrize("climb", ["", "/../../../../..", "../../../../../.."])
@pytest.mark.parametrize("name", ["dev", "proc", "sys", "etc"])
def test_a_canary_behind_the_link_survives(either_house: House, tmp_path: Path, name: str, climb: str) -> None:
    canary = tmp_path / "canary"
    for made in ("null", "pts", "fd", "shm", "resolv.conf", "hosts"):
        (canary / made).mkdir(parents=True)
    (canary / "file").write_text("content")
    for each in (tmp_path, *tmp_path.parents):
        if each.stat().st_uid == os.getuid() and each != Path("/"):
            each.chmod(each.stat().st_mode | 0o055)
    canary.chmod(0o777)
    before = listing(str(canary)), canary.stat().st_mtime_ns
    layer = either_house.plant({name: ("->", f"{climb}{canary}")})
    done = either_house.run(
        f"rm -rf /{name}/* 2>/dev/null; echo x > /{name}/file; true",
        layers=(layer, either_house.busybox),
    )
    assert done.ended.code in (0, 125)
    assert (listing(str(canary)), canary.stat().st_mtime_ns) == before
    assert (canary / "file").read_text() == "content"
