"""Stages on the build platform (``FROM --platform=$BUILDPLATFORM``), for jobs that are built on other nodes.

They are made on one node, which runs the build platform natively: by a job for each of these stages that others only
copy from, whose steps all platforms of the build share in the store of that node. A job on another node asks for their
results, as of a remote cache (``protocol.CacheAtOrchestrator``), and gets them when they are made
(``stages_elsewhere``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import msgspec
from msgspec.structs import replace

from executor import protocol
from executor.dockerfile.instructions import Run
from executor.solver import graph
from executor.solver.graph import FromStage, JobPlan
from orchestrator.nodes.node import Node, Support
from orchestrator.nodes.placement import LOCAL, Placement
from platforms import host
from platforms.parsing import parse
from platforms.platform import Platform

Jobs = Sequence[tuple[Placement, protocol.Job]]


class SharedStages(msgspec.Struct, frozen=True):
    """The stages of a job that are made on another node."""

    builder: Placement
    """The node, with the build platform."""
    stages: tuple[int, ...]
    """The numbers of those that are jobs of their own."""

    @property
    def name(self) -> str:
        """The name of the cache that has the results."""
        return f"stages on node {self.builder.node.name}"

    @property
    def cache(self) -> protocol.CacheAtOrchestrator:
        """The cache that has the results."""
        return protocol.CacheAtOrchestrator(self.name, str(self.builder.platform))

    def user(self, job: protocol.Job) -> protocol.Job:
        """Return ``job``, which uses the stages."""
        options = replace(job.options, cache_from=(*job.options.cache_from, self.cache))
        return replace(job, options=options)

    def makers(self, job: protocol.Job) -> tuple[protocol.Job, ...]:
        """Return the jobs that make the stages for ``job``."""
        export = (protocol.CacheExport(self.cache, every_stage=True),)
        made = replace(job, push=(), local=False, annotations=(), emulation=None)
        options = replace(
            job.options,
            cache_from=tuple(each for each in job.options.cache_from if each != self.cache),
            cache_to=export,
        )
        return tuple(replace(made, options=replace(options, target=str(each))) for each in self.stages)


def shared_stages(jobs: Jobs, nodes: Iterable[Node]) -> dict[Platform, SharedStages]:
    """Return what is made elsewhere, by the platform of the job. ``nodes`` are those of the session."""
    if len({placement.node.name for placement, _ in jobs}) == 1 and all(_is_native(*each) for each in jobs):
        return {}
    found = {placement.platform: _stages(job) for placement, job in jobs}
    sharing = [(placement, job) for placement, job in jobs if found[placement.platform]]
    if not sharing:
        return {}
    builder = _builder(sharing, jobs, nodes)
    if builder is None:
        return {}
    return {
        placement.platform: SharedStages(builder, found[placement.platform])
        for placement, _ in sharing
        if placement.node.name != builder.node.name
    }


def _is_native(placement: Placement, job: protocol.Job) -> bool:
    """Whether the node of ``placement`` runs the build platform natively."""
    return placement.host is None or placement.host.architecture == parse(job.build_platform).architecture


def _builder(sharing: Jobs, jobs: Jobs, nodes: Iterable[Node]) -> Placement | None:
    """Return the node that makes the stages: one that builds a platform with them if possible, or this machine."""
    own = parse(sharing[0][1].build_platform)
    beside = [(each, job) for placement, job in jobs for each in placement.others]
    for placement, job in (*sharing, *jobs, *beside):
        if placement.host is not None and _is_native(placement, job):
            return replace(placement, platform=own, support=Support("native"))
    for node in nodes:
        if node.name == LOCAL and sys.platform == "linux" and host.default_platform() == own:
            return Placement(own, node, Support("native"), shares_disk=True)
    return None


def _stages(job: protocol.Job) -> tuple[int, ...]:
    """Return the stages of ``job`` on the build platform that no other such stage uses; none if no program is run in
    them."""
    own, target = parse(job.build_platform), parse(job.platform)
    plan = graph.job_plan(job, own, target)
    found = [each for each in plan.graph.stages if _platform(plan, each, target) == own]
    if not any(isinstance(step, Run) for each in found for step in plan.dockerfile.stages[each].instructions):
        return ()
    used = {origin for each in found for origin in _used(plan, each)}
    return tuple(each for each in found if each not in used)


def _platform(plan: JobPlan, index: int, target: Platform) -> Platform:
    """Return the platform of a stage."""
    while isinstance(below := plan.graph.bases[index], FromStage):
        index = below.index
    return graph.platform_of(plan.dockerfile, plan.dockerfile.stages[index], plan.scope, target)


def _used(plan: JobPlan, index: int) -> Iterable[int]:
    """Yield the stages that a stage is based on or takes files from."""
    steps = plan.dockerfile.stages[index].instructions
    origins = (each for step in steps for each in graph.origins_of(plan.dockerfile, step, index, plan.named))
    for origin in (plan.graph.bases[index], *origins):
        if isinstance(origin, FromStage):
            yield origin.index
