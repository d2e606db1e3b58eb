"""A Dockerfile as stages: what comes before the first FROM, and each FROM with what follows it.

Source: Dockerfile reference, "FROM" and "ARG"; how names are looked up is BuildKit's: a FROM sees the stages before it,
``COPY --from`` and mounts see any stage, the last of several alike; case makes no difference.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

import msgspec

from executor.dockerfile import grammar, lines
from executor.dockerfile.instructions import Arg, From, Instruction
from executor.dockerfile.suggest import hint
from platforms.errors import DockerfileError, Location


class Stage(msgspec.Struct, frozen=True):
    """One FROM and the instructions up to the next."""

    index: int
    """From 0."""
    base: From
    instructions: tuple[Instruction, ...]

    @property
    def name(self) -> str:
        """In lower case; "" when the stage has none."""
        return self.base.name

    @property
    def label(self) -> str:
        """What to call the stage: its name, else its number."""
        return self.base.name or str(self.index)

    @property
    def location(self) -> Location:
        """Where its FROM stands."""
        return self.base.location


class Dockerfile(msgspec.Struct, frozen=True):
    """A whole Dockerfile. It has at least one stage."""

    name: str
    args: tuple[Arg, ...]
    """The ARGs before the first FROM."""
    stages: tuple[Stage, ...]
    escape: str
    syntax: str
    """What ``# syntax=`` names, "" without one: noted, never fetched."""
    check: str
    """What ``# check=`` says, "" without one."""
    empty_continuations: tuple[Location, ...]
    """Where a continued instruction has empty lines in it."""
    source: tuple[str, ...]
    """The file's lines."""
    statements: tuple[lines.Statement, ...]
    """All instructions in order, before anybody asked what they mean."""
    named: Mapping[str, tuple[int, ...]]
    """The stages that have a name, by it, in order."""


def parse(data: bytes, name: str = "Dockerfile") -> Dockerfile:
    """The Dockerfile whose bytes are ``data``. Raises DockerfileError, with the place, for anything that is none."""
    found = lines.read(data, name)
    args: list[Arg] = []
    bases: list[tuple[From, list[Instruction]]] = []
    for statement in found.statements:
        instruction = grammar.instruction(statement, found.escape)
        if isinstance(instruction, From):
            bases.append((instruction, []))
        elif bases:
            bases[-1][1].append(instruction)
        elif isinstance(instruction, Arg):
            args.append(instruction)
        else:
            raise DockerfileError(
                "no build stage in current context",
                why=f"{statement.keyword} stands before the first FROM",
                remedy="Begin the stage with FROM; only ARG may come before it.",
                where=instruction.location,
            )
    if not bases:
        raise DockerfileError(
            "dockerfile contains no stages to build",
            remedy="Add a FROM instruction.",
            where=lines.location(found.physical, name, len(found.physical), len(found.physical)),
        )
    stages = tuple(Stage(index, base, tuple(body)) for index, (base, body) in enumerate(bases))
    return Dockerfile(
        name,
        tuple(args),
        stages,
        found.escape,
        found.syntax,
        found.check,
        found.empty_continuations,
        found.physical,
        found.statements,
        _by_name(stages),
    )


def _by_name(stages: tuple[Stage, ...]) -> dict[str, tuple[int, ...]]:
    found: dict[str, list[int]] = {}
    for stage in stages:
        if stage.name:
            found.setdefault(stage.name, []).append(stage.index)
    return {name: tuple(indexes) for name, indexes in found.items()}


def trigger(expression: str, location: Location) -> Instruction:
    """The instruction of an ONBUILD trigger, as an image's config holds it; ``location`` is the FROM that meets it.

    Raises DockerfileError with that place.
    """
    try:
        found = lines.read(expression.encode("utf-8", "surrogateescape"), location.file)
        if len(found.statements) != 1:
            raise DockerfileError("onbuild trigger should be a single expression")
        instruction = grammar.instruction(found.statements[0], found.escape)
        if isinstance(instruction, From):
            raise DockerfileError("FROM isn't allowed as an ONBUILD trigger")
    except DockerfileError as error:
        raise DockerfileError(
            error.problem.what,
            why=f"the base image asks for it: ONBUILD {expression.splitlines()[0] if expression else ''}",
            remedy="Use a base image without this trigger, or mend the Dockerfile that the base was built from.",
            where=location,
        ) from error
    return relocated(instruction, location)


def relocated(instruction: Instruction, location: Location) -> Instruction:
    """``instruction`` as if it stood at ``location``."""
    from msgspec.structs import replace

    return replace(instruction, location=location)


def find_stage(dockerfile: Dockerfile, target: str | None) -> Stage:
    """The stage to build: by name, whatever the case, or by number; the last one for None or "".

    Raises DockerfileError when there is none.
    """
    if not target:
        return dockerfile.stages[-1]
    found = find_named(dockerfile, target)
    if found is None and target.isascii() and target.isdigit() and len(target) < 10:
        found = dict(enumerate(dockerfile.stages)).get(int(target))
    if found is None:
        labels = [stage.label for stage in dockerfile.stages]
        names = [stage.name for stage in dockerfile.stages if stage.name]
        raise DockerfileError(
            f'target stage "{target}" could not be found{hint(target, names)}',
            remedy=f"Stages are {', '.join(labels)}.",
        )
    return found


def find_named(dockerfile: Dockerfile, name: str) -> Stage | None:
    """The stage that ``RUN --mount=from=NAME`` means, None when it means an image or a named context."""
    found = dockerfile.named.get(name.lower())
    return dockerfile.stages[found[-1]] if found else None


def find_source(dockerfile: Dockerfile, name: str) -> Stage | None:
    """The stage that ``COPY --from=NAME`` means: by number or by name. Raises DockerfileError for a number too high."""
    digits = name.removeprefix("+").removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        return find_named(dockerfile, name)
    if not 0 <= int(name) < len(dockerfile.stages):
        raise DockerfileError(
            f"invalid stage index {int(name)}",
            remedy=f"Stages have the numbers 0 to {len(dockerfile.stages) - 1}; names are safer.",
        )
    return dockerfile.stages[int(name)]


def find_base(dockerfile: Dockerfile, before: int, image: str) -> Stage | None:
    """The stage that a FROM in stage number ``before`` names, None when it names an image.

    Whatever the case: an image's name cannot have capitals, so none is hidden by that.
    """
    found = dockerfile.named.get(image.lower(), ())
    at = bisect_left(found, before)
    return dockerfile.stages[found[at - 1]] if at else None
