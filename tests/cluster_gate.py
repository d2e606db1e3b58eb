"""Builds in a test's cluster that are stopped at a step until the test lets them go on."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator

import pytest
from cluster import Cluster
from cluster_builds import Farm
from registry_server import Asked, Said, served


class Gate:
    """A step that says when it has begun, and waits until it may end."""

    def __init__(self, address: str) -> None:
        self.begun = 0
        self._open = threading.Event()
        self._changed = threading.Condition()
        self._address = address

    def __call__(self, asked: Asked) -> Said:
        if asked.path == "/begun":
            with self._changed:
                self.begun += 1
                self._changed.notify_all()
        elif not self._open.is_set():
            return Said(404)
        return Said(200)

    @contextlib.contextmanager
    def serve(self) -> Iterator[Gate]:
        with served(self, self._address) as server:
            self.dockerfile = (
                f"FROM {{base}}\nRUN wget -qO- {server.url}/begun; "
                f"until wget -qO- {server.url}/open 2>/dev/null; do sleep 0.2; done; echo is''finished\n"
            )
            yield self

    def wait(self, times: int = 1) -> None:
        """Wait until the step has begun so often."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.begun >= times, 100), "the step does not begin"

    def open(self) -> None:
        """Let the step end, now and when it is run again."""
        self._open.set()


@pytest.fixture
def gate(cluster: Cluster) -> Iterator[Gate]:
    with Gate(cluster.address(1)).serve() as served_gate:
        yield served_gate


@contextlib.contextmanager
def building(farm: Farm, gate: Gate, *arguments: str, **options: str) -> Iterator[subprocess.Popen[str]]:
    """A build whose step has begun, once more than before."""
    begun = gate.begun
    process = farm.start(gate.dockerfile, *arguments, **options)
    try:
        gate.wait(begun + 1)
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str]:
    """Wait for the end of a build; return its status and what it said."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out + err
