"""The process that asks registries for the orchestrator: what becomes of a build when something befalls it."""

from __future__ import annotations

import dataclasses
import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from conftest import Kanifold
from registry_server import Asked, MemoryRegistry, Said, Served, served

from executor.image.mediatypes import OCI_MANIFEST

Context = Callable[[Mapping[str, str | bytes]], Path]
Waiting = tuple[subprocess.Popen[str], int]


@pytest.fixture
def asked() -> threading.Event:
    """Set when the registry is asked."""
    return threading.Event()


@pytest.fixture
def silent(asked: threading.Event) -> Iterator[Served]:
    """A registry that takes a question and says nothing for as long as the test lasts."""
    over = threading.Event()

    def never(_: Asked) -> Said:
        asked.set()
        over.wait(60)
        return Said(500)

    with served(MemoryRegistry(never)) as server:
        yield server
        over.set()


def registry_processes(pid: int) -> list[int]:
    """The processes of the build ``pid`` that ask registries, whoever has forked them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text() == "kanifold-http\n" and pid in ancestors(int(path.parent.name)):
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended
    return found


def ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        yield pid


@pytest.fixture
def waiting(kanifold: Kanifold, context: Context, silent: Served, asked: threading.Event) -> Iterator[Waiting]:
    """A build whose registry has been asked and does not answer, and the process that waits."""
    folder = context({"Dockerfile": f"FROM {silent.host}/base\n"})
    with kanifold.start("build", folder, "-t", f"{silent.host}/app", "--push") as process:
        assert asked.wait(30)
        [asking] = registry_processes(process.pid)
        yield process, asking


def test_that_it_dies_is_an_error(waiting: Waiting) -> None:
    process, asking = waiting
    os.kill(asking, signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert "the process that does has died" in err


def test_it_ends_with_the_build_whatever_it_waits_for(waiting: Waiting) -> None:
    process, asking = waiting
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert not Path(f"/proc/{asking}").exists()


def test_it_ends_when_the_build_is_killed(waiting: Waiting) -> None:
    process, asking = waiting
    with os.fdopen(os.pidfd_open(asking)) as ended:
        process.kill()
        assert select.select([ended], [], [], 5)[0], "it goes on without a build"


@pytest.mark.parametrize("files", range(12, 26, 2))
def test_too_few_descriptors_are_told(kanifold: Kanifold, context: Context, files: int) -> None:
    """Whoever runs out of them says so, and nobody waits for what could not be started."""
    limited = dataclasses.replace(kanifold, command=("prlimit", f"--nofile={files}", *kanifold.command))
    folder = context({"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
    outcome = limited.run("build", folder, "--platform", "linux/amd64,linux/arm64,linux/386")
    assert outcome.code in (1, 3)
    assert "Too many open files" in outcome.err
    assert "Traceback" not in outcome.err


def test_too_few_processes_are_told(kanifold_as_user: Kanifold) -> None:
    folder = kanifold_as_user.folder("context")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    limited = dataclasses.replace(kanifold_as_user, command=("prlimit", "--nproc=1", *kanifold_as_user.command))
    outcome = limited.run("build", folder)
    assert outcome.code == 3
    assert "Traceback" not in outcome.err
    assert "cannot start executors: Resource temporarily unavailable" in outcome.err


CLOSED = "Basic realm=closed"


@pytest.mark.parametrize(
    "config",
    [b"\xff", b'{"auths": {"HOST": {"username": "u", "password": "\\ud800"}}}'],
    ids=["no UTF-8", "half of a surrogate pair"],
)
def test_credentials_that_are_no_text_are_told(kanifold: Kanifold, context: Context, config: bytes) -> None:
    with served(lambda _: Said(401, {"WWW-Authenticate": CLOSED})) as server:
        folder = context({"Dockerfile": f"FROM {server.host}/base\n"})
        given = os.fsdecode(config.replace(b"HOST", server.host.encode()))
        outcome = kanifold.run("build", folder, DOCKER_AUTH_CONFIG=given)
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    assert "cannot use the credentials file $DOCKER_AUTH_CONFIG" in outcome.err


@pytest.mark.parametrize("field", ['"annotations": {"a": "\\ud800"},', '"size": 36893488147419103232,'])
def test_a_manifest_that_cannot_be_passed_on_is_told(kanifold: Kanifold, context: Context, field: str) -> None:
    config = f'{{{field} "mediaType": "application/vnd.oci.image.config.v1+json", "digest": "sha256:{"0" * 64}"'
    size = "" if "size" in field else ', "size": 2'
    manifest = (
        f'{{"schemaVersion": 2, "mediaType": "{OCI_MANIFEST}", "config": {config}{size}}}, "layers": []}}'
    ).encode()
    registry = MemoryRegistry()
    registry.add_manifest("base", "latest", OCI_MANIFEST, manifest)
    with served(registry) as server:
        outcome = kanifold.run("build", context({"Dockerfile": f"FROM {server.host}/base\n"}))
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    assert "malformed manifest" in outcome.err
