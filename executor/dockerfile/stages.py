"""A Dockerfile as stages: the ARGs before the first FROM, and each FROM with the instructions that follow it.

Source: Dockerfile reference, "FROM" and "ARG". Names are resolved as in BuildKit: a FROM sees the stages before it;
``COPY --from`` and mounts see all stages, and of several with the same name the last; case is ignored.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

import msgspec

from executor.dockerfile import grammar, lines
from executor.dockerfile.instructions import Arg, From, Instruction
from executor.dockerfile.suggestions import hint
from platforms.errors import DockerfileError, Location


class Stage(msgspec.Struct, frozen=True):
    """A FROM and the instructions up to the next."""

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
        """The name of the stage, else its number."""
        return self.base.name or str(self.index)

    @property
    def location(self) -> Location:
        """The location of its FROM."""
        return self.base.location


class Dockerfile(msgspec.Struct, frozen=True):
    """A parsed Dockerfile. It has at least one stage."""

    name: str
    args: tuple[Arg, ...]
    """The ARGs before the first FROM."""
    stages: tuple[Stage, ...]
    escape: str
    syntax: str
    """The value of ``# syntax=``, "" if there is none: recorded, never fetched."""
    check: str
    """The value of ``# check=``, "" if there is none."""
    empty_continuations: tuple[Location, ...]
    """The locations of empty lines within a continued instruction."""
    source: tuple[str, ...]
    """The lines of the file."""
    statements: tuple[lines.Statement, ...]
    """All statements, in order."""
    named: Mapping[str, tuple[int, ...]]
    """The numbers of the stages that have a name, by name, in order."""


def parse(data: bytes, name: str = "Dockerfile") -> Dockerfile:
    """Parse the bytes of a Dockerfile. Raises DockerfileError, with the location, if they are invalid."""
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
    """Parse an ONBUILD trigger of an image's config; ``location`` is that of the FROM that names the image.

    Raises DockerfileError with that location.
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
    """Return ``instruction`` with the location ``location``."""
    from msgspec.structs import replace

    return replace(instruction, location=location)


def find_stage(dockerfile: Dockerfile, target: str | None) -> Stage:
    """Return the stage to build: by name, in any case, or by number; the last one for None or "".

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
    """Return the stage of ``RUN --mount=from=NAME``; None when it is an image or a named context."""
    found = dockerfile.named.get(name.lower())
    return dockerfile.stages[found[-1]] if found else None


def find_source(dockerfile: Dockerfile, name: str) -> Stage | None:
    """Return the stage of ``COPY --from=NAME``, by number or name. Raises DockerfileError for a number that is too
    high."""
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
    """Return the stage that a FROM in stage number ``before`` names; None when it names an image.

    Case is ignored: the name of an image has no capitals, so no image is hidden by that.
    """
    found = dockerfile.named.get(image.lower(), ())
    at = bisect_left(found, before)
    return dockerfile.stages[found[at - 1]] if at else None
