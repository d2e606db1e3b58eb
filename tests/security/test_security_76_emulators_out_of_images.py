"""Attack 76: an image of emulators is hostile. What is taken out of it is one static program of this host, in a file of
the store's own name, and it runs in steps and nowhere else."""

from __future__ import annotations

import os
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from emulator_layouts import FOREIGN, MACHINE, QEMU, Entry, dynamic, file, hanging, layout, link, stopping

from executor import emulator_image
from executor.emulator_image import SIZE_LIMIT
from executor.registry.client import Client
from executor.store.emulators import KeptEmulator
from executor.store.store import open_store
from orchestrator import emulator_commands
from orchestrator.index import names
from orchestrator.index.image_sources import open_source
from platforms import elf
from platforms.errors import ArchiveError, EnvironmentUnfit, KanifoldError

if TYPE_CHECKING:
    from conftest import Base, Kanifold

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not MACHINE, reason="needs Linux on x86-64 or arm64")

PATH = f"usr/bin/{QEMU}"
GOOD = file(PATH, stopping())


def taken(place: Path, *layers: list[Entry]) -> KeptEmulator:
    """Take the emulator out of an image with ``layers``, the lowest first, into a store at ``place``."""
    name = layout(place / "image", *layers)
    image = emulator_commands._image(open_source(names.parse(name), Client()), name, lambda _event: None)
    with open_store(str(place / "store")) as store:
        return emulator_image.take(store, image, FOREIGN)


def snapshots(place: Path) -> list[str]:
    """What there is of emulators in the store: the files of all snapshots."""
    return sorted(
        str(Path(directory, name).relative_to(place / "store/snapshots"))
        for directory, _, files in os.walk(place / "store/snapshots")
        for name in files
    )


def test_a_static_program_of_this_host_is_taken_and_nothing_else(tmp_path: Path) -> None:
    others = [file("usr/bin/sh", b"#!"), file("stand-in", b"x"), file("emulator.json", b"{}")]
    kept = taken(tmp_path, [*others, GOOD])
    assert (kept.architecture, kept.file, kept.size) == (FOREIGN, QEMU, len(stopping()))
    assert [each.partition("/")[2] for each in snapshots(tmp_path)] == sorted(
        ["fs/emulator.json", "fs/stand-in", f"fs/{QEMU}"]
    )
    (program,) = (tmp_path / "store/snapshots").glob(f"*/fs/{QEMU}")
    assert program.read_bytes() == stopping()
    assert program.stat().st_mode & 0o7777 == 0o555


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (link(PATH, "/bin/sh"), "symlink"),
        (link(PATH, "../../../../../../bin/sh"), "symlink"),
        (link(PATH, "usr/bin/other", tarfile.LNKTYPE), "hard link"),
        (file(PATH, dynamic()), "no statically linked program"),
        (file(PATH, elf.program(FOREIGN)), f"a program of {FOREIGN}"),
        (file(PATH, b"#!/bin/sh\nexec /bin/sh\n"), "no program"),
        (file(PATH, b""), "no program"),
        (file(PATH, stopping()[:40]), "no statically linked program"),
    ],
)
def test_what_is_no_emulator_is_refused(tmp_path: Path, entry: Entry, why: str) -> None:
    with pytest.raises(EnvironmentUnfit) as raised:
        taken(tmp_path, [file("usr/bin/other", stopping()), entry])
    assert why in raised.value.problem.why
    assert snapshots(tmp_path) == []


def test_a_refused_file_does_not_hide_the_other_name(tmp_path: Path) -> None:
    kept = taken(tmp_path, [file(PATH, dynamic()), file(f"{PATH}-static", stopping())])
    assert (kept.file, kept.size) == (QEMU, len(stopping()))


@pytest.mark.parametrize(
    "upper",
    [
        [file(f"usr/bin/.wh.{QEMU}", b"")],
        [file("usr/bin/.wh..wh..opq", b"")],
        [file("usr/.wh.bin", b"")],
        [file(".wh.usr", b"")],
        [file("usr", b"")],
        [link("usr/bin", "/bin")],
        [link(PATH, "other")],
        [file(PATH, b"no program")],
    ],
    ids=["whiteout", "opaque", "directory", "parent", "file", "directory is a link", "link", "replaced"],
)
def test_what_an_upper_layer_hides_is_not_taken_from_a_lower_one(tmp_path: Path, upper: list[Entry]) -> None:
    with pytest.raises(EnvironmentUnfit):
        taken(tmp_path, [GOOD], upper)


def test_the_uppermost_file_counts(tmp_path: Path) -> None:
    newer = stopping() + b"newer"
    assert taken(tmp_path, [GOOD], [file(PATH, newer)], [file("etc/issue", b"")]).size == len(newer)


@pytest.mark.parametrize("path", [f"../{PATH}", f"usr/../../{PATH}", "../../../../escaped"])
def test_a_name_that_leads_out_refuses_the_layer(tmp_path: Path, path: str) -> None:
    with pytest.raises(ArchiveError):
        taken(tmp_path, [file(path, stopping())])
    assert not list(tmp_path.rglob("escaped"))
    assert snapshots(tmp_path) == []


def test_a_file_without_end_is_refused_before_it_is_read(tmp_path: Path) -> None:
    entry, _ = file(PATH, b"")
    entry.size = SIZE_LIMIT + 1

    class Endless(bytes):
        """Not in the archive: the header alone says how long the file is."""

    with pytest.raises((ArchiveError, OSError)):
        taken(tmp_path, [(entry, Endless())])


def test_an_image_of_another_host_is_refused(tmp_path: Path) -> None:
    name = layout(tmp_path / "image", [GOOD], architecture="s390x")
    with pytest.raises(KanifoldError), open_store(str(tmp_path / "store")) as store:
        image = emulator_commands._image(open_source(names.parse(name), Client()), name, lambda _event: None)
        emulator_image.take(store, image, FOREIGN)


def test_no_command_runs_the_program(kanifold: Kanifold, busybox: Base, tmp_path: Path) -> None:
    """It never ends, so neither would a command that ran it."""
    name = layout(tmp_path / "image", [file(PATH, hanging())])
    platform = f"linux/{FOREIGN}"
    kanifold("emulators", "add", FOREIGN, "--image", name)
    kanifold("emulators", "ls")
    assert QEMU in kanifold("platforms").out
    assert QEMU in kanifold("doctor").out
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM {busybox.ref} AS early\nRUN true\nFROM {busybox.ref}\nCOPY . /here\n")
    kanifold("build", context, "--platform", platform, "-o", "type=cacheonly")
    with kanifold.start("build", context, "--platform", platform, "-o", "type=cacheonly", "--target", "early") as build:
        assert build.stderr is not None
        for line in build.stderr:
            if "RUN true" in line:
                break
        build.terminate()
    assert build.returncode == 130
