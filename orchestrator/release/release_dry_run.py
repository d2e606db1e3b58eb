"""``kanifold release --dry-run``: what would be built where, in which order, and what would be published then."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from orchestrator import plan as planning
from orchestrator.nodes.node import Node
from orchestrator.nodes.placement import Placements, place_all, refuse_unfit
from orchestrator.outputs import Push
from orchestrator.release.bake import bake_json
from orchestrator.release.build_order import refused
from orchestrator.release.model import ReleaseImage
from orchestrator.release.release_build import nodes_of
from orchestrator.release.release_flags import ReleasePlan
from orchestrator.request import BuildRequest
from orchestrator.view.stdout import print_json, print_line
from platforms.errors import KanifoldError

_HEADINGS: Final = ("IMAGE", "PLATFORM", "NODE", "RUNS", "WHY", "AFTER", "TESTS")


class _PlannedImage(msgspec.Struct, frozen=True):
    """An image, its request, and where its platforms would be built."""

    image: ReleaseImage
    request: BuildRequest
    placements: Placements


def show(planned: ReleasePlan, requests: Sequence[BuildRequest], nodes: Sequence[Node]) -> int:
    """Print the plan; as JSON for ``--progress rawjson``. ``nodes`` are closed. Returns the exit status.

    Raises ``KanifoldError`` as the release would before it builds.
    """
    images = asyncio.run(_placed(planned, requests, nodes))
    if requests[0].progress == "rawjson":
        print_json({"images": [_document(each, planned) for each in images]})
        return 0
    rows = [_HEADINGS, *(row for each in images for row in _rows(each))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    for row in rows:
        print_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for each in images:
        if each.request.tags and each.image.name in planned.selected.wanted:
            verb = "push" if _pushes(each.request) else "name"
            print_line(f"then {verb} {', '.join(tag.familiar() for tag in each.request.tags)}")
    return 0


async def _placed(
    planned: ReleasePlan, requests: Sequence[BuildRequest], nodes: Sequence[Node]
) -> tuple[_PlannedImage, ...]:
    found = []
    placed: dict[str, int] = {}
    try:
        for image, request in zip(planned.selected.images, requests, strict=True):
            plan = planning.at_hand(request)
            try:
                placements = await place_all(request, plan, nodes_of(nodes, request), placed)
                if plan is not None:
                    refuse_unfit(plan, placements.each)
            except KanifoldError as error:
                raise refused(image, error) from error
            found.append(_PlannedImage(image, request, placements))
    finally:
        for each in nodes:
            await each.close()
    return tuple(found)


def _rows(planned: _PlannedImage) -> list[tuple[str, ...]]:
    image = planned.image
    return [
        (
            image.name,
            str(each.platform),
            each.node.name,
            each.how or "-",
            each.why,
            ", ".join(image.depends_on) or "-",
            ", ".join(_tests(image, str(each.platform))) or "-",
        )
        for each in planned.placements.each
    ]


def _tests(image: ReleaseImage, platform: str) -> list[str]:
    return [each.name for each in image.tests if not each.platforms or platform in each.platforms]


def _pushes(request: BuildRequest) -> bool:
    return any(isinstance(each, Push) for each in request.outputs)


def _document(planned: _PlannedImage, of: ReleasePlan) -> dict[str, object]:
    image = planned.image
    return {
        "name": image.name,
        "requested": image.name in of.selected.wanted,
        "depends_on": list(image.depends_on),
        "matrix": dict(image.matrix),
        "tags": [tag.familiar() for tag in planned.request.tags],
        "push": _pushes(planned.request),
        "tests": [each.name for each in image.tests],
        "platforms": [
            {"platform": str(each.platform), "node": each.node.name, "how": each.how, "why": each.why}
            for each in planned.placements.each
        ],
        "target": bake_json.target(image),
    }
