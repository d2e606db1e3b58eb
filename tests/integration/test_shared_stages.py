"""Stages on the build platform that platforms on several nodes share: made once, on one node, and sent to others."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Base
from msgspec.structs import replace
from oci_layout import read_image
from protocol_nodes import ROOT, Marked, liar

from executor.protocol import BuildOptions, Finished, Started
from orchestrator import command, registries
from orchestrator.nodes.command_node import CommandNode
from orchestrator.nodes.local_node import LocalNode
from orchestrator.nodes.node import Description, Node, Support
from orchestrator.outputs import OciLayout
from orchestrator.request import BuildRequest
from orchestrator.results import BuildResult
from orchestrator.view import events
from platforms import host
from platforms.errors import BuildError, EnvironmentUnfit
from platforms.parsing import parse
from platforms.platform import Platform

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or host.host().architecture != "amd64", reason="the build platform is linux/amd64"
)
AMD64, ARM64 = parse("linux/amd64"), parse("linux/arm64")


class NodeOf(CommandNode):
    """A node that says that it is ``own``. Its executors are real, and of this machine's platform."""

    own = ARM64

    async def describe(self, platforms: Sequence[Platform]) -> Description:
        found = await super().describe(platforms)
        runs = ((each, self._says(each)) for each in platforms)
        return replace(found, platform=self.own, support=tuple(runs), isolation="any")

    def _says(self, platform: Platform) -> Support:
        if platform == self.own:
            return Support("native")
        return Support("emulated") if self.own == AMD64 else Support(unfit=EnvironmentUnfit("another platform"))


class Amd64Node(NodeOf):
    own = AMD64


@dataclass
class Farm:
    """Nodes of this machine that say that they are others."""

    place: Path
    mark: Marked
    layout: Path

    def node(self, name: str, kind: type[NodeOf]) -> NodeOf:
        given = {"KANIFOLD_ROOT": str(self.place / name), "PYTHONPATH": str(ROOT), **self.mark.environment}
        return kind(name, (sys.executable, "-P", "-m", "executor"), tuple(given.items()))

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self.node("amd64", Amd64Node), self.node("arm64", NodeOf)

    def request(self, dockerfile: str, *platforms: Platform) -> BuildRequest:
        context = self.place / "context"
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text(dockerfile)
        return BuildRequest(
            str(context),
            platforms=platforms or (AMD64, ARM64),
            outputs=(OciLayout(str(self.place / "out")),),
            build_args=(("SOURCE_DATE_EPOCH", "1000000000"),),
            build_contexts=(("image", f"oci-layout://{self.layout}"),),
            options=BuildOptions(root=str(self.place / "here")),
        )

    def build(self, request: BuildRequest, nodes: Sequence[Node]) -> tuple[BuildResult, list[events.Event]]:
        shutil.rmtree(self.place / "out", ignore_errors=True)
        seen: list[events.Event] = []
        running = command.run(request, None, tuple(nodes), registries.direct, seen.append)
        return asyncio.run(command.interruptible(running)), seen

    def text(self, platform: Platform, path: str) -> str:
        return read_image(self.place / "out", str(platform)).text(path)


@pytest.fixture
def farm(tmp_path: Path, busybox: Base, monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    mark = Marked()
    yield Farm(tmp_path, mark, busybox.layout)
    assert mark.wait_until_gone(3) == [], "a process is left"


def made(seen: Sequence[events.Event], platform: str) -> int:
    """The number of steps that the executors of ``platform`` have made."""
    told = [each.message for each in seen if isinstance(each, events.FromExecutor) and each.platform == platform]
    started = {each.step for each in told if isinstance(each, Started)}
    return len(started - {each.step for each in told if isinstance(each, Finished) and each.cached})


SHARED = """
FROM --platform=$BUILDPLATFORM image AS build
RUN cat /proc/sys/kernel/random/uuid > /once
FROM build AS each
ARG TARGETARCH
COPY Dockerfile /
RUN cat /once > /result && echo $TARGETARCH >> /result
FROM scratch
COPY --from=each /result /
"""


def test_a_shared_step_runs_once_and_each_platform_gets_its_result(farm: Farm) -> None:
    _, seen = farm.build(farm.request(SHARED), farm.nodes)
    one, other = (farm.text(each, "/result").splitlines() for each in (AMD64, ARM64))
    assert one[0] == other[0], "the step has run twice"
    assert (one[1], other[1]) == ("amd64", "arm64")
    makers = {each.platform for each in seen if isinstance(each, events.PlatformStarted) and each.node == "amd64"}
    assert makers == {"linux/amd64", "linux/arm64 (stage 1)"}


@pytest.mark.parametrize("again", ["with its store", "without its store", "--no-cache"])
def test_a_later_build_makes_nothing_that_is_known(farm: Farm, again: str) -> None:
    request = farm.request(SHARED)
    farm.build(request, farm.nodes)
    before = farm.text(ARM64, "/result")
    nodes = list(farm.nodes)
    if again == "without its store":
        nodes[1] = farm.node("another", NodeOf)
    if again == "--no-cache":
        request = replace(request, options=replace(request.options, no_cache=True))
    _, seen = farm.build(request, nodes)
    asked = {each.platform for each in seen if isinstance(each, events.PlatformStarted)}
    assert ("linux/arm64 (stage 1)" in asked) == (again != "with its store"), "a maker is started when it is needed"
    assert (farm.text(ARM64, "/result") == before) == (again != "--no-cache")
    assert farm.text(AMD64, "/result").split()[0] == farm.text(ARM64, "/result").split()[0]


def test_images_are_those_of_a_local_build(farm: Farm) -> None:
    request = farm.request(SHARED.replace("cat /proc/sys/kernel/random/uuid", "echo the same"))
    built, _ = farm.build(request, farm.nodes)
    options = replace(request.options, root=str(farm.place / "local"))
    local, _ = farm.build(replace(request, options=options), (LocalNode(None),))
    assert built.root.digest == local.root.digest


def test_a_step_that_fails_there_fails_the_platform(farm: Farm) -> None:
    with pytest.raises(BuildError) as caught:
        farm.build(farm.request(SHARED.replace("RUN cat /once", "RUN exit 9; cat /once"), ARM64), farm.nodes)
    (trouble,) = caught.value.troubles  # type: ignore[attr-defined]
    assert trouble.platform == "linux/arm64"
    assert trouble.problem.where.line == 7
    assert "9" in trouble.problem.what + trouble.problem.why


def test_if_the_node_dies_the_job_makes_the_stages_itself(farm: Farm) -> None:
    dying = liar("dies_later", farm.mark)
    nodes = (_Dying("amd64", dying._command, dying._environment), farm.node("arm64", NodeOf))
    _, seen = farm.build(farm.request(SHARED, ARM64), nodes)
    assert farm.text(ARM64, "/result").split()[1] == "arm64"
    assert any("has not made the stages" in str(each) for each in seen)


class _Dying(Amd64Node):
    """A node whose executors die with their job."""


def test_this_machine_makes_what_a_node_of_another_platform_cannot_run(farm: Farm) -> None:
    _, seen = farm.build(farm.request(SHARED, ARM64), (LocalNode(None), farm.node("arm64", NodeOf)))
    assert farm.text(ARM64, "/result").split()[1] == "arm64"
    started = {(each.platform, each.node) for each in seen if isinstance(each, events.PlatformStarted)}
    assert started == {("linux/arm64", "arm64"), ("linux/arm64 (stage 1)", "local")}


def test_one_node_shares_by_its_store(farm: Farm) -> None:
    _, seen = farm.build(farm.request(SHARED), (farm.node("amd64", Amd64Node),))
    assert farm.text(AMD64, "/result").split()[0] == farm.text(ARM64, "/result").split()[0]
    started = [each.platform for each in seen if isinstance(each, events.PlatformStarted)]
    assert sorted(started) == ["linux/amd64", "linux/arm64"]
