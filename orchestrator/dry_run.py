"""``kanifold build --dry-run``: what would be built where, and why. Nodes are asked, and nothing else is done."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from orchestrator import jobs as making
from orchestrator import plan as planning
from orchestrator.contexts import ElsewhereError, FetchOptions
from orchestrator.nodes.node import Node
from orchestrator.nodes.placement import Placement, Placements, build_platform, place_all, refuse_unfit
from orchestrator.outputs import Push
from orchestrator.plan import BuildPlan
from orchestrator.request import BuildRequest
from orchestrator.shared_stages import SharedStages, shared_stages
from orchestrator.view.stdout import print_json, print_line
from platforms.platform import Platform

_HEADINGS: Final = ("PLATFORM", "NODE", "RUNS", "WHY", "STAGES")


def show(request: BuildRequest, plan: BuildPlan | None, nodes: Sequence[Node]) -> int:
    """Print where each platform would be built; as JSON for ``--progress rawjson``. Returns the exit status.

    ``nodes`` are closed. Raises ``KanifoldError`` as the build would before it starts.
    """
    if plan is None:
        try:
            plan = planning.read(request, request.platforms, FetchOptions(""))
        except ElsewhereError:
            plan = None  # what is elsewhere is not fetched: any program may be run
    placements = asyncio.run(_placed(request, plan, nodes))
    request = replace(request, builder=build_platform(placements, nodes))
    shared: Mapping[Platform, SharedStages] = {}
    if plan is not None:
        refuse_unfit(plan, placements.each)
        plan = planning.at_hand(request) or plan
        shared = shared_stages([(each, making.job(request, plan, each, "")) for each in placements.each], nodes)
    run = _DryRun(request, plan, nodes, placements, shared)
    if request.progress == "rawjson":
        print_json(run.data())
    else:
        for line in run.lines():
            print_line(line)
    return 0


async def _placed(request: BuildRequest, plan: BuildPlan | None, nodes: Sequence[Node]) -> Placements:
    try:
        return await place_all(request, plan, nodes)
    finally:
        for each in nodes:
            await each.close()


class _Stage(msgspec.Struct, frozen=True):
    """A stage of a platform's build, its own platform, and the node that makes it."""

    name: str
    platform: Platform
    node: str


class _DryRun(msgspec.Struct, frozen=True):
    """What a build would do. ``plan`` is None if the Dockerfile is elsewhere."""

    request: BuildRequest
    plan: BuildPlan | None
    nodes: Sequence[Node]
    placements: Placements
    shared: Mapping[Platform, SharedStages]

    def lines(self) -> list[str]:
        """Return the table and what else there is to say."""
        rows = [_HEADINGS, *(self._row(each) for each in self.placements.each)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        for each in self.placements.skipped:
            reason = ": ".join((each.problem.what, *each.problem.why.splitlines()[:1]))
            lines.append(f"not used: {each.name}: {reason}")
        if unasked := self._unasked():
            lines.append(f"not asked, as nothing would be built there: {', '.join(unasked)}")
        if self.request.tags:
            lines.append(f"then {'push' if self._pushes() else 'name'} {', '.join(self._tags())}")
        return lines

    def _row(self, placement: Placement) -> tuple[str, ...]:
        named = []
        for each in self._stages(placement):
            notes = [str(each.platform)] if each.platform != placement.platform else []
            notes += [f"on {each.node}"] if each.node != placement.node.name else []
            named.append(f"{each.name} ({', '.join(notes)})" if notes else each.name)
        how = placement.how or "-"
        return (str(placement.platform), placement.node.name, how, placement.why, ", ".join(named) or "?")

    def _stages(self, placement: Placement) -> tuple[_Stage, ...]:
        if self.plan is None:
            return ()
        shared = self.shared.get(placement.platform)
        return tuple(
            _Stage(
                f"stage-{name}" if name.isdecimal() else name,
                of,
                placement.node.name if shared is None or of != shared.builder.platform else shared.builder.node.name,
            )
            for name, of in planning.stages(self.request, self.plan, placement.platform)
        )

    def _unasked(self) -> list[str]:
        asked = (each.node.name for each in self.placements.asked)
        known = {*asked, *(each.name for each in self.placements.skipped)}
        return [each.name for each in self.nodes if each.name not in known]

    def _pushes(self) -> bool:
        return any(isinstance(each, Push) for each in self.request.outputs)

    def _tags(self) -> list[str]:
        return [each.familiar() for each in self.request.tags]

    def data(self) -> dict[str, object]:
        """Return all of it for JSON."""
        return {
            "platforms": [
                {
                    "platform": str(each.platform),
                    "node": each.node.name,
                    "how": each.how,
                    "why": each.why,
                    "others": [other.node.name for other in each.others],
                    "stages": [
                        {"name": stage.name, "platform": str(stage.platform), "node": stage.node}
                        for stage in self._stages(each)
                    ],
                }
                for each in self.placements.each
            ],
            "nodes": [
                {
                    "name": each.node.name,
                    "platform": str(each.description.platform),
                    "processors": each.description.processors,
                    "load": round(each.load, 2),
                    "jobs": each.places,
                }
                for each in self.placements.asked
            ],
            "skipped": [
                {"name": each.name, "what": each.problem.what, "why": each.problem.why, "remedy": each.problem.remedy}
                for each in self.placements.skipped
            ],
            "unasked": self._unasked(),
            "build_platform": str(self.request.build_platform),
            "images": [] if self.plan is None else [each.name for each in self.plan.images],
            "tags": self._tags(),
            "push": self._pushes(),
        }
