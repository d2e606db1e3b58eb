"""The state of a stage between two instructions, and the instructions that change its configuration only.

``StateBuilder`` takes one instruction after the other. Meaning and history texts are those of BuildKit's
dockerfile2llb (dispatchEnv, dispatchLabel, …), so that configs can be compared field by field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec.structs import replace

from executor.dockerfile import declared, expand
from executor.dockerfile import instructions as dockerfile
from executor.dockerfile.instructions import Instruction
from executor.image import config as image
from executor.image.config import HealthConfig, History, ImageConfig
from executor.solver.builtin_args import SILENT_ARGUMENTS
from executor.solver.copying import normal_path
from executor.solver.layer import USUAL, Layer, LayerForm
from executor.solver.treename import Name, Observed
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
    """The name of the file system, for cache keys."""
    env: tuple[tuple[str, str], ...] = ()
    """The variables of the next instruction: ENV and ARG; the later of two with the same name counts."""
    arguments: tuple[tuple[str, str | None], ...] = ()
    """ARGs declared in this stage and those it is built on, in order, for the history text of RUN."""
    command_set: bool = False
    """Whether this stage had a CMD, which an ENTRYPOINT then leaves alone."""
    base_history: int = 0
    """How many history entries came with the base image."""
    written: int = 0
    """Characters of the history entries that have come since."""
    form: LayerForm = USUAL
    """The form of the layers: that of the base image's."""

    def shown(self, tree: Observed) -> Observed:
        """Return what the key of a step contains for the files below: ``tree``, and the form of the layer upon it."""
        return (tree, *self.form.key_parts) if self.form.key_parts else tree

    @property
    def windows(self) -> bool:
        """Whether paths are those of Windows."""
        return self.platform.os == "windows"

    @property
    def workdir(self) -> str:
        """The directory that relative paths start at, with forward slashes."""
        found = self.config.working_dir or "/"
        return found.replace("\\", "/") if self.windows else found


def enter(state: State) -> State:
    """Return ``state`` after a FROM: with PATH set, and with the image's ENV as variables."""
    config = state.config
    if not (state.windows or any(key == "PATH" for key, _ in config.env)):
        config = replace(config, env=(*config.env, ("PATH", image.DEFAULT_PATH)))
    env = tuple({**dict(state.env), **dict(config.env)}.items())
    if config.working_dir:
        config = replace(config, working_dir=directory(state, "/", config.working_dir))
    return replace(state, config=config, env=env)


def directory(state: State, current: str, path: str) -> str:
    """Return the working directory of ``state`` after ``WORKDIR path`` in ``current``. An absolute path is not cleaned
    (NormalizeWorkdir)."""
    if state.windows:
        from executor.solver import windows_paths

        return windows_paths.working_directory(current, path)
    return path if path.startswith("/") else normal_path(current, path)


def noted(state: State, text: str, *, layer: bool = False, created: str = "") -> State:
    """Return ``state`` with one more history entry. Raises ``DockerfileError`` (without location) if it is too
    large."""
    entry = History(created=created, created_by=text, comment=COMMENT, empty_layer=not layer)
    config = replace(state.config, history=(*state.config.history, entry))
    return replace(state, config=config, written=_written(state.written, text))


def _written(before: int, text: str) -> int:
    """Return the length of the history with ``text`` added. Limited, because expanded variables can grow
    exponentially."""
    if before + len(text) > image.CONFIG_LIMIT:
        raise DockerfileError(
            "the configuration of the image is too large",
            why=f"its history alone would have more than {image.CONFIG_LIMIT >> 20} MiB",
            remedy="a value that is long, or is put together of itself again and again, belongs in a file",
        )
    return before + len(text)


class StateBuilder:
    """Applies instructions that change the configuration only, without copying the state for each.

    ``state`` is called before a step with a layer, and at the end of the stage.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._config = state.config
        self.env = dict(state.env)
        """What the next instruction is expanded with."""
        self._image_env = list(state.config.env)
        self._positions: dict[str, list[int]] = {}
        for position, (name, _) in enumerate(self._image_env):
            self._positions.setdefault(name, []).append(position)
        self._labels = dict(state.config.labels)
        self._ports = set(state.config.exposed_ports)
        self._volumes = set(state.config.volumes)
        self._onbuild = list(state.config.onbuild)
        self._history = list(state.config.history)
        self._arguments = list(state.arguments)
        self._command_set = state.command_set
        self._written = state.written

    def state(self) -> State:
        """Return the state after all instructions so far."""
        config = replace(
            self._config,
            env=tuple(self._image_env),
            labels=tuple(sorted(self._labels.items())),
            exposed_ports=tuple(sorted(self._ports)),
            volumes=tuple(sorted(self._volumes)),
            onbuild=tuple(self._onbuild),
            history=tuple(self._history),
        )
        return replace(
            self._state,
            config=config,
            env=tuple(self.env.items()),
            arguments=tuple(self._arguments),
            command_set=self._command_set,
            written=self._written,
        )

    def apply(self, step: Instruction, given: Mapping[str, str], outer: Mapping[str, str], escape: str) -> None:
        """Apply one instruction without a layer. The value of an ARG is that of ``given``, its default, or that of
        ``outer``."""
        if isinstance(step, dockerfile.Arg):
            self._arg(step, given, outer, escape)
            return
        step = expand(step, self.env, escape)
        match step:
            case dockerfile.Env():
                self._env(step)
            case dockerfile.Label():
                self._label(step)
            case dockerfile.Cmd():
                self._cmd(step)
            case dockerfile.Entrypoint():
                self._entrypoint(step)
            case dockerfile.Shell():
                self._changed("SHELL [" + " ".join(step.command) + "]", shell=step.command)
            case dockerfile.Expose():
                self._ports.update(step.ports)
                self._noted(f"EXPOSE [{' '.join(step.ports)}]")
            case dockerfile.Volume():
                self._volume(step)
            case dockerfile.User():
                self._changed(f"USER {step.user}", user=step.user)
            case dockerfile.Stopsignal():
                self._changed(f"STOPSIGNAL {step.signal}", stop_signal=step.signal)
            case dockerfile.Healthcheck():
                check = _healthcheck(step)
                self._changed(_healthcheck_text(check), healthcheck=check)
            case dockerfile.Maintainer():
                self._changed(f"MAINTAINER {step.name}", author=step.name)
            case dockerfile.Onbuild():
                self._onbuild.append(step.expression)  # leaves no history
            case _:
                raise DockerfileError(f"{step.keyword} cannot be built", where=step.location)

    def _noted(self, text: str) -> None:
        self._written = _written(self._written, text)
        self._history.append(History(created_by=text, comment=COMMENT, empty_layer=True))

    def _changed(self, text: str, **fields: object) -> None:
        self._config = replace(self._config, **fields)
        self._noted(text)

    def _env(self, step: dockerfile.Env) -> None:
        for key, value in step.pairs:
            self.env[key] = value
            if key not in self._positions:
                self._positions[key] = [len(self._image_env)]
                self._image_env.append((key, value))
            for position in self._positions[key]:
                self._image_env[position] = (key, value)
        self._noted("ENV " + " ".join(f"{key}={value}" for key, value in step.pairs))

    def _arg(self, step: dockerfile.Arg, given: Mapping[str, str], outer: Mapping[str, str], escape: str) -> None:
        texts = []
        for name, value in declared(step, self.env, given, outer, escape):
            if value is not None and name not in SILENT_ARGUMENTS:
                self.env[name] = value
            texts.append(name if value is None else f"{name}={value}")
            self._arguments.append((name, value))
        self._noted("ARG " + " ".join(texts))

    def _label(self, step: dockerfile.Label) -> None:
        self._labels.update(step.pairs)
        self._noted("LABEL " + " ".join(f"{key}={value}" for key, value in step.pairs))

    def _cmd(self, step: dockerfile.Cmd) -> None:
        """The default command, through the stage's shell when it is not a list."""
        command = self._command(step.command, step.shell)
        self._command_set = True
        self._changed(f"CMD {_quoted_list(command)}", cmd=command, args_escaped=True)

    def _entrypoint(self, step: dockerfile.Entrypoint) -> None:
        """Takes a base image's CMD away, but not this stage's own."""
        command = self._command(step.command, step.shell)
        cmd = self._config.cmd if self._command_set else None
        self._changed(f"ENTRYPOINT {_quoted_list(command)}", entrypoint=command, cmd=cmd)

    def _volume(self, step: dockerfile.Volume) -> None:
        """A mount point in the config; nothing is made."""
        if not all(step.paths):
            raise DockerfileError("VOLUME specified can not be an empty string", where=step.location)
        self._volumes.update(step.paths)
        self._noted(f"VOLUME [{' '.join(step.paths)}]")

    def _command(self, command: tuple[str, ...], in_shell: bool) -> tuple[str, ...]:
        return shell_command(self._config, " ".join(command)) if in_shell else command


def _healthcheck(step: dockerfile.Healthcheck) -> HealthConfig:
    """NONE, or a command with its times."""
    if step.kind == "none":
        return HealthConfig(("NONE",))
    head = "CMD" if step.kind == "cmd" else "CMD-SHELL"
    return HealthConfig(
        (head, *step.command), step.interval, step.timeout, step.start_period, step.start_interval, step.retries
    )


def _healthcheck_text(check: HealthConfig) -> str:
    return "HEALTHCHECK {{Test:[{}] Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}".format(
        " ".join(check.test),
        *(_duration(each) for each in (check.interval, check.timeout, check.start_period, check.start_interval)),
        check.retries,
    )


_SHELL: Final = ("/bin/sh", "-c")
_SHELLS: Final = {"windows": ("cmd", "/S", "/C")}
"""The shell of images that set none."""


def shell_command(config: ImageConfig, text: str) -> tuple[str, ...]:
    """``text`` as the argument list that runs it in the stage's shell."""
    return (*(config.shell or _SHELLS.get(config.platform.os, _SHELL)), text)


def run_text(state: State, argv: tuple[str, ...]) -> str:
    """RUN's history text: the arguments in scope (``|2 A=1 B=2``), then the command."""
    values = dict(state.env)
    seen: dict[str, str] = {}
    for name, value in state.arguments:
        seen[name] = values.get(name, value or "")
    head = [f"|{len(seen)}", *(f"{name}={value}" for name, value in seen.items())] if seen else []
    return "RUN " + " ".join([*head, *argv]) + " # buildkit"


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
