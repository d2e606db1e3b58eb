"""A stage as it stands between two instructions, and the instructions that change nothing but its configuration.

Each function here is one instruction: a state in, the next state out. Meaning and history texts are those of BuildKit's
dockerfile2llb (dispatchEnv, dispatchLabel, …), so that configs can be compared field by field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec.structs import replace

from executor.build.copying import normal_path
from executor.build.layer import Layer
from executor.build.scope import SILENT_ARGUMENTS
from executor.build.treename import Name
from executor.dockerfile import declared
from executor.dockerfile import instructions as dockerfile
from executor.image import config as image
from executor.image.config import Healthcheck, History, ImageConfig
from platforms.errors import DockerfileError
from platforms.platform import Platform

COMMENT: Final = "buildkit.dockerfile.v0"
"""The comment of every history entry, by which tools tell a Dockerfile's steps from a base image's."""


class State(msgspec.Struct, frozen=True):
    """A stage between two instructions."""

    platform: Platform
    config: ImageConfig
    layers: tuple[Layer, ...] = ()
    """Bottom first."""
    tree: Name = Name("scratch", "scratch")
    """What the file system is, for cache keys."""
    env: tuple[tuple[str, str], ...] = ()
    """What the next instruction is expanded with and a step sees: ENV and ARG, the later of two winning."""
    arguments: tuple[tuple[str, str | None], ...] = ()
    """ARGs declared in this stage and those it is built on, in order, for the history text of RUN."""
    command_set: bool = False
    """Whether this stage had a CMD, which an ENTRYPOINT then leaves alone."""
    base_history: int = 0
    """How many history entries came with the base image."""

    @property
    def workdir(self) -> str:
        """The directory that relative paths start at."""
        return self.config.working_dir or "/"


def enter(state: State) -> State:
    """``state`` as a FROM leaves it: PATH is always set, and the image's ENV is what lines are expanded with."""
    config = state.config
    if not any(key == "PATH" for key, _ in config.env):
        config = replace(config, env=(*config.env, ("PATH", image.DEFAULT_PATH)))
    env = tuple({**dict(state.env), **dict(config.env)}.items())
    if config.working_dir:
        config = replace(config, working_dir=directory("/", config.working_dir))
    return replace(state, config=config, env=env)


def directory(current: str, path: str) -> str:
    """What ``WORKDIR path`` makes of ``current``: an absolute path stays as it is written (NormalizeWorkdir)."""
    return path if path.startswith("/") else normal_path(current, path)


def noted(state: State, text: str, *, layer: bool = False, created: str = "") -> State:
    """``state`` with one more history entry."""
    entry = History(created=created, created_by=text, comment=COMMENT, empty_layer=not layer)
    return replace(state, config=replace(state.config, history=(*state.config.history, entry)))


def env(state: State, step: dockerfile.Env) -> State:
    """ENV: into the image and the scope."""
    config, scope = state.config, state.env
    for key, value in step.pairs:
        config = image.with_env(config, key, value)
        scope = image.put(scope, key, value)
    text = "ENV " + " ".join(f"{key}={value}" for key, value in step.pairs)
    return noted(replace(state, config=config, env=scope), text)


def arg(state: State, step: dockerfile.Arg, given: Mapping[str, str], outer: Mapping[str, str], escape: str) -> State:
    """ARG: ``given`` by flag, else the default, else the global scope's (``outer``) value."""
    scope, texts = state.env, []
    found = declared(step, dict(scope), given, outer, escape)
    for name, value in found:
        if value is not None and name not in SILENT_ARGUMENTS:
            scope = image.put(scope, name, value)
        texts.append(name if value is None else f"{name}={value}")
    return noted(replace(state, env=scope, arguments=(*state.arguments, *found)), "ARG " + " ".join(texts))


def label(state: State, step: dockerfile.Label) -> State:
    """LABEL: added to, or replacing, the labels there are."""
    labels = dict(state.config.labels) | dict(step.pairs)
    text = "LABEL " + " ".join(f"{key}={value}" for key, value in step.pairs)
    return noted(replace(state, config=replace(state.config, labels=tuple(sorted(labels.items())))), text)


def cmd(state: State, step: dockerfile.Cmd) -> State:
    """CMD: the default command, through the stage's shell when it is not a list."""
    command = _command(state, step.command, step.shell)
    config = replace(state.config, cmd=command, args_escaped=True)
    return noted(replace(state, config=config, command_set=True), f"CMD {_quoted_list(command)}")


def entrypoint(state: State, step: dockerfile.Entrypoint) -> State:
    """ENTRYPOINT: takes a base image's CMD away, but not this stage's own."""
    command = _command(state, step.command, step.shell)
    config = replace(state.config, entrypoint=command, cmd=state.config.cmd if state.command_set else None)
    return noted(replace(state, config=config), f"ENTRYPOINT {_quoted_list(command)}")


def shell(state: State, step: dockerfile.Shell) -> State:
    """SHELL: what shell forms run in from here on."""
    text = "SHELL [" + " ".join(step.command) + "]"
    return noted(replace(state, config=replace(state.config, shell=step.command)), text)


def expose(state: State, step: dockerfile.Expose) -> State:
    """EXPOSE: ports as ``number/protocol``, as the expansion of the step has spelled them out."""
    merged = tuple(sorted({*state.config.exposed_ports, *step.ports}))
    return noted(replace(state, config=replace(state.config, exposed_ports=merged)), f"EXPOSE [{' '.join(step.ports)}]")


def volume(state: State, step: dockerfile.Volume) -> State:
    """VOLUME: a mount point in the config; nothing is made."""
    for path in step.paths:
        if not path:
            raise DockerfileError("VOLUME specified can not be an empty string", where=step.location)
    merged = tuple(sorted({*state.config.volumes, *step.paths}))
    return noted(replace(state, config=replace(state.config, volumes=merged)), f"VOLUME [{' '.join(step.paths)}]")


def user(state: State, step: dockerfile.User) -> State:
    """USER: who later steps and the image's command run as."""
    return noted(replace(state, config=replace(state.config, user=step.user)), f"USER {step.user}")


def stopsignal(state: State, step: dockerfile.Stopsignal) -> State:
    """STOPSIGNAL: by name or number."""
    return noted(replace(state, config=replace(state.config, stop_signal=step.signal)), f"STOPSIGNAL {step.signal}")


def healthcheck(state: State, step: dockerfile.Healthcheck) -> State:
    """HEALTHCHECK: NONE, or a command with its times."""
    if step.kind == "none":
        check = Healthcheck(("NONE",))
    else:
        head = "CMD" if step.kind == "cmd" else "CMD-SHELL"
        check = Healthcheck(
            (head, *step.command), step.interval, step.timeout, step.start_period, step.start_interval, step.retries
        )
    text = "HEALTHCHECK {{Test:[{}] Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}".format(
        " ".join(check.test),
        *(_duration(each) for each in (check.interval, check.timeout, check.start_period, check.start_interval)),
        check.retries,
    )
    return noted(replace(state, config=replace(state.config, healthcheck=check)), text)


def maintainer(state: State, step: dockerfile.Maintainer) -> State:
    """MAINTAINER (deprecated): the image's author."""
    return noted(replace(state, config=replace(state.config, author=step.name)), f"MAINTAINER {step.name}")


def onbuild(state: State, step: dockerfile.Onbuild) -> State:
    """ONBUILD: kept for the builds that start from this image; leaves no history."""
    return replace(state, config=replace(state.config, onbuild=(*state.config.onbuild, step.expression)))


def shell_command(config: ImageConfig, text: str) -> tuple[str, ...]:
    """``text`` as the argument list that runs it in the stage's shell."""
    return (*(config.shell or ("/bin/sh", "-c")), text)


def run_text(state: State, argv: tuple[str, ...]) -> str:
    """RUN's history text: the arguments in scope (``|2 A=1 B=2``), then the command."""
    values = dict(state.env)
    seen: dict[str, str] = {}
    for name, value in state.arguments:
        seen[name] = values.get(name, value or "")
    head = [f"|{len(seen)}", *(f"{name}={value}" for name, value in seen.items())] if seen else []
    return "RUN " + " ".join([*head, *argv]) + " # buildkit"


def _command(state: State, command: tuple[str, ...], in_shell: bool) -> tuple[str, ...]:
    return shell_command(state.config, " ".join(command)) if in_shell else command


def _quoted_list(words_: tuple[str, ...]) -> str:
    return "[" + " ".join(go_quote(word) for word in words_) + "]"


_ESCAPES: Final = {
    '"': '\\"',
    "\\": "\\\\",
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
}


def go_quote(text: str) -> str:
    """``text`` as Go's ``%q`` prints it."""
    out = []
    for letter in text:
        if letter in _ESCAPES:
            out.append(_ESCAPES[letter])
        elif letter.isprintable():
            out.append(letter)
        elif ord(letter) < 0x80:
            out.append(f"\\x{ord(letter):02x}")
        elif 0xDC80 <= ord(letter) <= 0xDCFF:  # a byte that is no UTF-8, as surrogateescape keeps it
            out.append(f"\\x{ord(letter) - 0xDC00:02x}")
        elif ord(letter) < 0x10000:
            out.append(f"\\u{ord(letter):04x}")
        else:
            out.append(f"\\U{ord(letter):08x}")
    return '"' + "".join(out) + '"'


def _duration(nanoseconds: int) -> str:
    """``nanoseconds`` as Go prints a ``time.Duration``."""
    if nanoseconds == 0:
        return "0s"
    if nanoseconds < 1_000_000_000:
        for unit, name in ((1_000_000, "ms"), (1_000, "µs"), (1, "ns")):
            if nanoseconds >= unit:
                return f"{_decimal(nanoseconds, unit)}{name}"
    minutes, rest = divmod(nanoseconds, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{_decimal(rest, 1_000_000_000)}s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def _decimal(number: int, unit: int) -> str:
    """``number`` divided by ``unit`` (a power of ten), exactly."""
    whole, rest = divmod(number, unit)
    fraction = f"{unit + rest}"[1:].rstrip("0")
    return f"{whole}.{fraction}" if fraction else f"{whole}"
