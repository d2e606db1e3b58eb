"""``examples/release``: a real release by one command and by the jobs of a matrix."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import bases
import pytest
from conftest import Kanifold, Outcome
from registry_server import MemoryRegistry, Served

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "release"
PLATFORMS = {"linux/amd64", "linux/arm64", "linux/arm/v7"}
RELEASE_TIMEOUT = 1800.0
"""Seconds for six images on three platforms, two of which are emulated: they install packages."""
TAGS = {
    *(f"base:1-python{python}" for python in ("3.11", "3.13")),
    *(f"web:1-python{python}-{variant}" for python in ("3.11", "3.13") for variant in ("slim", "full")),
}


def published(registry: MemoryRegistry) -> dict[str, dict[str, object]]:
    """The indexes that have tags, by name and tag."""
    return {
        f"{name.removeprefix('example/')}:{tag}": json.loads(data)
        for (name, tag), (_, data) in registry.manifests.items()
        if ":" not in tag and name.startswith("example/")
    }


@pytest.mark.slow
def test_the_example_is_built_tested_and_published_as_a_whole_and_in_jobs(
    kanifold: Kanifold, server: tuple[MemoryRegistry, Served], tmp_path: Path
) -> None:
    registry, served = server
    layouts = tmp_path / "bases"
    for suite in ("bookworm", "trixie"):
        try:
            bases.make_layout(f"debian:{suite}", layouts / suite, sorted(PLATFORMS))
        except bases.UnavailableError as problem:
            pytest.skip(f"no Debian {suite}: {problem}")
    project = tmp_path / "release"
    shutil.copytree(EXAMPLE, project)

    def release(*arguments: str, version: str = "1") -> Outcome:
        process = kanifold.start(
            "release", *arguments, "--allow", f"fs.read={layouts}", cwd=project, VERSION=version,
            BASES=f"oci-layout://{layouts}/", REGISTRY=f"{served.host}/example", SOURCE_DATE_EPOCH="1700000000",
        )  # fmt: skip
        with process:
            out, err = process.communicate(timeout=RELEASE_TIMEOUT)
        return Outcome(process.returncode, out, err)

    whole = release("--push")
    assert whole.code == 0, whole.said
    found = published(registry)
    assert set(found) == TAGS
    for name, index in found.items():
        manifests = index["manifests"]
        assert isinstance(manifests, list)
        assert {platform_of(each["platform"]) for each in manifests} == PLATFORMS, name
        annotations = index["annotations"]
        assert isinstance(annotations, dict)
        assert annotations["org.opencontainers.image.version"] == "1"
    assert whole.err.count("service 1, Python 3.13") == 6, "two variants on three platforms have answered"

    registry.manifests = {
        key: value for key, value in registry.manifests.items() if ":" in key[1] or key[0] == "busybox"
    }
    runners = [word for each in sorted(PLATFORMS) for word in ("--runner", f"{each}=x")]
    jobs = json.loads(kanifold("matrix", *runners, cwd=project).out)["jobs"]
    assert len(jobs) == 18
    for job in jobs:
        done = release("--job", job["name"])
        assert done.code == 0, done.said
    assert not published(registry)
    joined = release("--join")
    assert joined.code == 0, joined.said
    assert joined.out == whole.out, "the same digests"
    assert set(published(registry)) == TAGS

    file = project / "kanifold.yaml"
    file.write_text(file.read_text().replace('test "$(id -u)" = 1000', 'test "$(uname -m)" != armv7l'))
    failed = release("--push", version="2")
    assert failed.code == 1
    assert "has failed on linux/arm/v7" in failed.err
    assert set(published(registry)) == TAGS, "no tag has moved"


def platform_of(platform: dict[str, str]) -> str:
    return "/".join(filter(None, (platform["os"], platform["architecture"], platform.get("variant"))))
