"""The targets of a Dockerfile, and the arguments, secrets and SSH agents that a target uses, without building it.

Source: buildx's ``--call targets`` and ``--call outline``; what counts as used is as in BuildKit's frontend.
"""

from __future__ import annotations

import posixpath
from collections import ChainMap
from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from executor.dockerfile.expansion import expand
from executor.dockerfile.instructions import Arg, Copy, Env, Run
from executor.dockerfile.scope import declared, global_scope
from executor.dockerfile.stages import Dockerfile, Stage, find_base, find_named, find_source, find_stage
from executor.dockerfile.words import ExpansionBudget, RecordingMapping
from executor.dockerfile.words import expand as expand_text
from platforms.errors import Location


class BuildTarget(msgspec.Struct, frozen=True):
    """A stage that can be built."""

    name: str
    description: str
    default: bool
    base: str
    """As written."""
    platform: str
    location: Location


class Argument(msgspec.Struct, frozen=True):
    """A build argument that the target uses."""

    name: str
    value: str
    description: str
    location: Location


class SecretRequirement(msgspec.Struct, frozen=True):
    """A secret or an SSH agent that a step may use."""

    name: str
    required: bool
    location: Location


T = TypeVar("T", Argument, SecretRequirement)


class Outline(msgspec.Struct, frozen=True):
    """What one target takes from the command line."""

    name: str
    description: str
    arguments: tuple[Argument, ...]
    secrets: tuple[SecretRequirement, ...]
    ssh: tuple[SecretRequirement, ...]


def targets(dockerfile: Dockerfile) -> tuple[BuildTarget, ...]:
    """Return all stages, in order."""
    last = len(dockerfile.stages) - 1
    return tuple(
        BuildTarget(
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
    """Return what ``target``, and the stages that it needs, use, in the order of the file. Raises DockerfileError."""
    stage = find_stage(dockerfile, target)
    reading = _OutlineReader(dockerfile, build_args, predefined)
    taken = reading.nearest_first(stage)
    return Outline(
        stage.name,
        _description(stage.base.comments, stage.name),
        _in_order(each.arguments_used() for each in taken),
        _in_order(each.secrets for each in taken),
        _in_order(each.ssh for each in taken),
    )


def _in_order(found: Iterable[Mapping[str, T]]) -> tuple[T, ...]:
    """Return the values of ``found`` in the order of the file; of several with the same name, the first."""
    return tuple(sorted(dict(ChainMap(*map(dict, found))).values(), key=lambda each: each.location.line))


def _description(comments: tuple[str, ...], name: str) -> str:
    """Return the comment that begins with ``name``, without the name."""
    lines = (line.removeprefix(f"{name} ") for line in comments if name and line.startswith(f"{name} "))
    return next(lines, "")


class _StageUsage(msgspec.Struct):
    """What one stage uses."""

    known: dict[str, Argument]
    """ARGs by name: the global ones, replaced by the stage's own."""
    made_of: Mapping[str, tuple[str, ...]]
    """The names that the default of a global ARG uses."""
    froms: Mapping[str, None]
    """The variables that FROM uses, in this stage and those that it is based on."""
    used: dict[str, None]
    """These, and the ARGs of the stage."""
    secrets: dict[str, SecretRequirement] = msgspec.field(default_factory=dict)
    ssh: dict[str, SecretRequirement] = msgspec.field(default_factory=dict)
    env: dict[str, str] = msgspec.field(default_factory=dict)

    def arguments_used(self) -> dict[str, Argument]:
        """Return the ARGs that the stage uses, also indirectly by the default of another."""
        names: dict[str, None] = {}
        waiting = [*self.used]
        while waiting:
            name = waiting.pop()
            if name not in names:
                names[name] = None
                waiting += self.made_of.get(name, ())
        return {name: self.known[name] for name in names if name in self.known}


class _OutlineReader:
    """The stages that were read so far."""

    def __init__(self, dockerfile: Dockerfile, build_args: Mapping[str, str], predefined: Mapping[str, str]) -> None:
        self.dockerfile = dockerfile
        self.build_args = build_args
        self.scope = global_scope(dockerfile, build_args, predefined)
        self.known: dict[str, Argument] = {}
        self.made_of: dict[str, tuple[str, ...]] = {}
        self.taken: dict[int, _StageUsage] = {}
        self.meter = ExpansionBudget()
        self.read_globals()

    def read_globals(self) -> None:
        for arg in self.dockerfile.args:
            for name, default in arg.assignments:
                used = RecordingMapping(self.meter.over(self.scope))
                if default is not None and name not in self.build_args:
                    expand_text(default, used, escape=self.dockerfile.escape)
                value = self.scope.get(name, "") if default is not None or name in self.build_args else ""
                self.made_of[name] = (*used.used, *(self.made_of.get(name, ()) if name in used.used else ()))
                self.known[name] = Argument(name, value, _description(arg.comments, name), arg.location)

    def nearest_first(self, stage: Stage) -> list[_StageUsage]:
        """Return what ``stage`` uses, then what the stages use that it is based on or copies from."""
        found: list[_StageUsage] = []
        seen: set[int] = set()
        waiting = [stage]
        while waiting:
            stage = waiting.pop()
            if stage.index not in seen:
                seen.add(stage.index)
                found.append(self.read(stage))
                needed = [each for instruction in stage.instructions for each in self.needs(instruction)]
                waiting += reversed([*self.parent(stage), *needed])
        return found

    def parent(self, stage: Stage) -> tuple[Stage, ...]:
        image = expand_text(stage.base.image, self.scope, escape=self.dockerfile.escape)
        found = find_base(self.dockerfile, stage.index, image)
        return (found,) if found is not None else ()

    def needs(self, instruction: object) -> list[Stage]:
        names: list[Stage | None] = []
        if isinstance(instruction, Copy) and instruction.from_:
            names.append(find_source(self.dockerfile, instruction.from_))
        elif isinstance(instruction, Run):
            names += [find_named(self.dockerfile, mount.from_) for mount in instruction.mounts if mount.from_]
        return [stage for stage in names if stage is not None]

    def read(self, stage: Stage) -> _StageUsage:
        chain = [stage]
        while chain[-1].index not in self.taken and (below := self.parent(chain[-1])):
            chain += below
        for above in reversed(chain):
            if above.index not in self.taken:
                self.taken[above.index] = self.read_above(above)
        return self.taken[stage.index]

    def read_above(self, stage: Stage) -> _StageUsage:
        """Return what ``stage`` uses; the stage that it is based on has been read."""
        below = next((self.taken[each.index] for each in self.parent(stage)), None)
        used = RecordingMapping(self.scope)
        expand_text(stage.base.image, used, escape=self.dockerfile.escape)
        expand_text(stage.base.platform, used, escape=self.dockerfile.escape)
        froms = {**(below.froms if below else {}), **used.used}
        taken = _StageUsage(dict(self.known), self.made_of, froms, dict(froms), env=dict(below.env) if below else {})
        seen = self.meter.over(taken.env)
        for instruction in stage.instructions:
            match instruction:
                case Arg():
                    self.argument(instruction, taken)
                case Env():
                    taken.env.update(expand(instruction, seen, self.dockerfile.escape).pairs)
                case Run():
                    self.mounts(expand(instruction, seen, self.dockerfile.escape), taken)
        return taken

    def argument(self, arg: Arg, taken: _StageUsage) -> None:
        for name, default in arg.assignments:
            one = msgspec.structs.replace(arg, assignments=((name, default),))
            ((_, value),) = declared(
                one, self.meter.over(taken.env), self.build_args, self.scope, self.dockerfile.escape
            )
            if value is not None:
                taken.env[name] = value
            if default is not None or name in self.build_args or name not in self.scope:
                taken.known[name] = Argument(name, value or "", _description(arg.comments, name), arg.location)
            taken.used[name] = None

    def mounts(self, run: Run, taken: _StageUsage) -> None:
        for mount in run.mounts:
            if mount.type == "secret":
                name = mount.source or mount.id or posixpath.basename(mount.target)
                taken.secrets.setdefault(name, SecretRequirement(name, mount.required, run.location))
            elif mount.type == "ssh":
                name = mount.id or "default"
                taken.ssh.setdefault(name, SecretRequirement(name, mount.required, run.location))
