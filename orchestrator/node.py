"""A node: a way to start an executor. Here it is a command; the protocol does the rest, wherever the command leads."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import msgspec

from orchestrator.prefork import PreforkServer
from platforms import emulation
from platforms.emulation import Emulation
from platforms.errors import EnvironmentUnfit
from platforms.platform import Platform

if TYPE_CHECKING:
    from orchestrator.process import WorkerPool


class Node(msgspec.Struct, frozen=True):
    """A place where executors run. ``shares_disk``: paths of this machine mean the same to its executors."""

    name: str
    command: tuple[str, ...]
    shares_disk: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    """Added to the orchestrator's own for the command."""
    pool: WorkerPool | None = None
    """Executors that are at hand; the command is for when there are none left."""


class Placement(msgspec.Struct, frozen=True):
    """A platform, the node it is built on, and how its steps run there: ``native``, an emulator's name, or ""."""

    platform: Platform
    node: Node
    how: str
    emulation: Emulation | None = None
    """How, as it was found on this machine; None when another has to find out for itself, or nothing runs."""
    unfit: EnvironmentUnfit | None = None
    """Why none of its programs runs there: enough for a build that only copies files."""


def local(nursery: PreforkServer | None) -> Node:
    """This machine, with the executors that were ordered from ``nursery``."""
    from orchestrator.process import WorkerPool

    # -P: the user's directory is not where modules come from, whatever lies there. The packages' own place is named
    # because kanifold may run from a checkout that is not installed.
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = [home, *(each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each)]
    return Node(
        "local",
        (sys.executable, "-P", "-m", "executor"),
        shares_disk=True,
        environment=(("PYTHONPATH", os.pathsep.join(paths)),),
        pool=None if nursery is None else WorkerPool(nursery),
    )


def place(wanted: Platform, nodes: tuple[Node, ...], *, runs: bool) -> Placement:
    """The node for ``wanted``, of which programs may have to be run if ``runs``.

    Raises ``EnvironmentUnfit`` where no executor could be at all.
    """
    if not runs and sys.platform == "linux":
        return Placement(wanted, nodes[0], "")
    try:
        found = emulation.emulation(wanted)
    except EnvironmentUnfit as unfit:
        if sys.platform != "linux":
            raise
        return Placement(wanted, nodes[0], "", unfit=unfit)
    return Placement(wanted, nodes[0], str(found), found if nodes[0].shares_disk else None)
