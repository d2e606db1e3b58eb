"""A node: a way to start an executor. Here it is a command; the protocol does the rest, wherever the command leads."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

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


def local(executors: int, foreseen: Callable[[], None], *, pushes: bool) -> Node:
    """This machine, with so many executors forked in advance.

    For that, this process must have a single thread still, but for the one that ``foreseen`` waits for: what it finds
    out about emulation is known to all executors.
    """
    ready = fork(executors, foreseen, pushes=pushes) if sys.platform == "linux" else []
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
