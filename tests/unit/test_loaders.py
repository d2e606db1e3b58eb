"""Which program ``--load`` hands an image to: the one that is here and answers, or the one that is chosen."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import program

from orchestrator import load
from platforms.errors import EnvironmentUnfit, UsageError
from platforms.parsing import parse

DOCKER = "case $1 in --version) echo \"Docker version 28.2\";; info) echo '{}';; *) exit 9;; esac"
CONTAINERD_DOCKER = DOCKER.replace("{}", '[["driver-type","io.containerd.snapshotter.v1"]]')
PODMAN = "echo podman version 4.3.1"
DEAD = 'echo "Cannot connect to the daemon" >&2; exit 1'
FINE = "exit 0"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH but for a shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.mark.parametrize(
    ("programs", "chosen", "found", "several"),
    [
        ({"docker": DOCKER}, "", "docker", False),
        ({"docker": CONTAINERD_DOCKER}, "", "docker", True),
        ({"podman": PODMAN}, "", "podman", False),
        ({"nerdctl": FINE}, "", "nerdctl", True),
        ({"ctr": FINE}, "", "ctr", True),
        ({"ctr": FINE, "nerdctl": FINE}, "", "nerdctl", True),
        ({"docker": DEAD, "podman": PODMAN}, "", "podman", False),
        ({"docker": PODMAN, "podman": PODMAN}, "", "podman", False),
        ({"docker": DOCKER, "podman": PODMAN}, "podman", "podman", False),
        ({"ctr": FINE, "nerdctl": FINE}, "ctr", "ctr", True),
    ],
)
def test_who_takes_the_image(here: Path, programs: dict[str, str], chosen: str, found: str, several: bool) -> None:
    for name, script in programs.items():
        program(here, name, script)
    loader = load.find(chosen)
    assert (loader.name, loader.several) == (found, several)


def test_without_any_the_error_says_why_of_each(here: Path) -> None:
    program(here, "docker", DEAD)
    with pytest.raises(EnvironmentUnfit) as caught:
        load.find()
    assert "docker: Cannot connect to the daemon" in caught.value.problem.why
    assert "podman: not installed" in caught.value.problem.why


def test_several_have_to_be_chosen_from(here: Path) -> None:
    program(here, "docker", DOCKER)
    program(here, "podman", PODMAN)
    with pytest.raises(UsageError, match="docker and podman can take the image") as caught:
        load.find()
    assert "--load-to docker" in caught.value.problem.remedy


def test_what_is_chosen_has_to_be_there(here: Path) -> None:
    program(here, "podman", PODMAN)
    with pytest.raises(EnvironmentUnfit, match="nerdctl"):
        load.find("nerdctl")
    with pytest.raises(UsageError, match="buildah"):
        load.find("buildah")


def test_who_takes_one_platform_is_given_no_more() -> None:
    both = (parse("linux/amd64"), parse("linux/arm64"))
    load.check(load.Loader("podman", (), several=False), both[:1], named=False)
    load.check(load.Loader("ctr", (), several=True), both, named=True)
    with pytest.raises(UsageError, match="podman takes an image for one platform"):
        load.check(load.Loader("podman", (), several=False), both, named=True)


@pytest.mark.parametrize(("name", "lost"), [("ctr", True), ("nerdctl", False), ("podman", False)])
def test_who_keeps_no_image_without_a_name_is_given_none(here: Path, name: str, lost: bool) -> None:
    program(here, name, FINE)
    loader = load.find()
    load.check(loader, (), named=True)
    if not lost:
        load.check(loader, (), named=False)
        return
    with pytest.raises(UsageError, match=f"{name} keeps no image without a name"):
        load.check(loader, (), named=False)
