"""A build on a real arm64 node: native, RUN included, with what the same build makes here under emulation."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from arm_machine import ArmMachine
from conftest import Base, Kanifold
from oci_layout import read_image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="the disk of the machine has files of all users"),
]

STEP_RUNS = "the step runs on"
STEPS = """\
FROM --platform=$BUILDPLATFORM base AS tools
RUN uname -m > /tool
FROM base AS lower
RUN mkdir -p /tree/kept /tree/gone /tree/replaced && echo 1 > /tree/kept/file && echo 2 > /tree/gone/file \
    && echo 3 > /tree/replaced/old && ln /tree/kept/file /tree/hard && ln -s kept /tree/link && mkfifo /tree/fifo
RUN rm -r /tree/gone && rm -r /tree/replaced && mkdir /tree/replaced && echo 4 > /tree/replaced/new && rm /tree/hard
FROM lower
COPY --from=tools /tool /tool
COPY --from=lower --chown=1000:1000 /tree/replaced /copied
RUN uname -m > /machine
RUN --network=none cat /proc/net/dev | grep -c eth > /interfaces || true
RUN --mount=type=cache,target=/cache echo cached > /cache/file && cp /cache/file /cached
RUN --mount=type=cache,target=/cache cat /cache/file >> /cached
RUN --mount=type=secret,id=word md5sum /run/secrets/word > /word
RUN --mount=type=tmpfs,target=/scratch echo gone > /scratch/file
RUN --mount=type=bind,from=tools,target=/tools cp /tools/tool /bound
RUN echo heredoc > /tree/kept/second && chown 1000:50 /tree/kept && chmod 2750 /tree/kept
USER user
WORKDIR /home/user/work
USER root
RUN chown user /home/user/work
USER user
RUN seq 400000 > numbers && id -un > who && touch -d "2020-01-02 03:04:05" dated
"""


@pytest.fixture
def client(arm_machine: ArmMachine, kanifold: Kanifold) -> Kanifold:
    """The command, of a user whose ssh knows the machine."""
    known = {key: arm_machine.environment[key] for key in ("PATH", "XDG_RUNTIME_DIR")}
    return replace(kanifold, extra={**kanifold.extra, **known})


def test_the_machine_builds_natively_what_is_built_here_under_emulation(
    client: Kanifold, arm_machine: ArmMachine, busybox: Base, tmp_path: Path
) -> None:
    (tmp_path / "word").write_text("secret")
    project = tmp_path / "project"
    project.mkdir()
    (project / "Dockerfile").write_text(STEPS)
    wanted = (
        "build", project, "--secret", f"id=word,src={tmp_path / 'word'}",
        "--build-context", f"base=oci-layout://{busybox.layout}", "--progress", "plain",
        "--build-arg", "SOURCE_DATE_EPOCH=1700000000",
    )  # fmt: skip
    both = (*wanted, "--platform", "linux/amd64,linux/arm64")

    def out(name: str) -> str:
        return f"type=oci,dest={tmp_path / name},rewrite-timestamp=true"

    here = client(*both, "-o", out("here"))
    assert "linux/arm64 (qemu-" in here.err
    there = client(*both, "--node", "local", "--node", f"arm={arm_machine.url}", "-o", out("there"))
    assert "[linux/arm64] started: native, arm" in there.err
    assert "[linux/amd64] started: native, local" in there.err

    image = read_image(tmp_path / "there", "linux/arm64")
    assert (image.text("/machine"), image.text("/tool"), image.text("/bound")) == ("aarch64\n", "x86_64\n", "x86_64\n")
    assert (image.text("/interfaces"), image.text("/cached")) == ("0\n", "cached\ncached\n")
    assert index_digest(tmp_path / "here") == index_digest(tmp_path / "there")


def test_a_matrix_of_machines_makes_the_index_of_one_machine(
    client: Kanifold, arm_machine: ArmMachine, busybox: Base, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "Dockerfile").write_text("FROM base\nRUN seq 400000 > /numbers; uname -m > /machine\nCOPY . /src\n")
    wanted = (
        "build", project, "--progress", "plain", "--build-context", f"base=oci-layout://{busybox.layout}",
        "--build-arg", "SOURCE_DATE_EPOCH=1700000000",
    )  # fmt: skip

    def out(name: str) -> str:
        return f"type=oci,dest={tmp_path / name},rewrite-timestamp=true"

    client(*wanted, "--platform", "linux/amd64,linux/arm64", "-o", out("here"))
    for platform, node in (("linux/amd64", "local"), ("linux/arm64", f"arm={arm_machine.url}")):
        name = platform.removeprefix("linux/")
        options = ("--platform", platform, "--node", node, "-o", out(name))
        assert "started: native" in client(*wanted, *options, KANIFOLD_ROOT=str(tmp_path / f"store-{name}")).err
    parts = [f"oci-layout://{tmp_path / name}" for name in ("amd64", "arm64")]
    client("index", "create", "-t", f"oci-layout://{tmp_path / 'joined'}", *parts)
    assert index_digest(tmp_path / "joined") == index_digest(tmp_path / "here")


def test_a_machine_that_is_switched_off_within_a_step_leaves_the_build_to_emulation(
    client: Kanifold, arm_machine: ArmMachine, busybox: Base, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "Dockerfile").write_text(f"FROM base\nRUN uname -m > /machine; echo {STEP_RUNS} $(uname -m); sleep 8\n")
    wanted = (
        "build", project, "--platform", "linux/amd64,linux/arm64", "--progress", "plain",
        "--build-context", f"base=oci-layout://{busybox.layout}", "--build-arg", "SOURCE_DATE_EPOCH=1700000000",
    )  # fmt: skip

    def out(name: str) -> str:
        return f"type=oci,dest={tmp_path / name},rewrite-timestamp=true"

    nodes = ("--node", "local", "--node", f"arm={arm_machine.url}")
    said: list[str] = []
    with client.start(*wanted, *nodes, "-o", out("out")) as build:
        assert build.stderr is not None
        for line in build.stderr:
            said.append(line)
            if f"{STEP_RUNS} aarch64" in line:
                arm_machine.power_off()
        code = build.wait(60)
    told = "".join(said)
    assert code == 0, told
    assert "[linux/arm64] started: native, arm" in told
    assert "[linux/arm64] started: qemu-aarch64-static, local" in told
    client(*wanted, "-o", out("here"))
    assert index_digest(tmp_path / "out") == index_digest(tmp_path / "here")


def index_digest(layout: Path) -> str:
    found: str = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    return found
