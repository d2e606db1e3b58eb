"""What a job means on a node that has another disk."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from msgspec.structs import fields, replace

from executor.protocol import (
    AskSecret,
    BuildOptions,
    CacheExport,
    CacheInActions,
    CacheInBucket,
    CacheInContainer,
    DirectoryContext,
    GitOrigin,
    ImageContext,
    Job,
    LayoutContext,
    ScratchContext,
    SentContext,
    SentLayoutContext,
)
from executor.registry.registry_settings import RegistryCertificates, RegistrySettings
from executor.step_options import StepOptions
from orchestrator.nodes.command_node import CommandNode
from orchestrator.nodes.node import ContextRoutes
from orchestrator.nodes.placement import Placement
from orchestrator.translation import REFUSED, TRANSLATED, UNCHANGED, Apart, loopback_registries, translate
from platforms.emulation import Emulation, EmulationMode
from platforms.errors import Location, Problem
from platforms.parsing import parse

AMD64 = parse("linux/amd64")
JOB = Job(version=1, platform="linux/amd64", dockerfile=b"FROM scratch\n")
ELSEWHERE = Placement(AMD64, CommandNode("elsewhere", ("false",)))


def leaves(struct: type[msgspec.Struct]) -> Iterator[str]:
    """The fields of ``struct``, those of the options in it in the place of these."""
    for each in fields(struct):
        if each.type in (BuildOptions, StepOptions, RegistrySettings):
            yield from leaves(each.type)
        else:
            yield each.name


def sent(job: Job) -> Job:
    return translate(job, ELSEWHERE).job


def test_every_field_of_a_job_is_accounted_for() -> None:
    """A new field that can name something of this machine must not go elsewhere as it is."""
    names = sorted(leaves(Job))
    assert names == sorted((*UNCHANGED, *TRANSLATED, *REFUSED))
    assert len(names) == len(set(names))


def test_a_node_that_shares_the_disk_gets_the_job_as_it_is() -> None:
    job = Job(
        1,
        "linux/amd64",
        b"",
        options=BuildOptions(root="/store", steps=StepOptions(cgroup_parent="/group")),
        contexts=(DirectoryContext("", "/here"),),
    )
    here = Placement(AMD64, CommandNode("local", ("false",)), shares_disk=True)
    problem = Problem("BuildError", "cannot read /here")
    assert translate(job, here).job is job
    assert translate(job, here).sent(AskSecret("s"), problem) is problem


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (DirectoryContext("", "/here", "ignored", True), SentContext("")),
        (LayoutContext("a", "/here/layout"), SentLayoutContext("a")),
        (LayoutContext("a", "/here/layout:1.0"), SentLayoutContext("a", "1.0")),
        (ImageContext("a", "debian:12"), ImageContext("a", "debian:12")),
        (ScratchContext("a"), ScratchContext("a")),
    ],
    ids=lambda each: type(each).__name__,
)
def test_contexts_are_sent(here: DirectoryContext | LayoutContext, there: SentContext | SentLayoutContext) -> None:
    assert sent(Job(1, "linux/amd64", b"", contexts=(here,))).contexts == (there,)


ORIGIN = GitOrigin("https://example.com/a.git", "refs/heads/main", "1" * 40, "1" * 40)
PUSHED_TO = ("registry.example.com/app",)


@pytest.mark.parametrize(
    ("push", "routes", "there"),
    [
        (PUSHED_TO, None, SentContext("")),
        (PUSHED_TO, ContextRoutes(7), SentContext("", 7, ORIGIN)),
        (PUSHED_TO, ContextRoutes(7, "registry.example.com/contexts"), SentContext("", 7, ORIGIN, True)),
        (PUSHED_TO, ContextRoutes(7, "image"), SentContext("", 7, ORIGIN, True)),
        ((), ContextRoutes(7, "image"), SentContext("", 7, ORIGIN, False)),
    ],
    ids=["none", "git", "a repository", "that of the image", "no image is pushed"],
)
def test_large_contexts_take_the_ways_of_the_node(
    push: tuple[str, ...], routes: ContextRoutes | None, there: SentContext
) -> None:
    job = Job(1, "linux/amd64", b"", contexts=(DirectoryContext("", "/here", git=ORIGIN),), push=push)
    assert Apart(job, "elsewhere", routes).job.contexts == (there,)


def test_the_store_and_the_emulator_are_the_nodes_own() -> None:
    emulation = Emulation(EmulationMode.REGISTERED, "arm64", "/usr/bin/qemu-aarch64-static")
    job = sent(Job(1, "linux/arm64", b"", emulation=emulation, options=BuildOptions(root="/here/store")))
    assert (job.emulation, job.options.root) == (None, "")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Dockerfile", "Dockerfile"), ("docker/App.Dockerfile", "docker/App.Dockerfile"),
        ("/here/context/Dockerfile", "Dockerfile"), ("../other/App", "App"),
    ],
)  # fmt: skip
def test_the_dockerfile_has_its_own_name_when_it_comes_back(name: str, shown: str) -> None:
    translation = translate(Job(1, "linux/amd64", b"", dockerfile_name=name), ELSEWHERE)
    assert translation.job.dockerfile_name == shown
    reported = Problem("DockerfileError", "wrong", where=Location(shown, 3, 3))
    assert translation.received(reported) == Problem("DockerfileError", "wrong", where=Location(name, 3, 3))


def test_an_authority_goes_along_and_a_client_certificate_does_not() -> None:
    settings = RegistrySettings(
        certificates=(RegistryCertificates("other.example.com", "PEM", "/here/cert", "/here/key"),)
    )
    registries = sent(Job(1, "linux/amd64", b"", options=BuildOptions(registries=settings))).options.registries
    assert registries.certificates == (RegistryCertificates("other.example.com", "PEM"),)


def test_an_error_of_this_machine_has_its_words_here_alone() -> None:
    translation = translate(JOB, ELSEWHERE)
    problem = Problem("BuildError", "cannot read the secret file /here/secret", "no such file", "keep it")
    told = translation.sent(AskSecret("word"), problem)
    assert told == Problem("BuildError", "the orchestrator cannot give the secret 'word'")
    place = Location("Dockerfile", 2, 2)
    reported = Problem(told.kind, told.what, where=place)
    assert translation.received(reported) == Problem(problem.kind, problem.what, problem.why, problem.remedy, place)
    assert translation.received(Problem("BuildError", "another")) == Problem("BuildError", "another")


@pytest.mark.parametrize(
    ("name", "shared", "warned"),
    [
        ("localhost:5000/app", False, True), ("127.0.0.1:5000/app", False, True), ("[::1]:5000/app", False, True),
        ("localhost:5000/app", True, False), ("registry.example.com/localhost", False, False),
    ],
)  # fmt: skip
def test_a_registry_of_a_loopback_interface_is_another_one_there(name: str, shared: bool, warned: bool) -> None:
    placement = Placement(AMD64, CommandNode("elsewhere", ("false",)), shares_disk=shared)
    problem = loopback_registries(Job(1, "linux/amd64", b"", push=(name,)), placement)
    assert (problem is not None) == warned
    if problem is not None:
        assert "node elsewhere" in problem.what
        assert problem.remedy


@pytest.mark.parametrize("host", ["127.0.0.1:9000", "s3.example.com"])
def test_a_cache_at_a_service_of_a_loopback_interface_is_another_one_there(host: str) -> None:
    url = f"http://{host}"
    for cache in (
        CacheInBucket("c", "bucket", "region", "steps", ("n",), "blobs", endpoint=url),
        CacheInContainer("c", "account", f"{url}/account", "container", "steps", ("n",), "blobs"),
        CacheInActions("c", url, 2, "scope"),
    ):
        job = Job(1, "linux/amd64", b"", options=BuildOptions(cache_from=(cache,), cache_to=(CacheExport(cache),)))
        problem = loopback_registries(job, ELSEWHERE)
        assert (problem is not None) == host.startswith("127.")
        assert sent(job).options.cache_from == (cache,)


def test_an_error_of_this_machine_is_known_when_it_comes_back() -> None:
    """No other node would do better, so the job does not move."""
    translation = translate(JOB, ELSEWHERE)
    problem = Problem("StoreError", "cannot write to the store /here", "no space left")
    told = translation.sent(AskSecret("word"), problem)
    assert translation.is_ours(translation.received(replace(told, where=Location("Dockerfile", 2, 2))))
    assert not translation.is_ours(translation.received(Problem("StoreError", "cannot write to the store /there")))


def test_an_error_of_a_store_there_says_where() -> None:
    problem = Problem("StoreError", "cannot write to the store /home/me/store", "no space left")
    assert translate(JOB, ELSEWHERE).received(problem).what == f"node {ELSEWHERE.node.name}: {problem.what}"
    step = Problem("StepFailed", "the command failed")
    assert translate(JOB, ELSEWHERE).received(step) == step
