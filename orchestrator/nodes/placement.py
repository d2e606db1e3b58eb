"""Where each platform of a build is built: natively if that can be, else emulated, on the least loaded node.

This machine builds what it runs natively, as long as it has the processors; then nobody else is asked. Other nodes are
asked all at once; one that does not answer is left out, with a warning, unless the user wants a platform built there.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from orchestrator.nodes.node import ContextRoutes, Description, Node, Support
from orchestrator.plan import BuildPlan
from orchestrator.request import BuildRequest
from platforms import binfmt, host
from platforms.errors import EnvironmentUnfit, KanifoldError, Problem
from platforms.platform import Platform

if TYPE_CHECKING:
    from orchestrator.nodes.inventory import NodeEntry

LOCAL: Final = "local"
PATIENCE: Final = 300.0
"""Seconds that a node may take to describe itself: kanifold may have to be sent there first, over a slow link. One that
is down, or silent after the login, is given up sooner, by its own rules."""


def declared_name(node: str) -> str:
    """Return the name in the inventory of ``node``: a cluster is a node of its own for each architecture,
    ``NAME/ARCHITECTURE``."""
    return node.partition("/")[0]


class Candidate(msgspec.Struct, frozen=True):
    """A node that has described itself, and what the user has declared of it."""

    node: Node
    description: Description
    entry: NodeEntry | None = None
    load: float = 0.0
    """The average number of runnable processes, without jobs of this build."""

    @property
    def places(self) -> int:
        """How many jobs it has processors for, or as many as the user has declared; at least 1."""
        declared = 0 if self.entry is None else self.entry.max_jobs
        return declared or (sys.maxsize if self.description.scheduled else max(1, self.description.processors))

    @property
    def most(self) -> int:
        """How many jobs run on it at a time; 0 for any number: on this machine and in a cluster, if the user has not
        said."""
        declared = 0 if self.entry is None else self.entry.max_jobs
        return declared if self.description.shares_disk or self.description.scheduled else declared or self.places


class Placement(msgspec.Struct, frozen=True):
    """A platform, the node it is built on, and how its steps run there."""

    platform: Platform
    node: Node
    support: Support = Support()
    shares_disk: bool = False
    most: int = 0
    """How many jobs run on the node at a time; 0 for any number."""
    contexts: ContextRoutes | None = None
    """As in its description."""
    host: Platform | None = None
    """The platform of the node itself; None if it is not known."""
    why: str = ""
    """Why it is built there, for display."""
    others: tuple[Placement, ...] = ()
    """Where else it can be built, the best first."""

    @property
    def how(self) -> str:
        """``native``, an emulator's name, or "" when that is not known or nothing is run."""
        return self.support.how


class Skipped(msgspec.Struct, frozen=True):
    """A node that cannot be used: it has not answered, or cannot run steps."""

    name: str
    problem: Problem

    @property
    def warning(self) -> Problem:
        """The warning about it."""
        return replace(self.problem, what=f"node {self.name} is not used: {self.problem.what}")


class Placements(msgspec.Struct, frozen=True):
    """The nodes of a build."""

    each: tuple[Placement, ...]
    """In the order of the platforms."""
    skipped: tuple[Skipped, ...] = ()
    asked: tuple[Candidate, ...] = ()
    """The nodes that have described themselves."""


async def place_all(
    request: BuildRequest, plan: BuildPlan | None, nodes: Sequence[Node], placed: dict[str, int] | None = None
) -> Placements:
    """Return a node of ``nodes`` for each platform. ``placed`` has the jobs of other builds by node; these are added.

    They are asked about platforms only if some of their programs may be run. Raises ``KanifoldError`` when no node can
    have an executor, or one that the user wants cannot.
    """
    running = request.platforms if plan is None or plan.may_run else ()
    own = frozenset(running) if plan is None else plan.running
    return await _Placing(request, running, own, nodes, {} if placed is None else placed).place_all()


class _Placing(msgspec.Struct, frozen=True):
    """The placement of a build."""

    request: BuildRequest
    running: tuple[Platform, ...]
    """The platforms whose programs may be run, if only by triggers of base images."""
    own: frozenset[Platform]
    """Those whose programs the Dockerfile runs itself; for others it only copies what another platform makes."""
    nodes: Sequence[Node]
    given: dict[str, int]
    """The number of jobs that were placed on a node, by name."""

    async def place_all(self) -> Placements:
        if len(self.nodes) == 1:
            (only,) = self.nodes
            found = self._with_image(await only.describe(self.running))
            candidate = Candidate(only, found, self._entry(only))
            return self._placed([candidate], [])
        here = [each for each in self.nodes if each.name == LOCAL and self._may_matter(each, self.request.platforms)]
        candidates, skipped = await self._ask(here)
        rest = self._unsettled(candidates)
        if rest or not candidates:
            others = [each for each in self.nodes if each.name != LOCAL and self._may_matter(each, rest)]
            answered, silent = await self._ask(others)
            candidates += answered
            skipped += silent
        if not candidates:
            raise _nobody(skipped)
        return self._placed([each for each in candidates if not each.description.absent] or candidates, skipped)

    def _entry(self, node: Node) -> NodeEntry | None:
        return None if self.request.nodes is None else self.request.nodes.entry(declared_name(node.name))

    def _forced(self, platform: Platform) -> str:
        """Return the name of the declared node that the user wants ``platform`` to be built on; "" for any."""
        return "" if self.request.nodes is None else dict(self.request.nodes.forced).get(platform, "")

    def _is_forced(self, node: Node) -> bool:
        return any(self._forced(each) == declared_name(node.name) for each in self.request.platforms)

    def _may_matter(self, node: Node, platforms: Sequence[Platform]) -> bool:
        """Whether one of ``platforms`` may be built on ``node``."""
        return any(self._may_build(node, each) for each in platforms)

    def _may_build(self, node: Node, platform: Platform) -> bool:
        """Whether ``platform`` may be built on ``node``, by what the user has declared."""
        forced, entry = self._forced(platform), self._entry(node)
        return forced == declared_name(node.name) if forced else entry is None or entry.takes(platform)

    def _unsettled(self, here: Sequence[Candidate]) -> tuple[Platform, ...]:
        """Return the platforms that another node than this machine may be better for."""
        if not here:
            return self.request.platforms
        local = here[0]
        forced = [each for each in self.request.platforms if self._forced(each) == LOCAL]
        settled = [
            each
            for each in self.request.platforms
            if self._may_build(local.node, each)
            and (each not in self.own or local.description.runs(each).how == "native")
        ]
        if self.running:  # copying files does not take a processor long
            settled = settled[: max(0, local.places - self.given.get(LOCAL, 0))]
        return tuple(each for each in self.request.platforms if each not in (*settled, *forced))

    async def _ask(self, nodes: Sequence[Node]) -> tuple[list[Candidate], list[Skipped]]:
        """Return the nodes that can be used, and those that cannot.

        Raises the error of a node that the user wants a platform to be built on.
        """
        described = await asyncio.gather(*(self._describe(each) for each in nodes), return_exceptions=True)
        candidates, skipped = [], []
        for node, found in zip(nodes, described, strict=True):
            if isinstance(found, Description) and self.running and not found.runs_steps and not self._is_forced(node):
                skipped.append(Skipped(node.name, without_isolation(node.name).problem))
            elif isinstance(found, Description):
                load = os.getloadavg()[0] if found.shares_disk else found.load
                candidates.append(Candidate(node, found, self._entry(node), load))
            elif isinstance(found, KanifoldError) and not self._is_forced(node):
                skipped.append(Skipped(node.name, found.problem))
            else:
                raise found
        return candidates, skipped

    async def _describe(self, node: Node) -> Description:
        try:
            async with asyncio.timeout(PATIENCE):
                return self._with_image(await node.describe(self.running))
        except TimeoutError as error:
            raise EnvironmentUnfit(
                f"node {node.name} does not answer",
                why=f"there was no executor after {PATIENCE:.0f} seconds",
                remedy=f"kanifold node check {node.name} waits longer",
            ) from error

    def _with_image(self, description: Description) -> Description:
        """Return ``description`` with the emulators that an executor elsewhere fetches (``--emulator-image``)."""
        if description.shares_disk or not self.request.options.emulator_image:
            return description
        foreign = {*binfmt.QEMU} - {description.platform.architecture}
        support = tuple(
            (each, Support("emulated") if found.unfit is not None and each.architecture in foreign else found)
            for each, found in description.support
        )
        return replace(description, support=support)

    def _placed(self, candidates: Sequence[Candidate], skipped: Sequence[Skipped]) -> Placements:
        given = self.given
        found = []
        for platform in self.request.platforms:
            placement = self._place(platform, candidates, given, skipped)
            given[placement.node.name] = given.get(placement.node.name, 0) + 1
            found.append(placement)
        return Placements(tuple(found), tuple(skipped), tuple(candidates))

    def _place(
        self, platform: Platform, candidates: Sequence[Candidate], given: dict[str, int], skipped: Sequence[Skipped]
    ) -> Placement:
        """Return the node for ``platform`` while others of the build are ``given`` to nodes, by name and number."""
        usable = [each for each in candidates if self._may_build(each.node, platform)]
        if not usable:
            raise _no_node(platform, candidates, skipped)
        foreign = platform not in self.own
        ranked = sorted(usable, key=lambda each: _order(each, platform, given.get(each.node.name, 0), foreign=foreign))
        best, *others = (_placement(each, platform) for each in ranked)
        if best.support.unfit is not None and len(candidates) + len(skipped) > 1:
            best = replace(best, support=Support(unfit=_no_node(platform, candidates, skipped)))
        kept = tuple(each for each in others if each.support.unfit is None)
        return replace(best, others=kept, why=self._why(best, kept, skipped))

    def _why(self, best: Placement, others: Sequence[Placement], skipped: Sequence[Skipped]) -> str:
        if self._forced(best.platform):
            return "as --platform says"
        if len(self.nodes) == 1:
            return "the only node"
        if best.platform not in self.own:
            return "no program of it is run"
        if best.how == "native":
            rivals = [each for each in others if each.how == "native"]
            return "runs it natively" + (f", before {len(rivals)} more" if rivals else "")
        without = f"; {', '.join(each.name for each in skipped)} cannot be used" if skipped else ""
        return f"no node runs it natively{without}"


def build_platform(placements: Placements, nodes: Iterable[Node]) -> Platform:
    """Return BUILDPLATFORM of a build on ``nodes``: this machine's platform if one of them runs its programs natively,
    as in a build without other nodes; else that of the first platform's node."""
    own = host.default_platform()
    hosts = {each.node.name: each.description.platform for each in placements.asked}
    here = sys.platform == "linux" and any(each.name == LOCAL for each in nodes)
    if here or any(each.architecture == own.architecture for each in hosts.values()):
        return own
    return host.without_level(hosts[placements.each[0].node.name])


def place(platform: Platform, nodes: Sequence[tuple[Node, Description]]) -> Placement:
    """The node for ``platform``: the first that runs it natively, else that emulates it, else that may yet run it."""
    return min((_placement(Candidate(*each), platform) for each in nodes), key=lambda each: _rank(each.support))


def _placement(candidate: Candidate, platform: Platform) -> Placement:
    description = candidate.description
    return Placement(
        platform,
        candidate.node,
        description.runs(platform),
        description.shares_disk,
        candidate.most,
        description.contexts,
        host=description.platform,
    )


def _order(
    candidate: Candidate, platform: Platform, given: int, *, foreign: bool
) -> tuple[int, bool, bool, bool, float]:
    """Return what candidates for a platform are sorted by: the smallest is the best.

    ``given``: its jobs so far; ``foreign``: no program of the platform is run.
    """
    busy = candidate.load / max(1, candidate.description.processors) + given / candidate.places
    here = candidate.description.shares_disk
    return (
        0 if foreign and here else _rank(candidate.description.runs(platform)),
        given >= candidate.places,
        busy >= 1,
        not here,  # contexts and results need not be sent
        busy,
    )


def _rank(support: Support) -> int:
    if support.unfit is not None:
        return 3
    if not support.how:
        return 2
    return 0 if support.how == "native" else 1


def _nobody(skipped: Sequence[Skipped]) -> KanifoldError:
    """Return the error that no node has answered."""
    if len(skipped) == 1:
        return KanifoldError.of(skipped[0].problem)
    return EnvironmentUnfit(
        "no node can be used",
        why="; ".join(
            f"{each.name}: {': '.join(filter(None, (each.problem.what, each.problem.why)))}" for each in skipped
        ),
        remedy="kanifold node check says what is wrong with each",
    )


def without_isolation(node: str) -> EnvironmentUnfit:
    """Return the error that ``node`` cannot run steps."""
    return EnvironmentUnfit(
        f"node {node} cannot run steps",
        why="no way to isolate them works there",
        remedy="kanifold doctor there says what is missing",
    )


def _no_node(platform: Platform, candidates: Sequence[Candidate], skipped: Sequence[Skipped]) -> EnvironmentUnfit:
    """Return the error that no node runs ``platform``."""
    reasons = [_reason(platform, each) for each in candidates]
    reasons += [f"{each.name} cannot be used" for each in skipped]
    here = (each.description.runs(platform).unfit for each in candidates if each.description.shares_disk)
    return EnvironmentUnfit(
        f"no node runs programs of {platform}",
        why="; ".join(reasons),
        remedy=next(
            (each.problem.remedy for each in here if each is not None),
            f"add a node that is {platform}: kanifold node add NAME ssh://USER@HOST",
        ),
    )


def _reason(platform: Platform, candidate: Candidate) -> str:
    """Return why ``platform`` is not built there."""
    name, entry = candidate.node.name, candidate.entry
    if entry is not None and not entry.takes(platform):
        return f"{name} is declared for {', '.join(map(str, entry.platforms))}"
    return f"{name} is {candidate.description.platform}, without an emulator for it"


def refuse_unfit(plan: BuildPlan, placements: Iterable[Placement]) -> None:
    """Raise ``EnvironmentUnfit`` when a platform's programs would have to run that cannot, before anything is done."""
    for each in placements:
        if each.platform.os == "windows" and each.platform in plan.running:
            raise EnvironmentUnfit(
                f"cannot run programs of {each.platform}",
                why="images for Windows are made of files and metadata: COPY, ADD, WORKDIR, ENV and others, but no RUN",
                remedy="let RUN make the files in a stage FROM --platform=$BUILDPLATFORM, and COPY them from there",
            )
        if each.support.unfit is not None and each.platform in plan.running:
            raise each.support.unfit
