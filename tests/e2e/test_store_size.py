"""The store keeps its size by itself: after each build, beside other builds, on every mode, and on a small disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Base, Kanifold
from oci_layout import read_image

Context = Callable[[Mapping[str, str | bytes]], Path]

TINY = {"KANIFOLD_RESERVED_SPACE": "0", "KANIFOLD_MAX_USED_SPACE": "1"}
MIB = 1 << 20


def held(kanifold: Kanifold, root: Path | None = None) -> list[str]:
    """What is left in the store of blobs and snapshots."""
    place = root or kanifold.root
    return [each.name for folder in ("blobs/sha256", "snapshots") for each in (place / folder).iterdir()]


@pytest.mark.parametrize("who", ["kanifold", "kanifold_as_user", "kanifold_as_bare_user"])
def test_what_is_too_much_is_removed_when_the_build_has_ended(
    who: str, request: pytest.FixtureRequest, busybox: Base
) -> None:
    kanifold: Kanifold = request.getfixturevalue(who)
    project = kanifold.folder("context")
    (project / "f").write_text("content")
    (project / "Dockerfile").write_text(
        f"FROM {busybox.ref}\nCOPY f /f\n"
        "RUN --mount=type=cache,target=/c mkdir /d && echo x > /d/x && chown -R 7:7 /d && chmod 700 /d && echo > /c/x\n"
    )
    out = kanifold.folder("out") / "layout"
    arguments = ("build", project, "-o", f"type=oci,tar=false,dest={out}")
    kanifold(*arguments)
    assert len(held(kanifold)) > 3
    kanifold(*arguments)
    assert len(held(kanifold)) > 3, "a store within its limits is left alone"
    kanifold(*arguments, **TINY)
    assert held(kanifold) == []
    assert list((kanifold.root / "cache").iterdir()) == []
    kanifold(*arguments, KANIFOLD_GC="false", **TINY)
    assert len(held(kanifold)) > 3
    image = read_image(out, "linux/amd64")
    assert (image.text("d/x"), image.tree["d"].uid) == ("x\n", 7)


def test_a_failed_build_keeps_the_size_too(kanifold: Kanifold, context: Context, busybox: Base) -> None:
    project = context({"Dockerfile": f"FROM {busybox.ref}\nRUN echo > /made\nRUN false\n"})
    assert kanifold.run("build", project, **TINY).code == 1
    assert held(kanifold) == []


def test_settings_that_make_no_sense_are_told_before_the_build(kanifold: Kanifold, context: Context) -> None:
    project = context({"Dockerfile": "FROM scratch\n"})
    outcome = kanifold.run("build", project, KANIFOLD_MAX_USED_SPACE="much")
    assert outcome.code == 2
    assert "KANIFOLD_MAX_USED_SPACE" in outcome.said


def test_builds_beside_each_other_that_all_leave_nothing_go_well(
    kanifold: Kanifold, context: Context, busybox: Base, tmp_path: Path
) -> None:
    """Each removes, as often as one ends, what it finds unused: parts of the others' bases, steps and layers."""
    steps = "".join(f"RUN echo {number} > /{number}\n" for number in range(4))

    def build(number: int) -> None:
        project = context({"Dockerfile": f"FROM {busybox.ref}\nCOPY f /f\n{steps}", "f": f"{number % 3}"})
        out = tmp_path / f"out-{number}"
        kanifold("build", project, "-o", f"type=oci,tar=false,dest={out}", **TINY)
        image = read_image(out, "linux/amd64")
        assert [image.text(name) for name in ("f", "0", "3")] == [f"{number % 3}", "0\n", "3\n"]

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(build, range(9)))
    kanifold("build", context({"Dockerfile": "FROM scratch\n"}), **TINY)
    assert held(kanifold) == []


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={96 * MIB}", "none", str(place)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_builds_go_on_forever_on_a_small_disk(kanifold: Kanifold, context: Context, small: Path) -> None:
    """Nothing is set. What ten builds make is more than the disk takes."""
    root = small / "store"
    for number in range(10):
        project = context({"Dockerfile": "FROM scratch\nCOPY f /f\n", "f": os.urandom(16 * MIB)})
        target = f"type=oci,tar=false,dest={project}-out,compression=uncompressed"
        kanifold("build", project, "-o", target, KANIFOLD_ROOT=str(root))
        assert held(kanifold, root), number


def test_a_disk_that_becomes_full_while_a_step_runs_is_given_what_nobody_uses(
    kanifold: Kanifold, context: Context, busybox: Base, small: Path
) -> None:
    root = small / "store"
    for _ in range(3):
        project = context({"Dockerfile": "FROM scratch\nCOPY f /f\n", "f": os.urandom(20 * MIB)})
        target = f"type=oci,tar=false,dest={project}-out,compression=uncompressed"
        kanifold("build", project, "-o", target, KANIFOLD_ROOT=str(root), KANIFOLD_GC="0")
    # Piece by piece, until all of it is there: the disk has room for half of that.
    piece = "head -c 1048576 /dev/zero | tr '\\\\0' x > /d/$i || { i=$((i - 1)); sleep 0.1; }"
    project = context(
        {"Dockerfile": f"FROM {busybox.ref}\nRUN mkdir /d; i=1; while [ $i -le 40 ]; do {piece}; i=$((i + 1)); done\n"}
    )
    said = kanifold("build", project, KANIFOLD_ROOT=str(root), KANIFOLD_RESERVED_SPACE="1g").said
    assert "nearly full" in said
