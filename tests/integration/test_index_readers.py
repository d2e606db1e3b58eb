"""What was joined is read by other people's programs, each of which comes to the same digests."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import judges
import pytest
from registry_server import docker_registry
from small_images import Images

from orchestrator.cli import cli

pytestmark = pytest.mark.registry

Say = Callable[..., str]


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The name of an index of two platforms with attestations, joined from the metadata of their builds; its digest."""
    folder = tmp_path_factory.mktemp("joined")
    made = Images()
    with docker_registry(folder / "registry") as host:
        for platform in ("linux/arm64", "linux/amd64"):
            entry = made.entry(platform)
            root = made.index([entry, made.attestation(entry)])
            source = made.layout(folder / platform[6:], {"1": root})
            cli.main(["copy", "-q", f"oci:{source}:1", f"{host}/app:{platform[6:]}"], standalone_mode=False)
            metadata = {"containerimage.digest": root["digest"], "image.name": f"{host}/app:1"}
            (folder / "metadata").mkdir(exist_ok=True)
            (folder / "metadata" / f"{platform[6:]}.json").write_text(json.dumps(metadata))
        out = folder / "result.json"
        words = ["--metadata", str(folder / "metadata"), "--platform", "linux/amd64,linux/arm64"]
        cli.main(["index", "create", "-t", f"{host}/app:1", "--metadata-file", str(out), *words], standalone_mode=False)
        yield f"{host}/app:1", json.loads(out.read_text())["containerimage.digest"]


@pytest.fixture
def say(tmp_path: Path) -> Say:
    def run(program: str, *words: str) -> str:
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        done = subprocess.run(
            [judges.find(program), *words], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def check(raw: str) -> None:
    entries = json.loads(raw)["manifests"]
    platforms = [f"{each['platform']['os']}/{each['platform']['architecture']}" for each in entries]
    assert platforms == ["linux/amd64", "linux/arm64", "unknown/unknown", "unknown/unknown"]


@judges.needs("buildx")
def test_buildx(joined: tuple[str, str], say: Say) -> None:
    name, digest = joined
    check(say("buildx", "imagetools", "inspect", "--raw", name))
    assert digest in say("buildx", "imagetools", "inspect", name)
    assert set(json.loads(say("buildx", "imagetools", "inspect", "--format", "{{json .Image}}", name))) == {
        "linux/amd64",
        "linux/arm64",
    }
    assert json.loads(say("buildx", "imagetools", "inspect", "--format", "{{json .Provenance}}", name))


@judges.needs("crane")
def test_crane(joined: tuple[str, str], say: Say) -> None:
    name, digest = joined
    check(say("crane", "manifest", name))
    assert say("crane", "digest", name).strip() == digest
    assert json.loads(say("crane", "config", "--platform", "linux/arm64", name))["architecture"] == "arm64"


@judges.needs("regctl")
def test_regctl(joined: tuple[str, str], say: Say) -> None:
    name, digest = joined
    host = name.partition("/")[0]
    say("regctl", "registry", "set", host, "--tls", "disabled")
    check(say("regctl", "manifest", "get", "--format", "raw-body", name))
    assert say("regctl", "image", "digest", name).strip() == digest
    config = json.loads(say("regctl", "image", "inspect", "--platform", "linux/arm64", name))
    assert config["architecture"] == "arm64"


@judges.needs("skopeo")
def test_skopeo(joined: tuple[str, str], say: Say, tmp_path: Path) -> None:
    name, digest = joined
    check(say("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}"))
    copy = ("copy", "-q", "--all", "--preserve-digests", "--src-tls-verify=false", f"docker://{name}")
    say("skopeo", *copy, f"oci:{tmp_path / 'copy'}:1")
    (root,) = json.loads((tmp_path / "copy" / "index.json").read_text())["manifests"]
    assert root["digest"] == digest
