"""A build that comes again with nothing changed is answered without an executor, as long as that would say the same.

That no change of what a step observes is missed is shown in ``test_cache_keys``; here is what else an answer needs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import Base, Kanifold
from git_server import Repository, serving
from registry_server import MemoryRegistry, Served


@dataclass
class World:
    """A context, a registry that is looked into, and the command."""

    kanifold: Kanifold
    context: Path
    registry: MemoryRegistry
    host: str
    platforms: str = "linux/amd64"
    words: list[str | Path] = field(default_factory=list)

    def build(self, *more: str | Path, name: str = "app", **environment: str) -> tuple[str, int]:
        """Build and push: the digest, and how many executors were needed."""
        tag = f"{self.host}/{name}:1"
        words = ("--platform", self.platforms, "-t", tag, "--push", "--progress", "rawjson", *self.words, *more)
        outcome = self.kanifold("build", self.context, *words, **environment)
        events = [json.loads(line) for line in outcome.err.splitlines()]
        assert self.registry.manifests[name, "1"] == self.registry.manifests[name, outcome.out.split()[0]]
        return outcome.out.split()[0], sum(each["type"] == "hello" for each in events)

    def dockerfile(self, text: str) -> None:
        (self.context / "Dockerfile").write_text(text)


@pytest.fixture
def settled(tmp_path: Path) -> Path:
    """Files that nobody has written to for a while: of others it is not believed that they are what they look like."""
    context = tmp_path / "settled"
    context.mkdir()
    (context / "f").write_text("content")
    while time.time_ns() - (context / "f").stat().st_ctime_ns < 2_100_000_000:
        time.sleep(0.1)  # there is no event to wait for: it is the clock that has to move on
    return context


@pytest.fixture
def world(kanifold: Kanifold, tmp_path: Path, server: tuple[MemoryRegistry, Served]) -> World:
    context = tmp_path / "context"
    context.mkdir()
    registry, found = server
    made = World(kanifold, context, registry, found.host)
    made.dockerfile(f"FROM {found.host}/busybox\nRUN date +%N > /now; cat /proc/sys/kernel/random/uuid > /id\n")
    return made


def test_from_the_second_time_on_no_executor_is_needed(world: World) -> None:
    world.platforms = "linux/amd64,linux/arm64"
    first, second, third = world.build(), world.build(), world.build()
    assert [each[1] for each in (first, second, third)] == [2, 0, 0]
    assert first[0] == second[0] == third[0]


def test_where_nothing_is_pushed_nobody_is_asked_whether_it_may_be(
    world: World, server: tuple[MemoryRegistry, Served]
) -> None:
    """One question for the base, one for what was built, one for the tag: no upload is begun for the asking."""
    world.build()
    server[1].asked.clear()
    assert world.build()[1] == 0
    assert {each.method for each in server[1].asked} == {"HEAD"}
    assert len(server[1].asked) == 3


def test_it_is_so_for_an_ordinary_user(world: World, kanifold_as_user: Kanifold) -> None:
    context = kanifold_as_user.folder("context")
    (context / "Dockerfile").write_bytes((world.context / "Dockerfile").read_bytes())
    theirs = dataclasses.replace(world, kanifold=kanifold_as_user, context=context)
    first, second = theirs.build(), theirs.build()
    assert (first[1], second[1]) == (1, 0)
    assert first[0] == second[0]


def test_it_says_what_executors_would_say(world: World) -> None:
    world.build()
    tag = f"{world.host}/app:1"
    words = ("build", world.context, "--platform", world.platforms, "-t", tag, "--push", "--progress", "plain")
    remembered = world.kanifold(*words).err.splitlines()
    asked = world.kanifold(*words, "-t", f"{world.host}/elsewhere:1").err.splitlines()

    def told(lines: list[str]) -> list[str]:
        """What is said of steps, but for how long they took."""
        return sorted(re.sub(r" \d+\.\ds", "", each) for each in lines if each[:1] == "[" and "executor" not in each)

    assert told(remembered) == told(asked)
    assert sum(line.endswith("CACHED") for line in remembered) == 1
    assert not any("executor" in line for line in remembered)


def test_files_are_looked_at_again(world: World, settled: Path) -> None:
    world.words = ["--build-context", f"files={settled}"]
    world.dockerfile("FROM scratch\nCOPY --from=files f /\n")
    first = [world.build() for _ in range(2)]
    assert [each[1] for each in first] == [1, 0]
    (settled / "f").write_text("another")
    changed, executors = world.build()
    assert executors == 1
    assert changed != first[0][0]


def test_files_that_were_just_written_are_not_believed(world: World) -> None:
    """Written ten minutes from now, so that they are new however long a build takes to begin."""
    world.dockerfile("FROM scratch\nCOPY f /\n")
    (world.context / "f").write_text("content")
    os.utime(world.context / "f", (time.time() + 600, time.time() + 600))
    assert [world.build()[1] for _ in range(2)] == [1, 1]


def test_a_step_that_was_done_again_meanwhile_counts(world: World) -> None:
    before = [world.build() for _ in range(2)][-1]
    new, _ = world.build("--no-cache")
    after, executors = world.build()
    assert before[1] == 0 < executors
    assert new == after != before[0]


def test_what_the_registry_has_lost_is_pushed_again(world: World) -> None:
    digest = [world.build() for _ in range(2)][-1][0]
    for name in [each for each in world.registry.manifests if each[0] == "app"]:
        del world.registry.manifests[name]
    assert world.build() == (digest, 1)
    assert world.build() == (digest, 0)


def test_another_repository_is_pushed_to(world: World) -> None:
    digest = [world.build() for _ in range(2)][-1][0]
    assert world.build(name="other") == (digest, 1)
    assert world.build(name="other") == (digest, 0)


def test_a_base_that_has_moved_counts(world: World) -> None:
    digest = [world.build() for _ in range(2)][-1][0]
    media_type, data = world.registry.manifests["busybox", "latest"]
    moved = json.dumps({**json.loads(data), "annotations": {"moved": "yes"}}).encode()
    world.registry.add_manifest("busybox", "latest", media_type, moved)
    assert world.build() == (digest, 1)
    assert world.build() == (digest, 0)


def test_a_pruned_store_is_built_anew(world: World) -> None:
    before = [world.build() for _ in range(2)][-1]
    world.kanifold("prune", "--all")
    after, executors = world.build()
    assert executors == 1
    assert after != before[0]


Told = Callable[[str], None]


@pytest.fixture
def told(world: World, busybox: Base, request: pytest.FixtureRequest) -> Told:
    """Lets ``world`` build a step that may name an image, a layout and a directory that are contexts."""

    def tell(step: str) -> None:
        _tell(world, busybox, request.getfixturevalue("settled") if "folder" in step else world.context, step)

    return tell


def _tell(world: World, busybox: Base, folder: Path, step: str) -> None:
    url = f"http://{world.host}/v2/busybox/manifests/latest"
    digest = hashlib.sha256(world.registry.manifests["busybox", "latest"][1]).hexdigest()
    named = {
        "image": f"docker-image://{world.host}/busybox", "layout": f"oci-layout://{busybox.layout}",
        "folder": str(folder),
    }  # fmt: skip
    world.words = [
        word for name, place in named.items() if name in step for word in ("--build-context", f"{name}={place}")
    ]
    begin = "" if step.startswith("FROM") else f"FROM {world.host}/busybox\n"
    world.dockerfile(begin + step.replace("{url}", url).replace("{digest}", f"sha256:{digest}") + "\n")


@pytest.mark.parametrize(
    "step",
    [
        "RUN --mount=type=secret,id=s true",
        "RUN --mount=type=ssh true",
        "RUN --mount=type=bind,target=/m true",
        "RUN --mount=type=bind,from=folder,target=/m true",
        "RUN --mount=type=cache,from=folder,target=/c true",
        "ADD {url} /f",
        "FROM layout",
        "COPY --from=layout /bin/busybox /b",
        "RUN --mount=type=bind,from=layout,target=/m true",
        "FROM folder",
    ],
)
def test_what_can_only_be_asked_for_again_is(world: World, told: Told, step: str) -> None:
    told(step)
    assert [world.build()[1] for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize(
    "step",
    [
        "FROM scratch\nCOPY <<f /\ncontent\nf",
        "WORKDIR /w",
        "RUN --mount=type=tmpfs,target=/t true",
        "RUN --mount=type=cache,target=/c true",
        "RUN <<f\n#!/bin/sh\ntrue\nf",
        "ADD --checksum={digest} {url} /f",
        "FROM image",
        "COPY --from=image /bin/busybox /b",
        "RUN --mount=type=bind,from=image,target=/m true",
        "RUN --mount=type=cache,from=image,target=/c true",
        "COPY --from=folder f /",
        "COPY --from=folder --parents ./f /",
    ],
)
def test_what_can_be_looked_at_again_is(world: World, told: Told, step: str) -> None:
    """A fetch with a checksum is seen to be needless by the second executor, the others by the first."""
    told(step)
    assert [world.build()[1] for _ in range(3)][-1] == 0


def test_a_branch_is_asked_for_again(world: World, tmp_path: Path) -> None:
    repository = Repository.make(tmp_path / "git" / "r.git")
    repository.commit({"f": "one"})
    with serving(tmp_path / "git") as server:
        world.dockerfile(f"FROM scratch\nADD http://{server.host}/r.git#main /\n")
        first = [world.build() for _ in range(3)]
        repository.commit({"f": "two"})
        changed, _ = world.build()
    assert [each[1] for each in first] == [1, 1, 1]
    assert changed != first[0][0]


@pytest.mark.parametrize("kind", ["secret", "ssh"])
def test_a_secret_or_agent_that_a_step_requires_counts_for_a_step_that_runs(
    world: World, tmp_path: Path, kind: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("1")
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(world.kanifold.home / "agent"))
        given = ("--secret", f"id=s,src={secret}", "--ssh", f"s={world.kanifold.home}/agent")
        world.dockerfile(f"FROM {world.host}/busybox\nRUN --mount=type={kind},id=s,required true\n")
        assert [world.build(*given)[1] for _ in range(3)] == [1, 1, 0]
    assert world.build()[1] == 0


@pytest.mark.parametrize("loss", ["gone", "empty"])
def test_a_lost_document_is_made_again(world: World, loss: str) -> None:
    digest = [world.build() for _ in range(2)][-1][0]
    manifest = json.loads(world.registry.manifests["app", digest][1])
    blob = world.kanifold.root / "blobs" / manifest["config"]["digest"].replace(":", "/")
    blob.unlink()
    if loss == "empty":
        blob.touch()
    assert world.build() == (digest, 1)
    assert world.build() == (digest, 0)


def test_what_cannot_be_looked_at_is_an_executors_to_tell(world: World, settled: Path) -> None:
    world.words = ["--build-context", f"files={settled}"]
    world.dockerfile("FROM scratch\nCOPY --from=files f /\n")
    assert [world.build()[1] for _ in range(2)] == [1, 0]
    (settled / "f").unlink()
    (settled / "f").symlink_to("g")
    (settled / "g").symlink_to("f")
    outcome = world.kanifold.run("build", world.context, *world.words, "-t", f"{world.host}/app:1", "--push")
    assert outcome.code == 1
    assert "Dockerfile:2" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    "words",
    [("--cache-from", "type=local,src={home}/cache"), ("--cache-to", "type=local,dest={home}/cache"),
     ("-o", "type=oci,dest={home}/out")],
    ids=["--cache-from", "--cache-to", "-o"],
)  # fmt: skip
def test_what_takes_an_executor_has_one(world: World, words: tuple[str, str]) -> None:
    world.words = [each.replace("{home}", str(world.kanifold.home)) for each in words]
    assert [world.build()[1] for _ in range(2)] == [1, 1]
