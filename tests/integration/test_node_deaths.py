"""Nodes that die at random moments: an index that is right, or a clear failure; no orphan, and no tag that moved.

One Dockerfile is built for three platforms on three hosts behind a real sshd. At a random moment one of them is cut
off, loses its sshd, its executors or all of its processes, or has no disk space left. An orchestrator is killed, too.

KANIFOLD_DEATH_ROUNDS (2; 25 with the tests marked slow) says how often, KANIFOLD_DEATH_SEED (1) when and what.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import TEST_TIMEOUT, Base
from hosts import Host, Hosts
from msgspec.structs import replace
from protocol_nodes import ROOT, Marked, build_on
from registry_server import MemoryRegistry, served

from executor import protocol
from executor.protocol import BuildOptions
from executor.registry import reference
from executor.registry.registry_settings import RegistrySettings
from orchestrator import heartbeat
from orchestrator.nodes.inventory import NodeEntry
from orchestrator.nodes.local_node import LocalNode
from orchestrator.nodes.ssh_node import SSHNode
from orchestrator.outputs import OciLayout, Push
from orchestrator.request import BuildRequest
from orchestrator.view import events
from platforms.errors import KanifoldError
from platforms.parsing import parse

SEED = int(os.environ.get("KANIFOLD_DEATH_SEED", "1"))
INTERVAL = 0.4
"""Seconds between pings: silence of 4.8 seconds ends a connection."""
PLATFORMS = ("linux/amd64", "linux/386", "linux/arm64")
DOCKERFILE = """\
FROM {base} AS made
ARG ROUND
RUN echo "$ROUND" > /round; seq 1 20000 > /numbers
RUN sleep 0.3; md5sum /round /numbers > /sums
FROM {base}
COPY --from=made /round /numbers /sums /
RUN uname -m > /machine; sleep 0.3
COPY file /
"""


@dataclass
class World:
    """Hosts, a registry that they reach, and a build on them."""

    hosts: Hosts
    memory: MemoryRegistry
    registry: str
    request: BuildRequest
    mark: Marked

    @property
    def nodes(self) -> tuple[SSHNode, ...]:
        return tuple(SSHNode(NodeEntry(each.name, each.url)) for each in self.hosts.hosts)

    def asked(self, number: int) -> BuildRequest:
        arguments = (*self.request.build_args, ("ROUND", f"{self.mark.value} {number}"))
        return replace(self.request, build_args=arguments)

    def right(self, number: int, place: Path) -> str:
        """Return the digest of the index that this machine makes."""
        local = replace(self.asked(number), outputs=(OciLayout(str(place / "right")),), tags=())
        options = replace(local.options, root=str(place / "own-store"))
        return build_on(replace(local, options=options), (LocalNode(None),)).root.digest

    def tag(self) -> str:
        """Return the digest that the tag has; "" if there is none."""
        found = self.memory.manifests.get(("app", "1"))
        return "" if found is None else f"sha256:{hashlib.sha256(found[1]).hexdigest()}"

    def wait_until_gone(self) -> dict[str, object]:
        """Return what is left of a build, on this machine and on the hosts, after some time."""
        left: dict[str, object] = {each.name: each.wait_until_idle(40) for each in self.hosts.hosts}
        end = time.monotonic() + 5
        while (here := self.left_here()) and time.monotonic() < end:
            time.sleep(0.05)  # /proc announces nothing
        left["here"] = here
        return {name: found for name, found in left.items() if found}

    def left_here(self) -> list[str]:
        """Return what is left on this machine, but for shared connections, which last some time, and sshd of hosts."""
        ours = [command_line(pid) for pid in self.mark.processes()]
        return [line for line in ours if "[mux]" not in line and "sshd" not in line]


def command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


@pytest.fixture
def world(
    hosts: Hosts,
    busybox: Base,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    mark = Marked()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("KANIFOLD_ROOT", raising=False)
    monkeypatch.setattr(heartbeat, "INTERVAL", INTERVAL)
    for name, disk in (("one", ""), ("two", "160m"), ("three", "")):
        hosts.add(name, user="builder" if disk else "root", disk=disk)
    for name, value in {**hosts.environment, **mark.environment}.items():
        monkeypatch.setenv(name, value)
    memory = MemoryRegistry()
    memory.add_layout("base", busybox.layout)
    with served(memory, hosts.address) as server:
        context = tmp_path / "context"
        context.mkdir()
        (context / "Dockerfile").write_text(DOCKERFILE.format(base=f"{server.host}/base"))
        (context / "file").write_text("of the context\n" * 1000)
        request = BuildRequest(
            context=str(context),
            platforms=tuple(map(parse, PLATFORMS)),
            outputs=(Push(),),
            tags=(reference.parse(f"{server.host}/app:1"),),
            build_args=(("SOURCE_DATE_EPOCH", "1"),),
            options=BuildOptions(
                root=str(tmp_path / "store"), registries=RegistrySettings(insecure=frozenset({server.host}))
            ),
        )
        yield World(hosts, memory, server.host, request, mark)


def cut(host: Host) -> Callable[[], None]:
    host.cut()
    return host.restore


def kill_sshd(host: Host) -> Callable[[], None]:
    host.kill_sshd()
    return host.start_sshd


def kill_all(host: Host) -> Callable[[], None]:
    kill(host, host.processes())
    return lambda: None


def kill_executors(host: Host) -> Callable[[], None]:
    kill(host, [pid for pid, line in host.processes().items() if "python" in line or "kanifold" in line])
    return lambda: None


def kill(host: Host, pids: object) -> None:
    host.run("sh", "-c", 'for each; do kill -9 "$each"; done; :', "sh", *map(str, pids))  # type: ignore[call-overload]


def fill_disk(host: Host) -> Callable[[], None]:
    file = host.home / "filler"
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as filler:
        while True:
            filler.write(b"\0" * (1 << 20))
    return file.unlink


DEATHS = (cut, kill_sshd, kill_all, kill_executors, fill_disk)


@pytest.mark.parametrize("rounds", [1, pytest.param(25, marks=pytest.mark.slow)])
def test_a_node_that_dies_at_any_moment_harms_nothing(world: World, tmp_path: Path, rounds: int) -> None:
    chance = random.Random(SEED)
    rounds = int(os.environ.get("KANIFOLD_DEATH_ROUNDS", rounds))
    build_on(world.asked(-2), world.nodes)  # what is sent once is there
    began = time.monotonic()
    before = build_on(world.asked(-1), world.nodes).root.digest
    usual = time.monotonic() - began
    assert world.tag() == before
    assert world.wait_until_gone() == {}
    struck = moved = failed = 0
    for number in range(rounds):
        signal.alarm(TEST_TIMEOUT)  # a round is what may not hang
        place = tmp_path / f"round{number}"
        place.mkdir()
        right = world.right(number, place)
        death = DEATHS[number % len(DEATHS)] if rounds >= len(DEATHS) else chance.choice(DEATHS[:4])
        host = world.hosts.hosts[1] if death is fill_disk else chance.choice(world.hosts.hosts)
        moment = chance.uniform(0, usual)
        undo: list[Callable[[], None]] = []
        timer = threading.Timer(moment, lambda: undo.append(death(host)))  # noqa: B023 - joined below
        said = f"round {number}: {death.__name__} of {host.name} after {moment:.2f} s"
        seen: list[events.Event] = []
        timer.start()
        error = None
        try:
            built = build_on(world.asked(number), world.nodes, seen).root.digest
        except KanifoldError as caught:
            error, built = caught, ""
        late = timer.is_alive()
        timer.cancel()
        timer.join()
        struck += not late
        if error is None:
            assert built == right, said
            assert world.tag() == right, said
            before = right
        else:
            failed += 1
            assert error.problem.what, said
            assert world.tag() == before, f"{said}: {error}"
        moved += any(isinstance(each, events.PlatformMoved) for each in seen)
        print(said, "late" if late else "", error or "built", file=sys.stderr)
        if death is cut and undo:  # there is nobody who could tell the executors
            # Or a minute after that, what was still waiting to be told what to run.
            assert executors_left(host, INTERVAL * heartbeat.SILENT_INTERVALS + 66) == [], said
        for each in undo:
            each()
        assert world.wait_until_gone() == {}, said
    print(f"{rounds} rounds, {struck} in time, {moved} with a move, {failed} failed", file=sys.stderr)
    if rounds > 20:
        assert struck > rounds / 2
        assert moved > rounds / 4
    assert failed <= rounds / 4, "almost every build has a node left that can do it"


def executors_left(host: Host, seconds: float) -> list[str]:
    """Return what is left on ``host``, but for sessions of sshd, after at most ``seconds``."""
    end = time.monotonic() + seconds
    while left := [line for line in host.processes().values() if not line.startswith("sshd")]:
        if time.monotonic() > end:
            return left
        time.sleep(0.05)  # /proc announces nothing
    return []


SLEEPING = "FROM {base}\nRUN echo sleeping && exec sleep 600\n"


@pytest.mark.parametrize("cut_off", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_nothing_is_left_of_an_orchestrator_that_is_killed(world: World, tmp_path: Path, cut_off: bool) -> None:
    """The far side hears of the end by its pipes, or, where the network is cut as well, by the silence."""
    (tmp_path / "context" / "Dockerfile").write_text(SLEEPING.format(base=f"{world.registry}/base"))
    command = [
        sys.executable, "-P", "-m", "orchestrator", "build", str(tmp_path / "context"), "--progress", "plain",
        "--platform", "linux/amd64,linux/386,linux/arm64", "--insecure-registry", world.registry,
        "-t", f"{world.registry}/app:1", "--push", "--root", str(tmp_path / "store"),
        *(word for host in world.hosts.hosts for word in ("--node", f"{host.name}={host.url}")),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.rstrip().endswith("sleeping") and "RUN" not in line)
        if cut_off:
            for host in world.hosts.hosts:
                host.cut()
        process.kill()
    assert process.returncode == -signal.SIGKILL
    for host in world.hosts.hosts:
        assert executors_left(host, protocol.PATIENCE + 10 if cut_off else 5) == []
        if cut_off:
            host.restore()
    assert world.wait_until_gone() == {}
    assert world.tag() == ""
