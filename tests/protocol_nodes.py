"""Builds on nodes whose executor is any command."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from executor import protocol
from orchestrator import command, registries
from orchestrator.nodes.command_node import CommandNode
from orchestrator.nodes.node import Node
from orchestrator.request import BuildRequest
from orchestrator.results import BuildResult
from orchestrator.view import events

ROOT = Path(__file__).resolve().parents[1]
MARK = "KANIFOLD_TEST_MARK"
"""An environment variable by which a test finds the processes that it started."""


@dataclass(frozen=True)
class Marked:
    """A value of ``MARK``, and the processes that have it."""

    value: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def environment(self) -> dict[str, str]:
        return {MARK: self.value}

    def processes(self) -> list[int]:
        """Return the ids of all processes with the mark, except zombies."""
        wanted = f"{MARK}={self.value}".encode()
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                try:
                    environment = Path(f"/proc/{name}/environ").read_bytes()
                except OSError:
                    continue
                if wanted in environment.split(b"\0"):
                    found.append(int(name))
        return found

    def signal(self, number: signal.Signals) -> list[int]:
        """Send a signal to all of them, as far as they have not ended with one another; returns their ids."""
        found = self.processes()
        for each in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, number)
        return found

    def wait_until_gone(self, seconds: float) -> list[int]:
        """Wait up to ``seconds`` for the processes to end; returns those that have not."""
        end = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.01)  # /proc announces nothing
        return left


def liar(behaviour: str, mark: Marked, *detail: str) -> CommandNode:
    """Return a node whose executor is ``lying_executor.py``."""
    program = str(Path(__file__).with_name("lying_executor.py"))
    given = {**mark.environment, "KANIFOLD_TEST_PROTOCOL": str(protocol.VERSION)}
    return CommandNode("elsewhere", (sys.executable, program, behaviour, *detail), tuple(given.items()))


def remote(store: Path, mark: Marked, **environment: str) -> CommandNode:
    """Return a node like one on another machine: a real executor with its own store and no shared disk."""
    given: Mapping[str, str] = {
        "KANIFOLD_ROOT": str(store), "PYTHONPATH": str(ROOT), **mark.environment, **environment,
    }  # fmt: skip
    return CommandNode("elsewhere", (sys.executable, "-P", "-m", "executor"), tuple(given.items()))


def apart(hidden: Path, store: Path, record: Path, mark: Marked) -> CommandNode:
    """A node that shares nothing: a real executor, with a store of its own, where ``hidden`` is an empty file system.

    ``record`` is a file that gets all bytes that the executor is sent.
    """
    unshare = ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--map-root-user", "--mount")
    inside = 'mount -t tmpfs none "$1" && shift && exec "$@"'
    outside = 'record=$1 && shift && tee -- "$record" | "$@"'
    executor = (sys.executable, "-P", "-m", "executor")
    command = (
        "sh", "-c", outside, "sh", str(record), *unshare, "sh", "-c", inside, "sh", str(hidden), *executor,
    )  # fmt: skip
    given = {"KANIFOLD_ROOT": str(store), "HOME": str(store), "PYTHONPATH": str(ROOT), **mark.environment}
    return CommandNode("elsewhere", command, tuple(given.items()))


def named(name: str, node: CommandNode) -> CommandNode:
    """Return ``node`` with another name."""
    return CommandNode(name, node._command, node._environment)


def build(request: BuildRequest, node: Node, seen: list[events.Event] | None = None) -> BuildResult:
    """As ``build_on``, with one node."""
    return build_on(request, (node,), seen)


def build_on(request: BuildRequest, nodes: tuple[Node, ...], seen: list[events.Event] | None = None) -> BuildResult:
    """Build ``request`` on ``nodes``. Raises the errors that the command would show."""
    told = seen if seen is not None else []
    return asyncio.run(command.interruptible(command.run(request, None, nodes, registries.direct, told.append)))
