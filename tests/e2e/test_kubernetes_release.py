"""A release whose images are built, and tested, by Jobs of a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster_builds import Farm
from conftest import Reader

pytestmark = pytest.mark.slow

RELEASE = """\
platforms: [linux/amd64, linux/arm64]
images:
  base:
    context: base
    tags: "{name}/base:1"
  web:
    context: web
    matrix: {{variant: [slim, full]}}
    depends-on: base
    args: {{VARIANT: "${{variant}}"}}
    tags: "{name}/web:${{variant}}"
    test: [{test}]
"""


def words(farm: Farm, place: Path, test: str) -> list[str]:
    """Return the arguments of a release, of a base and two images on it, that is declared in ``place``."""
    for name, text in (
        ("base", f"FROM {farm.base}\nRUN echo base >/base\n"),
        ("web", "FROM base\nARG VARIANT\nRUN test -s /base && echo $VARIANT >/variant\n"),
    ):
        (place / name).mkdir(parents=True)
        (place / name / "Dockerfile").write_text(text)
    name = f"{farm.cluster.registry}/{farm.namespace}"
    (place / "kanifold.yaml").write_text(RELEASE.format(name=name, test=test))
    return ["release", "--file", str(place / "kanifold.yaml"), "--push", "--progress=plain", "--node", farm.node()]


def test_images_are_built_on_each_other_tested_and_published(farm: Farm, read: Reader, tmp_path: Path) -> None:
    done = farm.kanifold.run(*words(farm, tmp_path / "release", "test -s /base -a -s /variant"))
    assert done.code == 0, done.said
    assert "farm/amd64" in done.err and "farm/arm64" in done.err
    name = f"{farm.cluster.registry}/{farm.namespace}"
    for variant in ("slim", "full"):
        for each in ("linux/amd64", "linux/arm64"):
            assert read(f"{name}/web:{variant}", each).text("variant").strip() == variant
    farm.assert_nothing_is_left()


def test_a_test_that_fails_in_the_cluster_moves_no_tag(farm: Farm, tmp_path: Path) -> None:
    done = farm.kanifold.run(*words(farm, tmp_path / "release", "test $(cat /variant) = slim"))
    assert done.code == 1, done.said
    assert "no tag was moved" in done.err
    farm.assert_nothing_is_left()
