"""Namespaces with a quota that does not suffice for all executors of a command: all get their turn."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cluster_builds import Farm
from conftest import Reader

pytestmark = pytest.mark.slow

BOTH = "linux/amd64,linux/arm64"
WAITS = r"waiting for the quota few: \S+ 1 of 1"


def limit(farm: Farm, resource: str, most: int) -> None:
    """Give the namespace a quota."""
    farm.cluster.kubectl("create", "quota", "-n", farm.namespace, "few", f"--hard={resource}={most}")


@pytest.mark.parametrize("resource", ["pods", "count/jobs.batch"])
def test_two_platforms_with_a_place_for_one(farm: Farm, resource: str) -> None:
    limit(farm, resource, 1)
    done = farm.build("FROM {base}\nRUN arch >/arch\n", platforms=BOTH)
    assert done.code == 0, done.said
    assert re.search(WAITS, done.err), done.err
    farm.assert_nothing_is_left()


def test_an_executor_does_not_wait_for_the_place_that_it_has(farm: Farm, read: Reader) -> None:
    """That on arm64 wants a stage of one on amd64, for which there is no place until it ends: it makes the stage."""
    limit(farm, "pods", 1)
    dockerfile = (
        "FROM --platform=$BUILDPLATFORM {base} AS build\nARG TARGETARCH\nRUN echo $TARGETARCH >/made\n"
        "FROM {base}\nCOPY --from=build /made /\n"
    )
    done = farm.build(dockerfile, platforms=BOTH)
    assert done.code == 0, done.said
    for each in ("amd64", "arm64"):
        assert read(farm.name("app"), f"linux/{each}").text("made").strip() == each
    assert "no place for another executor" in done.err
    farm.assert_nothing_is_left()


def test_a_release_of_forty_images_finishes_on_a_quota_of_ten(farm: Farm, tmp_path: Path, read: Reader) -> None:
    """Three platforms each, of which one is emulated."""
    limit(farm, "pods", 10)
    platforms = ("linux/amd64", "linux/arm64", "linux/riscv64")
    numbers = ", ".join(f'"{each}"' for each in range(40))
    (tmp_path / "Dockerfile").write_text(f"FROM {farm.base}\nARG number\nRUN echo $number >/number\n")
    (tmp_path / "kanifold.yaml").write_text(
        f"platforms: [{', '.join(platforms)}]\n"
        f"images:\n  web:\n    context: .\n    matrix: {{number: [{numbers}]}}\n"
        '    args: {number: "${number}"}\n'
        f'    tags: "{farm.cluster.registry}/{farm.namespace}/web-${{number}}:1"\n'
    )
    process = farm.kanifold.start("release", "--push", "--progress=plain", "--node", farm.node(), cwd=tmp_path)
    try:
        _, said = process.communicate()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, said
    for number in ("0", "39"):
        for each in platforms:
            assert read(farm.name(f"web-{number}"), each).text("number").strip() == number
    farm.assert_nothing_is_left()
