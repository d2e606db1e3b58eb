"""``kanifold build --dry-run``: what would be built where, and why. Nodes are asked, and nothing else is done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from orchestrator import plan as planning
from orchestrator.contexts import ElsewhereError, FetchOptions
from orchestrator.nodes.node import Node
from orchestrator.nodes.placement import Placement, Placements, build_platform, place_all, refuse_unfit
from orchestrator.outputs import Push
from orchestrator.plan import BuildPlan
from orchestrator.request import BuildRequest
from orchestrator.view.stdout import print_json, print_line

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
    if plan is not None:
        refuse_unfit(request, plan, placements.each)
    request = replace(request, builder=build_platform(placements, nodes))
    plan = None if plan is None else planning.at_hand(request) or plan
    if request.progress == "rawjson":
        print_json(_as_data(request, plan, nodes, placements))
    else:
        _print(request, plan, nodes, placements)
    return 0


async def _placed(request: BuildRequest, plan: BuildPlan | None, nodes: Sequence[Node]) -> Placements:
    try:
        return await place_all(request, plan, nodes)
    finally:
        for each in nodes:
            await each.close()


def _print(request: BuildRequest, plan: BuildPlan | None, nodes: Sequence[Node], placements: Placements) -> None:
    rows = [_HEADINGS, *(_row(request, plan, each) for each in placements.each)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    for row in rows:
        print_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for skipped in placements.skipped:
        print_line(f"not used: {skipped.name}: {': '.join(filter(None, (skipped.problem.what, skipped.problem.why)))}")
    if unasked := _unasked(nodes, placements):
        print_line(f"not asked, as nothing would be built there: {', '.join(unasked)}")
    for text in _results(request):
        print_line(f"then {text}")


def _row(request: BuildRequest, plan: BuildPlan | None, placement: Placement) -> tuple[str, ...]:
    stages = () if plan is None else planning.stages(request, plan, placement.platform)
    named = [_shown(name) + (f" ({of})" if of != placement.platform else "") for name, of in stages]
    return (str(placement.platform), placement.node.name, placement.how or "-", placement.why, ", ".join(named) or "?")


def _shown(stage: str) -> str:
    return f"stage-{stage}" if stage.isdecimal() else stage


def _unasked(nodes: Sequence[Node], placements: Placements) -> list[str]:
    known = {*(each.node.name for each in placements.asked), *(each.name for each in placements.skipped)}
    return [each.name for each in nodes if each.name not in known]


def _results(request: BuildRequest) -> list[str]:
    """Return what is done when all platforms are built."""
    pushes = any(isinstance(each, Push) for each in request.outputs)
    tags = ", ".join(each.familiar() for each in request.tags)
    return [f"{'push' if pushes else 'name'} {tags}"] if tags else []


def _as_data(
    request: BuildRequest, plan: BuildPlan | None, nodes: Sequence[Node], placements: Placements
) -> dict[str, object]:
    return {
        "platforms": [
            {
                "platform": str(each.platform),
                "node": each.node.name,
                "how": each.how,
                "why": each.why,
                "others": [other.node.name for other in each.others],
                "stages": [
                    {"name": _shown(name), "platform": str(of)}
                    for name, of in (() if plan is None else planning.stages(request, plan, each.platform))
                ],
            }
            for each in placements.each
        ],
        "nodes": [
            {
                "name": each.node.name,
                "platform": str(each.description.platform),
                "processors": each.description.processors,
                "load": round(each.load, 2),
                "jobs": each.places,
            }
            for each in placements.asked
        ],
        "skipped": [
            {"name": each.name, "what": each.problem.what, "why": each.problem.why, "remedy": each.problem.remedy}
            for each in placements.skipped
        ],
        "unasked": _unasked(nodes, placements),
        "build_platform": str(request.build_platform),
        "images": [] if plan is None else [each.name for each in plan.images],
        "tags": [each.familiar() for each in request.tags],
        "push": any(isinstance(each, Push) for each in request.outputs),
    }
