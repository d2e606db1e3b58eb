"""``--load``: the image in another program's store, by that program's own command."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from conftest import Kanifold, needs
from programs import program

DOCKERFILE = 'FROM scratch\nCOPY Dockerfile /f\nCMD ["/f"]\n'
BOTH = "linux/amd64,linux/arm64"


@pytest.fixture
def folder(kanifold: Kanifold) -> Path:
    made = kanifold.folder("context")
    (made / "Dockerfile").write_text(DOCKERFILE)
    return made


def only(kanifold: Kanifold, name: str, script: str) -> dict[str, str]:
    """The environment of a machine with one program that takes images: ``name``."""
    for other in ("docker", "podman", "nerdctl", "ctr"):
        program(kanifold.home / "bin", other, "exit 1")
    program(kanifold.home / "bin", name, script)
    return {"PATH": f"{kanifold.home / 'bin'}:{os.environ['PATH']}"}


def docker(kanifold: Kanifold, status: str = "[]", then: str = "") -> str:
    return (
        f"case $1 in info) echo '{status}';; "
        f'load) shift; echo "$@" > {kanifold.home}/arguments; cat > {kanifold.home}/taken.tar; {then};; esac'
    )


def test_docker_reads_an_archive_on_stdin(kanifold: Kanifold, folder: Path) -> None:
    done = kanifold("build", folder, "--load", "-t", "app:1", **only(kanifold, "docker", docker(kanifold, then=":")))
    assert "docker" in done.err
    with tarfile.open(kanifold.home / "taken.tar") as archive:
        listing = archive.extractfile("manifest.json")
        assert listing is not None
        (entry,) = json.load(listing)
    assert entry["RepoTags"] == ["docker.io/library/app:1"]
    assert done.out.startswith("sha256:")


@pytest.mark.parametrize("spelling", [("--load",), ("-o", "type=docker"), ("--load-to", "docker")])
def test_the_ways_to_say_it(kanifold: Kanifold, folder: Path, spelling: tuple[str, ...]) -> None:
    kanifold("build", folder, *spelling, **only(kanifold, "docker", docker(kanifold, then=":")))
    assert (kanifold.home / "taken.tar").stat().st_size > 1000
    assert not (kanifold.home / "oci-layout").exists()


def test_the_environment_chooses_and_does_not_load(kanifold: Kanifold, folder: Path) -> None:
    both = only(kanifold, "docker", docker(kanifold, then=":"))
    program(kanifold.home / "bin", "podman", f"cat > {kanifold.home}/podman.tar")
    kanifold("build", folder, "-o", "type=cacheonly", KANIFOLD_LOAD="podman", **both)
    assert not (kanifold.home / "podman.tar").exists()
    kanifold("build", folder, "--load", KANIFOLD_LOAD="podman", **both)
    assert (kanifold.home / "podman.tar").stat().st_size > 1000
    assert not (kanifold.home / "taken.tar").exists()


def test_what_the_program_says_when_it_fails(kanifold: Kanifold, folder: Path) -> None:
    broken = docker(kanifold, then="echo no space left >&2; exit 7")
    done = kanifold.run("build", folder, "--load", **only(kanifold, "docker", broken))
    assert done.code == 1
    assert "docker did not take the image" in done.err
    assert "no space left" in done.err


def test_a_program_that_does_not_read_is_an_error_of_its_own(kanifold: Kanifold, folder: Path) -> None:
    (folder / "large").write_bytes(os.urandom(4 << 20))
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY large /\n")
    script = "case $1 in info) echo '[]';; load) exec <&-; echo will not >&2; exit 1;; esac"
    done = kanifold.run("build", folder, "--load", **only(kanifold, "docker", script))
    assert (done.code, "will not" in done.err) == (1, True)


def test_nobody_to_take_it_is_known_before_anything_is_built(kanifold: Kanifold, folder: Path) -> None:
    done = kanifold.run("build", folder, "--load", **only(kanifold, "docker", "exit 1"))
    assert done.code == 3
    assert "no program to --load" in done.err
    assert "COPY" not in done.err


def test_several_platforms_for_who_takes_them(kanifold: Kanifold, folder: Path) -> None:
    plain = only(kanifold, "docker", docker(kanifold, then=":"))
    done = kanifold.run("build", folder, "--load", "--platform", BOTH, **plain)
    assert done.code == 2
    assert "docker takes an image for one platform" in done.err
    status = '[["driver-type","io.containerd.snapshotter.v1"]]'
    kanifold(
        "build", folder, "--load", "--platform", BOTH, **only(kanifold, "docker", docker(kanifold, status, then=":"))
    )
    with tarfile.open(kanifold.home / "taken.tar") as archive:
        listing = archive.extractfile("index.json")
        assert listing is not None
        (root,) = json.load(listing)["manifests"]
    assert root["mediaType"] == "application/vnd.oci.image.index.v1+json"


def test_podman_has_what_was_loaded(kanifold: Kanifold, folder: Path, tmp_path: Path) -> None:
    needs("podman")
    settings = tmp_path / "storage.conf"
    settings.write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/run"\n'
        f'rootless_storage_path = "{tmp_path}/graph"\n'
    )
    own = {"CONTAINERS_STORAGE_CONF": str(settings)}
    for flags in ((), ("--compression", "zstd")):
        kanifold("build", folder, "--load-to", "podman", "-t", "app:1", *flags, **own)
        command = ["podman", "image", "inspect", "docker.io/library/app:1", "--format", "{{json .Config.Cmd}}"]
        done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == ["/f"]
