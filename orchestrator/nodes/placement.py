"""Where each platform of a build is built: natively if that can be, else emulated, on the first node that will do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import msgspec

from orchestrator.nodes.node import Description, Node, Support
from orchestrator.outputs import FilesOutput
from orchestrator.plan import BuildPlan
from orchestrator.request import BuildRequest
from platforms.errors import EnvironmentUnfit
from platforms.platform import Platform


class Placement(msgspec.Struct, frozen=True):
    """A platform, the node it is built on, and how its steps run there."""

    platform: Platform
    node: Node
    support: Support = Support()
    shares_disk: bool = False

    @property
    def how(self) -> str:
        """``native``, an emulator's name, or "" when that is not known or nothing is run."""
        return self.support.how


def place(platform: Platform, nodes: Sequence[tuple[Node, Description]]) -> Placement:
    """The node for ``platform``: the first that runs it natively, else that emulates it, else that may yet run it."""
    node, description = min(nodes, key=lambda each: _rank(each[1].runs(platform)))
    return Placement(platform, node, description.runs(platform), description.shares_disk)


def _rank(support: Support) -> int:
    if support.unfit is not None:
        return 3
    if not support.how:
        return 2
    return 0 if support.how == "native" else 1


async def place_all(request: BuildRequest, plan: BuildPlan | None, nodes: Sequence[Node]) -> tuple[Placement, ...]:
    """A node of ``nodes`` for each platform. They are asked about platforms only if some of their programs may be run.

    Raises ``KanifoldError`` when a node can have no executor.
    """
    platforms = request.platforms if plan is None or plan.may_run else ()
    described = await asyncio.gather(*(each.describe(platforms) for each in nodes))
    choices = tuple(zip(nodes, described, strict=True))
    return tuple(place(each, choices) for each in request.platforms)


def refuse_unfit(request: BuildRequest, plan: BuildPlan, placements: Iterable[Placement]) -> None:
    """Raise ``EnvironmentUnfit`` when a platform's programs would have to run that cannot, before anything is done."""
    for each in placements:
        if each.support.unfit is not None and each.platform in plan.running:
            raise each.support.unfit
        if each.platform.os == "windows" and not all(isinstance(output, FilesOutput) for output in request.outputs):
            raise EnvironmentUnfit(
                f"cannot make images for {each.platform}",
                why="layers of Windows images have a form of their own",
                remedy="have the files without the image: -o type=local,dest=DIR",
            )
