"""What a Dockerfile offers, without building it: its targets, and the arguments and secrets that one target takes.

Source: buildx's ``--call targets`` and ``--call outline``; what counts as used is as in BuildKit's frontend.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping

import msgspec

from executor.dockerfile.expansion import expand
from executor.dockerfile.instructions import Arg, Copy, Env, Run
from executor.dockerfile.scope import declared, global_scope
from executor.dockerfile.stages import Dockerfile, Stage, find_base, find_named, find_source, find_stage
from executor.dockerfile.words import Watched
from executor.dockerfile.words import expand as expand_text
from platforms.errors import Location


class Target(msgspec.Struct, frozen=True):
    """A stage that can be built."""

    name: str
    description: str
    default: bool
    base: str
    """As written."""
    platform: str
    location: Location


class Argument(msgspec.Struct, frozen=True):
    """A build argument that has an effect on the target."""

    name: str
    value: str
    description: str
    location: Location


class Wanted(msgspec.Struct, frozen=True):
    """A secret or an SSH agent that a step may use."""

    name: str
    required: bool
    location: Location


class Outline(msgspec.Struct, frozen=True):
    """What one target takes."""

    name: str
    description: str
    arguments: tuple[Argument, ...]
    secrets: tuple[Wanted, ...]
    ssh: tuple[Wanted, ...]


def targets(dockerfile: Dockerfile) -> tuple[Target, ...]:
    """All stages, in order."""
    last = len(dockerfile.stages) - 1
    return tuple(
        Target(
            stage.name,
            _description(stage.base.comments, stage.name),
            stage.index == last,
            stage.base.image,
            stage.base.platform,
            stage.location,
        )
        for stage in dockerfile.stages
    )


def outline(
    dockerfile: Dockerfile, target: str | None, build_args: Mapping[str, str], predefined: Mapping[str, str]
) -> Outline:
    """What ``target`` and the stages it needs take, in the order of the file. Raises DockerfileError."""
    stage = find_stage(dockerfile, target)
    found = _Findings(dockerfile, build_args, predefined)
    found.visit(stage)
    return Outline(
        stage.name,
        _description(stage.base.comments, stage.name),
        tuple(sorted(found.arguments.values(), key=lambda each: each.location.line)),
        tuple(sorted(found.secrets.values(), key=lambda each: each.location.line)),
        tuple(sorted(found.ssh.values(), key=lambda each: each.location.line)),
    )


def _description(comments: tuple[str, ...], name: str) -> str:
    """The comment that begins with ``name``, without it."""
    lines = (line.removeprefix(f"{name} ") for line in comments if name and line.startswith(f"{name} "))
    return next(lines, "")


class _Findings:
    """The stages visited so far, and what they take."""

    def __init__(self, dockerfile: Dockerfile, build_args: Mapping[str, str], predefined: Mapping[str, str]) -> None:
        self.dockerfile = dockerfile
        self.build_args = build_args
        self.scope = global_scope(dockerfile, build_args, predefined)
        self.arguments: dict[str, Argument] = {}
        self.secrets: dict[str, Wanted] = {}
        self.ssh: dict[str, Wanted] = {}
        self.envs: dict[int, dict[str, str]] = {}

    def visit(self, stage: Stage) -> dict[str, str]:
        """Look at ``stage`` and all that it needs; its variables at its end."""
        if stage.index in self.envs:
            return self.envs[stage.index]
        self.envs[stage.index] = {}  # a stage that needs itself ends here
        used = Watched(self.scope)
        image = expand_text(stage.base.image, used, escape=self.dockerfile.escape)
        expand_text(stage.base.platform, used, escape=self.dockerfile.escape)
        for name in used.used:
            self.use_global(name)
        parent = find_base(self.dockerfile, stage.index, image)
        env = dict(self.visit(parent)) if parent is not None else {}
        for instruction in stage.instructions:
            match instruction:
                case Arg():
                    self.argument(instruction, env)
                case Env():
                    env.update(expand(instruction, env, self.dockerfile.escape).pairs)
                case Run():
                    self.mounts(expand(instruction, env, self.dockerfile.escape))
            for needed in self.needs(instruction):
                self.visit(needed)
        self.envs[stage.index] = env
        return env

    def needs(self, instruction: object) -> Iterator[Stage]:
        names: list[Stage | None] = []
        if isinstance(instruction, Copy) and instruction.from_:
            names.append(find_source(self.dockerfile, instruction.from_))
        elif isinstance(instruction, Run):
            names += [find_named(self.dockerfile, mount.from_) for mount in instruction.mounts if mount.from_]
        yield from (stage for stage in names if stage is not None)

    def use_global(self, name: str) -> None:
        """A global ARG, and those that its default is made of."""
        for arg in reversed(self.dockerfile.args):
            for other, default in reversed(arg.assignments):
                if other == name and name not in self.arguments:
                    self.arguments[name] = Argument(
                        name, self.scope.get(name, ""), _description(arg.comments, name), arg.location
                    )
                    if default is not None and name not in self.build_args:
                        made_of = Watched(self.scope)
                        expand_text(default, made_of, escape=self.dockerfile.escape)
                        for part in made_of.used:
                            self.use_global(part)

    def argument(self, arg: Arg, env: dict[str, str]) -> None:
        for name, default in arg.assignments:
            one = msgspec.structs.replace(arg, assignments=((name, default),))
            ((_, value),) = declared(one, env, self.build_args, self.scope, self.dockerfile.escape)
            if value is not None:
                env[name] = value
            if default is None and name not in self.build_args and name in self.scope:
                self.use_global(name)
            elif name not in self.arguments:
                self.arguments[name] = Argument(name, value or "", _description(arg.comments, name), arg.location)

    def mounts(self, run: Run) -> None:
        for mount in run.mounts:
            if mount.type == "secret":
                name = mount.source or mount.id or posixpath.basename(mount.target)
                self.secrets.setdefault(name, Wanted(name, mount.required, run.location))
            elif mount.type == "ssh":
                name = mount.id or "default"
                self.ssh.setdefault(name, Wanted(name, mount.required, run.location))
