"""Dates of what a Dockerfile itself makes: always the same, and such that archives of the ZIP format can hold them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import Base, Kanifold, Reader

Context = Callable[[Mapping[str, str | bytes]], Path]

MOMENT = 946_684_800
"""2000-01-01T00:00:00Z, as docs/dockerfile.md says."""

DOCKERFILE = """
FROM {base}
WORKDIR /app/src
COPY <<__main__.py <<data /app/
print("from a zip")
__main__.py
data
ADD <<added.txt /app/made/on/the/way/
added.txt
COPY --parents file /app/
COPY file /deep/er/
RUN true
"""


def built(kanifold: Kanifold, folder: Path, out: Path, *, base: str = "scratch", epoch: str = "") -> Path:
    dockerfile = DOCKERFILE.format(base=base)
    (folder / "Dockerfile").write_text(dockerfile if base != "scratch" else dockerfile.replace("RUN true\n", ""))
    os.utime(folder / "file", (1_600_000_000, 1_600_000_000))
    more = {"SOURCE_DATE_EPOCH": epoch} if epoch else {}
    kanifold("build", folder, "-o", f"type=oci,tar=false,dest={out}", "--platform", "linux/amd64", **more)
    return out


MADE = (
    "app", "app/src", "app/__main__.py", "app/data", "app/made", "app/made/on/the/way", "app/made/on/the/way/added.txt",
    "deep", "deep/er",
)  # fmt: skip


@pytest.mark.parametrize(("epoch", "moment"), [("", MOMENT), ("1500000000", 1_500_000_000), ("7", 7)])
def test_what_a_dockerfile_makes_is_of_one_moment(
    kanifold: Kanifold, context: Context, read: Reader, tmp_path: Path, epoch: str, moment: int
) -> None:
    tree = read(built(kanifold, context({"file": "x"}), tmp_path / "out", epoch=epoch)).tree
    assert {name: tree[name].mtime for name in MADE} == dict.fromkeys(MADE, moment)
    assert tree["app/file"].mtime == min(moment, 1_600_000_000) if epoch else 1_600_000_000


def test_mount_points_that_a_base_lacks_are_of_the_same_moment(
    kanifold: Kanifold, context: Context, read: Reader, tmp_path: Path, busybox: Base
) -> None:
    tree = read(built(kanifold, context({"file": "x"}), tmp_path / "out", base=busybox.ref)).tree
    assert {name for name, entry in tree.items() if entry.mtime == 0} == set()


@pytest.mark.parametrize("zone", ["UTC", "Etc/GMT+12", "Etc/GMT-14"])
def test_a_zip_holds_them_in_every_time_zone(kanifold: Kanifold, context: Context, tmp_path: Path, zone: str) -> None:
    folder = context({"file": "x", "Dockerfile": DOCKERFILE.format(base="scratch").replace("RUN true\n", "")})
    kanifold("build", folder, "-o", tmp_path / "out", "--platform", "linux/amd64")
    archive = tmp_path / "app.pyz"
    pack = [sys.executable, "-m", "zipapp", tmp_path / "out/app", "-o", archive]
    subprocess.run(pack, check=True, env=os.environ | {"TZ": zone})
    assert subprocess.run([sys.executable, archive], check=True, capture_output=True).stdout == b"from a zip\n"
