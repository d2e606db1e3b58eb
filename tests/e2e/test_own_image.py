"""kanifold's own image (``ci/image``): it is reproducible, and builds in containers, as root and as another user."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import containers
import git_server
import pytest
from conftest import needs
from containers import ENVIRONMENTS
from oci_layout import Seen, image_manifests, read_image
from running import run_image, unpack

if TYPE_CHECKING:
    from conftest import Base, Kanifold

pytestmark = [pytest.mark.slow, pytest.mark.root]

ROOT = Path(__file__).resolve().parents[2]
OWN = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}.get(platform.machine(), "")
VOLUME = "/var/lib/kanifold"
EPOCH = "1700000000"
NEWUIDMAP, NEWGIDMAP = b"\1\0\0\2\x80" + bytes(15), b"\1\0\0\2\x40" + bytes(15)
"""security.capability with CAP_SETUID, and with CAP_SETGID, effective (linux/capability.h, revision 2)."""
WITHOUT_PRIVILEGES = ("docker-user", "k8s-restricted")
WHERE = {**ENVIRONMENTS, "openshift": replace(ENVIRONMENTS["k8s-user"], name="openshift", user=1000660000)}
"""The containers that are tried; OpenShift's have a user that the image does not know."""


def _made(place: Path) -> Path:
    done = subprocess.run(
        [ROOT / "ci/image", place / "images", OWN],
        env={**os.environ, "KANIFOLD_ROOT": str(place / "store"), "KANIFOLD_VENV": sys.prefix},
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "images"


@dataclass(frozen=True)
class Images:
    """Both images, as layouts, and their files on this machine."""

    layouts: Path
    kanifold: Path
    debug: Path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    needs("mmdebstrap", "skopeo", "umoci", "runc")
    if not OWN:
        pytest.skip(f"images are made on x86-64 and arm64, this is {platform.machine()}")
    if os.geteuid() != 0:
        pytest.skip("needs root")
    place = tmp_path_factory.mktemp("images")
    layouts = _made(place)
    place.chmod(0o755)
    roots = {name: unpack(layouts / name, OWN, place) / "rootfs" for name in ("kanifold", "debug")}
    for each in (place, *(parent for root in roots.values() for parent in (root.parent, root.parent.parent))):
        each.chmod(0o755)
    return Images(layouts, roots["kanifold"], roots["debug"])


@pytest.fixture
def seen(images: Images) -> Seen:
    return read_image(images.layouts / "kanifold", OWN)


def test_the_same_packages_and_commit_give_the_same_digests(images: Images, tmp_path: Path) -> None:
    again = _made(tmp_path)
    for name in ("kanifold", "debug"):
        assert image_manifests(again / name) == image_manifests(images.layouts / name)


def test_helpers_have_file_capabilities_and_no_program_a_set_user_id_bit(seen: Seen) -> None:
    capabilities = {
        path: dict(entry.xattrs)["security.capability"]
        for path, entry in seen.tree.items()
        if "security.capability" in dict(entry.xattrs)
    }
    assert {path: value.encode("utf-8", "surrogateescape") for path, value in capabilities.items()} == {
        "usr/bin/newuidmap": NEWUIDMAP,
        "usr/bin/newgidmap": NEWGIDMAP,
    }
    assert [path for path, entry in seen.tree.items() if entry.kind == "file" and entry.mode & 0o6000] == []


def test_users_home_directories_and_the_store_are_prepared(seen: Seen) -> None:
    assert seen.config["config"]["Entrypoint"] == ["kanifold"]
    assert list(seen.config["config"]["Volumes"]) == [VOLUME]
    assert seen.tree[VOLUME.lstrip("/")].mode == 0o1777
    assert (seen.tree["home/kanifold"].uid, seen.tree["home/kanifold"].gid) == (1000, 1000)
    assert seen.tree["root"].mode == 0o700
    assert seen.text("/etc/subuid") == seen.text("/etc/subgid") == "kanifold:1:999\nkanifold:1001:64535\n"


def test_a_shell_is_in_the_debug_image_alone(images: Images, seen: Seen, tmp_path: Path) -> None:
    assert not {"bin/sh", "usr/bin/sh", "usr/bin/busybox", "usr/bin/dpkg"} & set(seen.tree)
    said = run_image(images.layouts / "debug", OWN, "sh", "-c", "ssh -V 2>&1 && jq -n 6*7", scratch=tmp_path)
    assert said.startswith("OpenSSH") and said.endswith("42\n")


def test_the_entry_point_is_the_command(images: Images, tmp_path: Path) -> None:
    said = run_image(images.layouts / "kanifold", OWN, "kanifold", "--version", scratch=tmp_path)
    assert said.startswith("kanifold, version ")


@pytest.mark.parametrize(
    "environment",
    [
        *("k8s-root", "k8s-user", "openshift", "podman-root", "podman-user", "k8s-userns-sys-admin"),
        *("docker-sys-admin", "docker-root", "docker-user", "k8s-restricted"),
    ],
)
def test_two_platforms_are_built_in_a_container(
    environment: str, images: Images, seen: Seen, busybox: Base, kanifold: Kanifold, tmp_path: Path
) -> None:
    platforms = "linux/amd64,linux/arm64"
    words = ["build", str(ROOT / "examples/hello"), "--platform", platforms, "--progress", "plain",
             "--build-context", f"busybox=oci-layout://{busybox.layout}"]  # fmt: skip
    here = kanifold.home / "out"
    kanifold(*words, "-o", f"type=oci,dest={here}", SOURCE_DATE_EPOCH=EPOCH)
    done = _contained(environment, images.kanifold, seen, tmp_path, [*words, "-o", f"type=oci,dest={VOLUME}/out"],
                      (ROOT / "examples", busybox.layout))  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert image_manifests(tmp_path / "volume/out") == image_manifests(here)
    assert {"qemu-aarch64", "qemu-x86_64"} & set(done.stdout.split()), "nothing was emulated by the image's own qemu"


@pytest.mark.parametrize(
    "environment",
    ["docker-root", *(pytest.param(each, marks=pytest.mark.slow) for each in ("k8s-user", *WITHOUT_PRIVILEGES))],
)
def test_packages_are_installed_for_two_platforms_in_a_container(
    environment: str, images: Images, seen: Seen, debian: Base, tmp_path: Path
) -> None:
    """Of which one is emulated, and no handler is registered in the container."""
    context = tmp_path / "context"
    context.mkdir()
    install = "apt-get -q update && apt-get -qy --no-install-recommends install cron && getent group crontab >/group"
    (context / "Dockerfile").write_text(f"FROM debian\nRUN {install}\n")
    words = ["build", str(context), "--platform", "linux/amd64,linux/arm64", "--progress", "plain"]
    words += ["--build-context", f"debian=oci-layout://{debian.layout}", "-o", f"type=oci,dest={VOLUME}/out"]
    done = _contained(environment, images.kanifold, seen, tmp_path, words, (context, debian.layout))
    assert done.returncode == 0, done.stdout
    for each in ("linux/amd64", "linux/arm64"):
        built = read_image(tmp_path / "volume/out", each)
        assert built.tree["usr/bin/crontab"].mode & 0o2000
        assert built.text("/group").startswith("crontab:")


def test_a_git_repository_is_a_context_without_a_shell(images: Images, seen: Seen, tmp_path: Path) -> None:
    repository = git_server.Repository.make(tmp_path / "git/app.git")
    repository.commit({"Dockerfile": "FROM scratch\nCOPY file /\n", "file": "content"})
    with git_server.serving(tmp_path / "git") as served:
        words = ["build", f"http://{served.host}/app.git", "-o", f"type=oci,dest={VOLUME}/out"]
        done = _contained("k8s-root", images.kanifold, seen, tmp_path, words)
    assert done.returncode == 0, done.stdout
    assert read_image(tmp_path / "volume/out", OWN).text("/file") == "content"


@pytest.mark.parametrize("environment", ["docker-root", "docker-user", "k8s-restricted", "k8s-userns"])
def test_what_runs_no_step_is_built_in_every_container(
    environment: str, images: Images, seen: Seen, busybox: Base, kanifold: Kanifold, tmp_path: Path
) -> None:
    context = tmp_path / "volume/context"
    context.mkdir(parents=True)
    (context / "Dockerfile").write_text("FROM base\nCOPY --chown=7:8 Dockerfile /there/\nENV A=b\nUSER 7\n")
    shutil.copytree(busybox.layout, tmp_path / "volume/base")
    words = ["--platform", "linux/amd64,linux/arm64", "--progress", "plain"]
    here = kanifold.home / "out"
    kanifold(
        "build", context, *words, "--build-context", f"base=oci-layout://{busybox.layout}",
        "-o", f"type=oci,dest={here}", SOURCE_DATE_EPOCH=EPOCH,
    )  # fmt: skip
    there = ["build", f"{VOLUME}/context", *words, "--build-context", f"base=oci-layout://{VOLUME}/base"]
    done = _contained(environment, images.kanifold, seen, tmp_path, [*there, "-o", f"type=oci,dest={VOLUME}/out"])
    assert done.returncode == 0, done.stdout
    assert image_manifests(tmp_path / "volume/out") == image_manifests(here)


def _contained(
    environment: str, root: Path, seen: Seen, scratch: Path, words: list[str], shown: tuple[Path, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the image's entry point in a container."""
    volume = scratch / "volume"
    volume.mkdir(exist_ok=True)
    variables: Mapping[str, str] = dict(each.split("=", 1) for each in seen.config["config"]["Env"])
    try:
        return containers.run(
            WHERE[environment], ["kanifold", *words], volume, root=containers.Root(root, VOLUME),
            variables={**variables, "SOURCE_DATE_EPOCH": EPOCH}, seen=shown, timeout=500,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except containers.UnavailableError as error:
        pytest.skip(str(error))
