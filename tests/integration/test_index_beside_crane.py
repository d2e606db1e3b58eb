"""``crane index`` and ``crane copy`` beside what docs/indexes.md says they are called here.

crane is a Go module (github.com/google/go-containerregistry/cmd/crane); the tests skip without it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import judges
import pytest
from registry_server import docker_registry
from small_images import Images

from orchestrator.cli import cli

pytestmark = [
    pytest.mark.registry,
    judges.needs("crane"),
]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A repository that holds ``two``, an index of two platforms, and the images ``risc`` and ``s390x``."""
    folder = tmp_path_factory.mktemp("images")
    made = Images()
    roots = {
        "two": made.index([made.entry("linux/amd64"), made.entry("linux/arm64")]),
        "risc": made.image("linux/riscv64"),
        "s390x": made.image("linux/s390x"),
        "docker": made.image("linux/ppc64le", docker=True),
    }
    made.layout(folder / "in", roots)
    with docker_registry(folder / "registry") as host:
        for name in roots:
            cli.main(["copy", "-q", f"oci:{folder / 'in'}:{name}", f"{host}/app:{name}"], standalone_mode=False)
        yield f"{host}/app"


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setenv("HOME", str(tmp_path))

    def run(*words: str) -> None:
        cli.main(list(words), standalone_mode=False)

    return run


def crane(*words: str) -> bytes:
    done = subprocess.run(
        [judges.find("crane"), *words],
        env={"PATH": os.environ["PATH"], "HOME": "/nowhere"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def manifests(reference: str) -> tuple[str, list[dict[str, Any]]]:
    """The kind of an index and its entries, less what crane alone adds: the config's type as artifactType."""
    found = json.loads(crane("manifest", reference))
    for each in found["manifests"]:
        each.pop("artifactType", None)
    return found["mediaType"], found["manifests"]


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        (["index", "append", "{app}:two", "-m", "{app}:risc"], ["index", "add", "{app}:two", "-m", "{app}:risc"]),
        (
            ["index", "append", "-m", "{app}:risc", "-m", "{app}:s390x"],
            ["index", "create", "{app}:risc", "{app}:s390x"],
        ),
        (["index", "append", "{app}:risc-list", "-m", "{app}:two"], ["index", "add", "{app}:risc-list", "{app}:two"]),
        (
            ["index", "append", "-m", "{app}:docker", "--docker-empty-base"],
            ["index", "create", "{app}:docker", "--media-type", "docker"],
        ),
        (
            ["index", "append", "-m", "{app}:two", "--flatten=false"],
            ["index", "create", "{app}:two", "--no-flatten"],
        ),
        (
            ["index", "filter", "{app}:two", "--platform", "linux/arm64"],
            ["index", "create", "{app}:two", "-p", "linux/arm64"],
        ),
    ],
    ids=lambda words: " ".join(words[:4]),
)
def test_indexes_are_the_same(app: str, ours: Callable[..., None], theirs: list[str], mine: list[str]) -> None:
    ours("index", "create", "-t", f"{app}:risc-list", f"{app}:risc")
    crane(*(each.format(app=app) for each in theirs), "-t", f"{app}:theirs")
    ours(*(each.format(app=app) for each in mine), "-t", f"{app}:ours")
    assert manifests(f"{app}:ours") == manifests(f"{app}:theirs")
    crane("validate", "--remote", f"{app}:ours", "--fast")


def test_copies_are_the_same(app: str, ours: Callable[..., None]) -> None:
    other = app.replace("/app", "/other")
    crane("copy", f"{app}:two", f"{other}:theirs")
    ours("copy", f"{app}:two", f"{other}:ours")
    assert crane("digest", f"{other}:ours") == crane("digest", f"{other}:theirs") == crane("digest", f"{app}:two")


def test_crane_reads_a_layout_that_was_written(app: str, ours: Callable[..., None], tmp_path: Path) -> None:
    ours("copy", f"{app}:two", f"oci:{tmp_path / 'out'}:1")
    crane("push", str(tmp_path / "out"), f"{app}:back", "--index")
    assert crane("digest", f"{app}:back").strip()
