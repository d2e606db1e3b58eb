"""What a Dockerfile offers, without building it: its targets, and the arguments and secrets that one target takes.

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
from executor.dockerfile.words import Meter, Watched
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


T = TypeVar("T", Argument, Wanted)


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
    reading = _Reading(dockerfile, build_args, predefined)
    taken = reading.nearest_first(stage)
    return Outline(
        stage.name,
        _description(stage.base.comments, stage.name),
        _in_order(each.arguments_used() for each in taken),
        _in_order(each.secrets for each in taken),
        _in_order(each.ssh for each in taken),
    )


def _in_order(found: Iterable[Mapping[str, T]]) -> tuple[T, ...]:
    """What is found by name, in the order of the file; of several under one name, the first."""
    return tuple(sorted(dict(ChainMap(*map(dict, found))).values(), key=lambda each: each.location.line))


def _description(comments: tuple[str, ...], name: str) -> str:
    """The comment that begins with ``name``, without it."""
    lines = (line.removeprefix(f"{name} ") for line in comments if name and line.startswith(f"{name} "))
    return next(lines, "")


class _Taken(msgspec.Struct):
    """What one stage takes."""

    known: dict[str, Argument]
    """ARGs by name: the global ones, until the stage has its own."""
    made_of: Mapping[str, tuple[str, ...]]
    """Which others a global ARG's default uses."""
    froms: Mapping[str, None]
    """The variables that FROM uses, here and in the stages below."""
    used: dict[str, None]
    """Those, and the ARGs of the stage."""
    secrets: dict[str, Wanted] = msgspec.field(default_factory=dict)
    ssh: dict[str, Wanted] = msgspec.field(default_factory=dict)
    env: dict[str, str] = msgspec.field(default_factory=dict)

    def arguments_used(self) -> dict[str, Argument]:
        """Those ARGs that the stage uses, be it for the default of another."""
        names: dict[str, None] = {}
        waiting = [*self.used]
        while waiting:
            name = waiting.pop()
            if name not in names:
                names[name] = None
                waiting += self.made_of.get(name, ())
        return {name: self.known[name] for name in names if name in self.known}


class _Reading:
    """The stages read so far, and what they take."""

    def __init__(self, dockerfile: Dockerfile, build_args: Mapping[str, str], predefined: Mapping[str, str]) -> None:
        self.dockerfile = dockerfile
        self.build_args = build_args
        self.scope = global_scope(dockerfile, build_args, predefined)
        self.known: dict[str, Argument] = {}
        self.made_of: dict[str, tuple[str, ...]] = {}
        self.taken: dict[int, _Taken] = {}
        self.meter = Meter()
        self.read_globals()

    def read_globals(self) -> None:
        for arg in self.dockerfile.args:
            for name, default in arg.assignments:
                used = Watched(self.meter.over(self.scope))
                if default is not None and name not in self.build_args:
                    expand_text(default, used, escape=self.dockerfile.escape)
                value = self.scope.get(name, "") if default is not None or name in self.build_args else ""
                self.made_of[name] = (*used.used, *(self.made_of.get(name, ()) if name in used.used else ()))
                self.known[name] = Argument(name, value, _description(arg.comments, name), arg.location)

    def nearest_first(self, stage: Stage) -> list[_Taken]:
        """What ``stage`` takes, then what the stages take that it is built on or copies from."""
        found: list[_Taken] = []
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

    def read(self, stage: Stage) -> _Taken:
        chain = [stage]
        while chain[-1].index not in self.taken and (below := self.parent(chain[-1])):
            chain += below
        for above in reversed(chain):
            if above.index not in self.taken:
                self.taken[above.index] = self.read_above(above)
        return self.taken[stage.index]

    def read_above(self, stage: Stage) -> _Taken:
        """What ``stage`` takes, once the one below it has been read."""
        below = next((self.taken[each.index] for each in self.parent(stage)), None)
        used = Watched(self.scope)
        expand_text(stage.base.image, used, escape=self.dockerfile.escape)
        expand_text(stage.base.platform, used, escape=self.dockerfile.escape)
        froms = {**(below.froms if below else {}), **used.used}
        taken = _Taken(dict(self.known), self.made_of, froms, dict(froms), env=dict(below.env) if below else {})
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

    def argument(self, arg: Arg, taken: _Taken) -> None:
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

    def mounts(self, run: Run, taken: _Taken) -> None:
        for mount in run.mounts:
            if mount.type == "secret":
                name = mount.source or mount.id or posixpath.basename(mount.target)
                taken.secrets.setdefault(name, Wanted(name, mount.required, run.location))
            elif mount.type == "ssh":
                name = mount.id or "default"
                taken.ssh.setdefault(name, Wanted(name, mount.required, run.location))
