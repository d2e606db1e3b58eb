"""The stage graph: which stages a target needs, and what comes from outside, from the text of the Dockerfile alone.

The orchestrator uses it to resolve external images, the executor to build. Names are resolved as in BuildKit
(dockerfile2llb, addState and toCommand): a FROM sees earlier stages, ``--from`` sees any stage by name or number, case
is ignored. A named build context takes precedence over the stage or image of its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, assert_never

import msgspec

from executor import protocol
from executor.dockerfile import (
    Dockerfile,
    Stage,
    expand,
    find_base,
    find_named,
    find_source,
    find_stage,
    global_scope,
    parse,
)
from executor.dockerfile.expansion import misspelt
from executor.dockerfile.instructions import Copy, Instruction, Run
from executor.registry import reference
from executor.solver import builtin_args as arguments
from executor.solver.named import NONE, Named
from platforms.errors import DockerfileError, Location, UsageError
from platforms.parsing import parse as parse_platform
from platforms.platform import Platform


class FromScratch(msgspec.Struct, frozen=True):
    """No files: ``FROM scratch``."""


class FromStage(msgspec.Struct, frozen=True):
    """The files of an earlier stage of the same Dockerfile."""

    index: int


class FromImage(msgspec.Struct, frozen=True):
    """The files of an external image."""

    name: str
    """The reference as written, after expansion."""


class FromContext(msgspec.Struct, frozen=True):
    """A build context: files, or an image (``executor.protocol.Context``)."""

    name: str
    """Its canonical name; "" for the main context."""


Origin = FromScratch | FromStage | FromImage | FromContext
"""The source of the files that a stage is based on, that COPY copies, or that a mount contains."""
SCRATCH: Final = FromScratch()
MAIN_CONTEXT: Final = FromContext("")


class External(msgspec.Struct, frozen=True):
    """An external image: its reference as written, after expansion, and the location that first names it."""

    name: str
    where: Location | None = None
    """None for an image that no line names (a named context)."""


class Graph(msgspec.Struct, frozen=True):
    """What a target needs. ``stages`` are numbers in file order; ``images`` and ``contexts`` in order of appearance."""

    target: int
    stages: tuple[int, ...]
    images: tuple[External, ...]
    contexts: tuple[str, ...]
    """The canonical names of the named contexts that are used."""
    bases: tuple[Origin, ...]
    """By stage number: the base of each needed stage (``scratch`` for others)."""
    chain: tuple[int, ...]
    """The target and the stages that it is based on: those whose layers are in the image."""


def plan(dockerfile: Dockerfile, target: str, scope: Mapping[str, str], named: Named = NONE) -> Graph:
    """Return the graph of ``target`` (name or number; "" for the last stage), with FROM expanded in the global
    ``scope``.

    Raises DockerfileError for an invalid name or platform, also in stages that are not needed.
    """
    for stage in dockerfile.stages:
        base_of(dockerfile, stage, scope, named)
    goal = find_stage(dockerfile, target or None).index
    for stage in dockerfile.stages:
        for instruction in stage.instructions:
            for name, numbers in _sources(instruction):
                _referred(dockerfile, name, instruction.location, named, numbers=numbers)
    return _reached(dockerfile, goal, scope, named, [goal])


def plan_all(dockerfile: Dockerfile, scope: Mapping[str, str], named: Named = NONE) -> Graph:
    """Return the graph of the last stage with every stage needed. Raises as ``plan`` does."""
    goal = plan(dockerfile, "", scope, named).target
    return _reached(dockerfile, goal, scope, named, [*reversed(range(len(dockerfile.stages)))])


def _reached(dockerfile: Dockerfile, goal: int, scope: Mapping[str, str], named: Named, waiting: list[int]) -> Graph:
    bases: list[Origin] = [SCRATCH] * len(dockerfile.stages)
    needed: set[int] = set()
    images: dict[str, External] = {}
    taken: dict[str, None] = {}
    while waiting:
        index = waiting.pop()
        if index in needed:
            continue
        needed.add(index)
        stage = dockerfile.stages[index]
        bases[index] = base_of(dockerfile, stage, scope, named)
        origins = [(bases[index], stage.location)]
        if not replaced(dockerfile, stage, scope, named):
            for instruction in stage.instructions:
                found = origins_of(dockerfile, instruction, index, named)
                origins += ((origin, instruction.location) for origin in found)
        for origin, where in origins:
            match origin:
                case FromStage():
                    waiting.append(origin.index)
                case FromImage():
                    images.setdefault(origin.name, External(origin.name, where))
                case FromContext():
                    taken[origin.name] = None
                case FromScratch():
                    pass
                case _:
                    assert_never(origin)
    chain = [goal]
    while isinstance(below := bases[chain[-1]], FromStage):
        chain.append(below.index)
    return Graph(goal, tuple(sorted(needed)), tuple(images.values()), tuple(taken), tuple(bases), tuple(chain))


def base_of(dockerfile: Dockerfile, stage: Stage, scope: Mapping[str, str], named: Named) -> Origin:
    """Return the base of ``stage``."""
    platform = _own_platform(dockerfile, stage, scope)
    if context := named.find_stage(stage.name, platform):
        return FromContext(context)
    image = expand(stage.base, scope, dockerfile.escape).image
    earlier = find_base(dockerfile, stage.index, image)
    if earlier is not None:
        return FromStage(earlier.index)
    if image == "scratch":
        return SCRATCH
    if context := named.find(image, platform):
        return FromContext(context)
    return _image(image, stage.location)


def described(dockerfile: Dockerfile, needed: Graph, named: Named) -> tuple[protocol.StageInfo, ...]:
    """Return the ``needed`` stages with what they use, for display."""
    found: list[protocol.StageInfo] = []
    for index in needed.stages:
        stage = dockerfile.stages[index]
        origins = [needed.bases[index]]
        for instruction in stage.instructions:
            origins += origins_of(dockerfile, instruction, index, named)
        stages = (dockerfile.stages[each.index].label for each in origins if isinstance(each, FromStage))
        images = (each.name for each in origins if isinstance(each, FromImage))
        info = protocol.StageInfo(stage.label, tuple(dict.fromkeys(stages)), tuple(dict.fromkeys(images)))
        found.append(info)
    return tuple(found)


def replaced(dockerfile: Dockerfile, stage: Stage, scope: Mapping[str, str], named: Named) -> bool:
    """Whether a named context replaces ``stage``, so that its instructions are not run."""
    return bool(named.names and named.find_stage(stage.name, _own_platform(dockerfile, stage, scope)))


def _image(name: str, where: Location) -> FromImage:
    try:
        reference.parse(name)
    except UsageError as error:
        problem = error.problem
        raise DockerfileError(problem.what, why=problem.why, remedy=problem.remedy, where=where) from error
    return FromImage(name)


def platform_of(dockerfile: Dockerfile, stage: Stage, scope: Mapping[str, str], target: Platform) -> Platform:
    """Return the platform of ``stage`` if it is based on no other stage: that of ``FROM --platform``, or the build's
    target.

    FROM scratch has the target's in any case, as in BuildKit (dockerfile2llb, ``resolveReachableStages``).
    """
    if expand(stage.base, scope, dockerfile.escape).image == "scratch":
        return target
    return _own_platform(dockerfile, stage, scope) or target


def run_on(dockerfile: Dockerfile, needed: Graph, scope: Mapping[str, str], target: Platform) -> set[Platform]:
    """Return the platforms whose programs are run by the ``needed`` stages. Triggers of base images are unknown."""
    found = set()
    for index in needed.stages:
        if any(isinstance(each, Run) for each in dockerfile.stages[index].instructions):
            found.add(bottom_platform(dockerfile, needed, index, scope, target))
    return found


def bottom_platform(
    dockerfile: Dockerfile, needed: Graph, index: int, scope: Mapping[str, str], target: Platform
) -> Platform:
    """Return the platform of the stage ``index``, one of those ``needed``: that of the stage at its bottom."""
    while isinstance(below := needed.bases[index], FromStage):
        index = below.index
    return platform_of(dockerfile, dockerfile.stages[index], scope, target)


def may_run(dockerfile: Dockerfile, needed: Graph) -> bool:
    """Whether the ``needed`` stages may run a RUN, also one of a base image (ONBUILD)."""
    return any(
        not isinstance(needed.bases[index], FromScratch | FromStage)
        or any(isinstance(each, Run) for each in dockerfile.stages[index].instructions)
        for index in needed.stages
    )


def _own_platform(dockerfile: Dockerfile, stage: Stage, scope: Mapping[str, str]) -> Platform | None:
    text = expand(stage.base, scope, dockerfile.escape).platform
    if not text:
        return None
    try:
        return parse_platform(text)
    except UsageError as error:
        meant = misspelt(stage.base.platform, scope, dockerfile.escape)
        raise DockerfileError(
            f"failed to parse platform {stage.base.platform}{meant}", why=str(error), where=stage.location
        ) from error


def origins_of(dockerfile: Dockerfile, step: Instruction, index: int, named: Named) -> Iterator[Origin]:
    """Yield the origins that ``step`` of stage ``index`` takes files from, except for the main context."""
    for name, numbers in _sources(step):
        yield named_origin(dockerfile, name, index, step.location, named, numbers=numbers)


def _sources(step: Instruction) -> Iterator[tuple[str, bool]]:
    """Yield the names that ``step`` takes files from, each with whether it may be a stage number."""
    if isinstance(step, Copy) and step.from_:
        yield step.from_, True
    elif isinstance(step, Run):
        yield from ((mount.from_, False) for mount in step.mounts if mount.from_)


def named_origin(
    dockerfile: Dockerfile, name: str, index: int, where: Location, named: Named, *, numbers: bool
) -> Origin:
    """Return the origin of ``--from=name`` (with ``numbers``, also a stage number) for a step of stage ``index``."""
    found = _referred(dockerfile, name, where, named, numbers=numbers)
    if not isinstance(found, Stage):
        return found
    if found.index >= index:
        raise DockerfileError(
            f'cannot copy from stage "{name}"',
            why=f'it needs to be defined before current stage "{dockerfile.stages[index].name or index}"',
            where=where,
        )
    return FromStage(found.index)


def _referred(dockerfile: Dockerfile, name: str, where: Location, named: Named, *, numbers: bool) -> Stage | Origin:
    try:
        found = find_source(dockerfile, name) if numbers else find_named(dockerfile, name)
    except DockerfileError as error:
        raise DockerfileError(error.problem.what, remedy=error.problem.remedy, where=where) from error
    if found is None:
        if name == "scratch":
            return SCRATCH
        context = named.find(name)
        return FromContext(context) if context else _image(name, where)
    return found


class JobPlan(msgspec.Struct, frozen=True):
    """The stages of a job, and which of them are needed."""

    dockerfile: Dockerfile
    scope: Mapping[str, str]
    """The variables that FROM sees."""
    named: Named
    graph: Graph
    may_run: bool
    """Whether there may be a RUN."""


def job_plan(job: protocol.Job, native: Platform, platform: Platform) -> JobPlan:
    """Return the plan of ``job``, with ``native`` as BUILDPLATFORM. Raises ``DockerfileError``."""
    source = parse(job.dockerfile, job.dockerfile_name)
    stage = job.options.target or source.stages[-1].name
    seen = global_scope(source, dict(job.build_args), arguments.platform_arguments(native, platform, stage))
    named = Named(frozenset(context.name for context in job.contexts if context.name), platform)
    needed = plan(source, job.options.target, seen, named)
    return JobPlan(source, seen, named, needed, may_run(source, needed))
