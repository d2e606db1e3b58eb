"""A build whose platforms are Jobs of a cluster: the image is that of one build here, and nothing is left of it."""

from __future__ import annotations

import pytest
from cluster_builds import Farm
from conftest import Reader

DOCKERFILE = "FROM {base}\nARG TARGETARCH\nRUN echo $TARGETARCH >/arch\n"


def test_each_platform_is_a_job_on_a_node_of_its_architecture(farm: Farm, read: Reader) -> None:
    done = farm.build(DOCKERFILE, "--progress=plain", platforms="linux/amd64,linux/arm64")
    assert done.code == 0, done.said
    assert "farm/amd64" in done.err and "farm/arm64" in done.err
    for each in ("amd64", "arm64"):
        assert read(farm.name("app"), f"linux/{each}").text("arch").strip() == each
    farm.assert_nothing_is_left()


@pytest.mark.slow
def test_digests_are_those_of_a_build_on_this_machine(farm: Farm) -> None:
    here = farm.words(DOCKERFILE, platforms="linux/amd64,linux/arm64")
    epoch = {"SOURCE_DATE_EPOCH": "1700000000"}
    there = farm.kanifold(*here, **epoch).out.split()[0]
    assert farm.kanifold(*here[: here.index("--node")], **epoch).out.split()[0] == there
