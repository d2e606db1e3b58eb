"""``type=local`` and ``type=tar``: the files of an image instead of the image."""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Base, Kanifold

Context = Callable[[Mapping[str, str | bytes]], Path]
RECIPE = """\
FROM {base}
ARG TARGETPLATFORM
RUN mkdir /own && echo "$TARGETPLATFORM" > /own/platform && chown 1000:1001 /own/platform && chmod 4751 /own/platform \\
 && ln /own/platform /own/hard && ln -s platform /own/link && mkfifo /own/pipe && touch -d @1234567890 /own/old
RUN rm /etc/hostname
"""


@pytest.fixture
def folder(busybox: Base, context: Context) -> Path:
    return context({"Dockerfile": RECIPE.format(base=busybox.ref)})


PLATFORMS = ("--platform", "linux/amd64,linux/arm64")


def check_files(own: Path, platform: str, uid: int) -> None:
    status = (own / "platform").stat()
    assert (own / "platform").read_text() == f"{platform}\n"
    assert stat.S_IMODE(status.st_mode) == 0o751, "what is whose build it is does not run as its owner"
    assert status.st_uid == uid, "files are whose build it is, as with buildx"
    assert (own / "hard").stat().st_ino == status.st_ino
    assert os.readlink(own / "link") == "platform"
    assert stat.S_ISFIFO((own / "pipe").stat().st_mode)
    assert (own / "old").stat().st_mtime == 1234567890
    assert not (own.parent / "etc" / "hostname").exists(), "what a later layer deletes is not there"


def test_several_platforms_have_a_directory_each(kanifold: Kanifold, folder: Path) -> None:
    kanifold("build", folder, *PLATFORMS, "-o", "type=local,dest=out")
    for platform in ("linux/amd64", "linux/arm64"):
        check_files(kanifold.home / "out" / platform.replace("/", "_") / "own", platform, os.geteuid())


@pytest.mark.parametrize("who", ["kanifold_as_user", "kanifold_as_bare_user"])
def test_ordinary_users_get_files_of_their_own(who: str, folder: Path, request: pytest.FixtureRequest) -> None:
    kanifold: Kanifold = request.getfixturevalue(who)
    # chown needs another id than one's own.
    if who == "kanifold_as_bare_user":
        text = (folder / "Dockerfile").read_text()
        (folder / "Dockerfile").write_text(text.replace("chown 1000:1001", "chown 0:0"))
    kanifold("build", folder, *PLATFORMS, "-o", "out")
    check_files(kanifold.home / "out" / "linux_arm64" / "own", "linux/arm64", kanifold.user.uid)


def test_files_have_the_permissions_of_the_image_even_if_they_lock_the_user_out(
    kanifold_as_bare_user: Kanifold, context: Context
) -> None:
    recipe = "FROM scratch\nCOPY --chmod=444 file /read\nCOPY --chmod=0 file /none\nCOPY --chmod=555 sub /sub\n"
    folder = context({"Dockerfile": recipe, "file": "text", "sub/file": "text"})
    kanifold_as_bare_user("build", folder, "-o", "type=local,dest=out")
    out = kanifold_as_bare_user.home / "out"
    found = {name: oct(stat.S_IMODE((out / name).stat().st_mode)) for name in ("read", "none", "sub", "sub/file")}
    assert found == {"read": "0o444", "none": "0o0", "sub": "0o555", "sub/file": "0o555"}


def test_one_platform_goes_into_the_directory_itself(kanifold: Kanifold, folder: Path) -> None:
    there = kanifold.folder("out")
    (there / "mine").write_text("stays")
    (there / "own").write_text("is in the way")
    kanifold("build", folder, "-o", "out")
    check_files(there / "own", "linux/amd64", os.geteuid())
    assert (there / "mine").read_text() == "stays"
    kanifold("build", folder, "-o", "type=local,dest=split,platform-split=true")
    assert (kanifold.home / "split" / "linux_amd64" / "own").is_dir()


def test_merged_platforms_may_not_overwrite_each_other(kanifold: Kanifold, context: Context) -> None:
    merged = ("-o", "type=local,dest=out,platform-split=false")
    apart = context({"Dockerfile": "FROM scratch\nARG TARGETARCH\nCOPY f /$TARGETARCH/f\n", "f": ""})
    kanifold("build", apart, *PLATFORMS, *merged)
    assert sorted(os.listdir(kanifold.home / "out")) == ["amd64", "arm64"]
    same = context({"Dockerfile": "FROM scratch\nCOPY f g /\n", "f": "", "g": ""})
    there = kanifold.folder("there")
    (there / "g").write_text("mine")
    for dest in ("there", "new"):
        outcome = kanifold.run("build", same, *PLATFORMS, "-o", f"type=local,dest={dest},platform-split=false")
        assert outcome.code == 1
        assert "cannot overwrite f from linux/amd64 with linux/arm64" in outcome.err
    assert not (kanifold.home / "new").exists()
    assert [(path.name, path.read_text()) for path in there.iterdir()] == [("g", "mine")]


def test_an_archive_has_owners_and_links(kanifold: Kanifold, folder: Path) -> None:
    kanifold("build", folder, *PLATFORMS, "-o", "type=tar,dest=out.tar")
    with tarfile.open(kanifold.home / "out.tar") as archive:
        found = {each.name: each for each in archive}
    hard = found["linux_arm64/own/hard"]
    assert (hard.uid, hard.gid, hard.mode) == (1000, 1001, 0o4751)
    assert found["linux_arm64/own/platform"].linkname == "linux_arm64/own/hard"
    assert found["linux_amd64/own/link"].linkname == "platform"
    assert "linux_amd64/etc/hostname" not in found


def test_an_archive_on_stdout_is_all_that_is_there(kanifold: Kanifold, folder: Path) -> None:
    archive = subprocess.run(
        [*kanifold.command, "build", folder, "-o", "-"], env=kanifold.environment(), capture_output=True, check=True
    ).stdout
    listed = subprocess.run(["tar", "-t"], input=archive, capture_output=True, check=True).stdout.decode().splitlines()
    assert "own/platform" in listed
    assert archive.endswith(bytes(1024))


def test_places_that_cannot_be_written_are_refused_before_the_build(kanifold: Kanifold, context: Context) -> None:
    folder = context({"Dockerfile": "FROM scratch\n"})
    (kanifold.home / "file").write_text("")
    for spec in ("type=local,dest=file", "type=tar,dest=.", "type=local,dest=-", "type=docker,dest=."):
        outcome = kanifold.run("build", folder, "-o", spec)
        assert outcome.code == 2, spec
        assert "building" not in outcome.err
    assert kanifold.run("build", folder, "-o", "-", "-o", "type=docker,dest=-").code == 2


def test_what_nothing_here_could_run_is_built_as_long_as_nothing_has_to(
    kanifold: Kanifold, busybox: Base, context: Context
) -> None:
    made = f"FROM --platform=$BUILDPLATFORM {busybox.ref} AS made\nARG TARGETPLATFORM\nRUN echo $TARGETPLATFORM > /f\n"
    folder = context({"Dockerfile": f"{made}FROM scratch\nCOPY --from=made /f /f\nWORKDIR /d\n"})
    platforms = ("darwin/arm64", "wasi/wasm", "linux/s390")
    kanifold("build", folder, "--platform", ",".join(platforms), "-o", "out")
    for each in platforms:
        assert (kanifold.home / "out" / each.replace("/", "_") / "f").read_text() == f"{each}\n"


def test_deleting_what_was_there(kanifold: Kanifold, context: Context) -> None:
    folder = context({"Dockerfile": "FROM scratch\nCOPY f /d/f\n", "f": "new"})
    out = kanifold.home / "out"
    (out / "d").mkdir(parents=True)
    for path in (out / "old", out / "d" / "old"):
        path.write_text("")
    (out / "link").symlink_to(kanifold.home)
    kanifold("build", folder, "-o", "type=local,dest=out")
    assert (out / "old").exists()
    kanifold("build", folder, "-o", "type=local,dest=out,mode=delete")
    assert sorted(str(each.relative_to(out)) for each in out.rglob("*")) == ["d", "d/f"]
    assert (kanifold.home / "out" / "d" / "f").read_text() == "new"
    assert kanifold.run("build", folder, "-o", f"type=local,dest={folder},mode=delete").code == 2
    assert (folder / "f").exists()


def test_nothing_is_deleted_for_a_build_that_fails(kanifold: Kanifold, context: Context) -> None:
    folder = context({"Dockerfile": "FROM scratch\nCOPY missing /\n"})
    (kanifold.home / "out").mkdir()
    (kanifold.home / "out" / "old").write_text("")
    assert kanifold.run("build", folder, "-o", "type=local,dest=out,mode=delete").code == 1
    assert [each.name for each in (kanifold.home / "out").iterdir()] == ["old"]
