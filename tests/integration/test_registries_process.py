"""The process that speaks to registries for the orchestrator: what becomes of a build when something befalls it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from conftest import Kanifold
from registry_server import Asked, MemoryRegistry, Said, Served, served

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


def speakers(pid: int) -> list[int]:
    """The processes of the build ``pid`` that speak to registries, whoever has forked them."""
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
        [speaker] = speakers(process.pid)
        yield process, speaker


def test_that_it_dies_is_an_error(waiting: Waiting) -> None:
    process, speaker = waiting
    os.kill(speaker, signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert "the process that does has died" in err


def test_it_ends_with_the_build_whatever_it_waits_for(waiting: Waiting) -> None:
    process, speaker = waiting
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert time.monotonic() - began < 2
    assert not Path(f"/proc/{speaker}").exists()


def test_it_ends_when_the_build_is_killed(waiting: Waiting) -> None:
    process, speaker = waiting
    with os.fdopen(os.pidfd_open(speaker)) as ended:
        process.kill()
        assert select.select([ended], [], [], 5)[0], "it goes on without a build"
