"""A node: a way to start an executor. Here it is a command; the protocol does the rest, wherever the command leads."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

import msgspec

from orchestrator.process import Fork, fork
from platforms import emulation
from platforms.errors import EnvironmentUnfit
from platforms.platform import Platform


class Node(msgspec.Struct, frozen=True):
    """A place where executors run. ``shares_disk``: paths of this machine mean the same to its executors."""

    name: str
    command: tuple[str, ...]
    shares_disk: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    """Added to the orchestrator's own for the command."""
    ready: list[Fork] = msgspec.field(default_factory=list)
    """Executors that wait for a job already; the command is for when there are none left."""


class Placement(msgspec.Struct, frozen=True):
    """A platform, the node it is built on, and how its steps run there: ``native`` or the emulator's name."""

    platform: Platform
    node: Node
    how: str
    unfit: EnvironmentUnfit | None = None
    """Why none of its programs runs there: enough for a build that only copies files."""


def local(platforms: Sequence[Platform] = (), jobs: int = 0, *, pushes: bool = False) -> Node:
    """This machine, with executors for ``platforms`` (``jobs`` at once, 0: all) forked in advance.

    For that, this process must have a single thread still. What is found out about emulation before is known to all.
    """
    ready: list[Fork] = []
    if platforms and sys.platform == "linux":
        for each in platforms:
            with contextlib.suppress(EnvironmentUnfit):
                emulation.emulation(each)
        ready = fork(min(len(platforms), jobs or len(platforms)), pushes=pushes)
    # -P: the user's directory is not where modules come from, whatever lies there. The packages' own place is named
    # because kanifold may run from a checkout that is not installed.
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = [home, *(each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each)]
    return Node(
        "local",
        (sys.executable, "-P", "-m", "executor"),
        shares_disk=True,
        environment=(("PYTHONPATH", os.pathsep.join(paths)),),
        ready=ready,
    )


def place(wanted: Platform, nodes: tuple[Node, ...]) -> Placement:
    """The node for ``wanted``. Raises ``EnvironmentUnfit`` where no executor could be at all."""
    try:
        return Placement(wanted, nodes[0], str(emulation.emulation(wanted)))
    except EnvironmentUnfit as unfit:
        if sys.platform != "linux":
            raise
        return Placement(wanted, nodes[0], "", unfit)
