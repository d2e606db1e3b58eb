"""Attack 9 (CVE-2026-41579 runc): an image's /dev is a symbolic link, and the runtime deletes on the host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sandbox_process import SandboxProcess, listing


@pytest.mark.parametrize("climb", ["", "/../../../../..", "../../../../../.."])
@pytest.mark.parametrize("name", ["dev", "proc", "sys", "etc"])
def test_a_canary_behind_the_link_survives(
    either_sandbox: SandboxProcess, tmp_path: Path, name: str, climb: str
) -> None:
    canary = tmp_path / "canary"
    for made in ("null", "pts", "fd", "shm", "resolv.conf", "hosts"):
        (canary / made).mkdir(parents=True)
    (canary / "file").write_text("content")
    for each in (tmp_path, *tmp_path.parents):
        if each.stat().st_uid == os.getuid() and each != Path("/"):
            each.chmod(each.stat().st_mode | 0o055)
    canary.chmod(0o777)
    before = listing(str(canary)), canary.stat().st_mtime_ns
    layer = either_sandbox.plant({name: ("->", f"{climb}{canary}")})
    done = either_sandbox.run(
        f"rm -rf /{name}/* 2>/dev/null; echo x > /{name}/file; true",
        layers=(layer, either_sandbox.busybox),
    )
    assert done.ended.code in (0, 125)
    assert (listing(str(canary)), canary.stat().st_mtime_ns) == before
    assert (canary / "file").read_text() == "content"
