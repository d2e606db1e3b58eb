"""Parsing a statement into an instruction: flags, forms and arguments, one function for each instruction.

What BuildKit rejects while it parses a Dockerfile is rejected here, with the same message; what it rejects while it
builds a stage (a mount's fields, a chmod mode) is rejected by ``expansion.expand``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from executor.dockerfile import instructions as kinds
from executor.dockerfile import mount_options, split
from executor.dockerfile.lines import Heredoc, Statement, heredoc_mark
from executor.dockerfile.suggestions import hint
from executor.dockerfile.words import expand
from platforms.durations import nanoseconds
from platforms.errors import DockerfileError

I = TypeVar("I", bound=kinds.Instruction)  # noqa: E741 -- the instruction

_STAGE_NAME: Final = r"[a-z][a-z0-9\-_.]*"  # compiled when used, as the next one: few builds have either
_ONBUILD: Final = r"(?ai:\s*ONBUILD\s*)"
_SHORTEST: Final = 10**6
_RETRIES_LIMIT: Final = (1 << 31) - 1

USAGE: Final = {
    "add": "ADD [--chown=… --chmod=… --link --checksum=… --keep-git-dir --unpack --exclude=…] source … destination",
    "arg": "ARG name[=default] …",
    "cmd": 'CMD ["program", "argument", …] or CMD command',
    "copy": "COPY [--from=… --chown=… --chmod=… --link --parents --exclude=…] source … destination",
    "entrypoint": 'ENTRYPOINT ["program", "argument", …] or ENTRYPOINT command',
    "env": "ENV name=value …",
    "expose": "EXPOSE port[/protocol] …",
    "from": "FROM [--platform=…] image [AS name]",
    "healthcheck": "HEALTHCHECK [--interval=… --timeout=… --start-period=… --start-interval=… --retries=…] CMD command"
    ", or HEALTHCHECK NONE",
    "label": "LABEL name=value …",
    "maintainer": "MAINTAINER name",
    "onbuild": "ONBUILD instruction",
    "run": "RUN [--mount=… --network=… --security=… --device=…] command",
    "shell": 'SHELL ["program", "argument", …]',
    "stopsignal": "STOPSIGNAL name or number",
    "user": "USER name[:group]",
    "volume": 'VOLUME path … or VOLUME ["path", …]',
    "workdir": "WORKDIR path",
}


class InvalidStatementError(ValueError):
    """Why a statement is invalid; ``instruction`` adds the location."""


def instruction(statement: Statement, escape: str) -> kinds.Instruction:
    """Return the instruction of ``statement``. Raises DockerfileError with its location."""
    keyword = statement.keyword.lower()
    read = _READERS.get(keyword)
    try:
        if read is None:
            raise InvalidStatementError(f"unknown instruction: {statement.keyword}{_suggestion(statement.keyword)}")
        return read(_StatementParser(statement, escape))
    except (ValueError, DockerfileError) as wrong:
        if isinstance(wrong, ValueError):
            what, remedy = str(wrong), ""
        else:
            what, remedy = wrong.problem.what, wrong.problem.remedy
        raise DockerfileError(what, remedy=remedy or _usage(keyword), where=statement.location) from wrong


def _suggestion(keyword: str) -> str:
    found = hint(keyword.upper(), kinds.KEYWORDS)
    return found.lower() if keyword.islower() else found


def _usage(keyword: str) -> str:
    if keyword in USAGE:
        return f"Write it as: {USAGE[keyword]}"
    return "Instructions are " + ", ".join(kinds.KEYWORDS) + "; end a line with a backslash to continue it."


class _StatementParser:
    """A statement that is being parsed."""

    def __init__(self, statement: Statement, escape: str) -> None:
        self.statement = statement
        self.escape = escape

    def made(self, instruction: type[I], /, **values: Any) -> I:
        statement = self.statement
        return instruction(
            location=statement.location,
            original=split.strip(statement.text),
            keyword=statement.keyword,
            comments=statement.comments,
            **values,
        )

    def flags(self, **known: type) -> dict[str, Any]:
        """Return the values of the flags; ``known`` gives the type of each: bool, str, or list if it may be
        repeated."""
        kinds_by_name = {name.rstrip("_").replace("_", "-"): (name, kind) for name, kind in known.items()}
        found: dict[str, Any] = {}
        for flag in self.statement.flags:
            written, equals, value = flag.partition("=")
            name = written[2:]
            if name not in kinds_by_name:
                raise InvalidStatementError(f"unknown flag: {written}{hint(name, kinds_by_name)}")
            key, kind = kinds_by_name[name]
            if key in found and kind is not list:
                raise InvalidStatementError(f"duplicate flag specified: {written}")
            if (not equals and kind is not bool) or (equals and not value and kind is bool):
                raise InvalidStatementError(f"missing a value on flag: {written}")
            if kind is bool:
                if value.lower() not in ("", "true", "false"):
                    raise InvalidStatementError(f"expecting boolean value for flag {written}, not: {value}")
                found[key] = value.lower() != "false"
            elif kind is list:
                found[key] = (*found.get(key, ()), value)
            else:
                found[key] = value
        return found

    def words(self) -> list[str]:
        """Return the arguments, split at blanks."""
        return split.fields(self.statement.rest) if self.statement.rest else []

    def items(self) -> list[str]:
        """Return the arguments: the strings of a JSON array, or else split at blanks."""
        array = split.json_array(self.statement.rest)
        return self.words() if array is None else [*array]

    def one(self) -> str:
        """Return the only argument, white space included."""
        if not self.statement.rest:
            raise InvalidStatementError(f"{self.name} requires exactly one argument")
        return self.statement.rest

    def some(self, found: list[str]) -> list[str]:
        if not found:
            raise InvalidStatementError(f"{self.name} requires at least one argument")
        return found

    def program(self, text: str) -> tuple[tuple[str, ...], bool]:
        """Return a command and whether it is in shell form."""
        array = split.json_array(text)
        if array is not None:
            return array, False
        return ((text,) if text else ()), True

    @property
    def name(self) -> str:
        return self.statement.keyword.upper()

    def pairs(self) -> tuple[tuple[tuple[str, str], ...], bool]:
        """Return the ``name=value`` words, and whether the legacy form ``name value`` was used instead."""
        text = self.statement.rest
        words = self.some(split.words(text, self.escape))
        if "=" not in words[0]:
            parts = split.fields(text, 1)
            if len(parts) == 1:
                raise InvalidStatementError(f"{self.name} must have two arguments")
            return ((parts[0], parts[1]),), True
        found: list[tuple[str, str]] = []
        for word in words:
            name, value = _name_and_value(word)
            if not name:
                raise InvalidStatementError(f"{self.name} names can not be blank")
            found.append((name, value))
        return tuple(found), False


def _from(form: _StatementParser) -> kinds.From:
    words = form.words()
    if len(words) == 3 and words[1].lower() == "as":
        name, alias = words[2].lower(), (words[1], words[2])
        if re.fullmatch(_STAGE_NAME, name) is None:
            raise InvalidStatementError(
                f'invalid name for build stage: "{words[2]}", name can\'t start with a number or contain symbols'
            )
    elif len(words) == 1:
        name, alias = "", ("", "")
    else:
        raise InvalidStatementError("FROM requires either one or three arguments")
    return form.made(kinds.From, image=words[0], name=name, alias=alias, **form.flags(platform=str))


def _run(form: _StatementParser) -> kinds.Run:
    flags = form.flags(mount=list, network=str, security=str, device=list)
    network = flags.get("network", "default")
    if network not in ("default", "none", "host"):
        raise InvalidStatementError(f'invalid network mode "{network}"{hint(network, ("default", "none", "host"))}')
    security = flags.get("security", "sandbox")
    if security not in ("sandbox", "insecure"):
        raise InvalidStatementError(f'security "{security}" is not valid{hint(security, ("sandbox", "insecure"))}')
    command, shell = form.program(form.statement.rest)
    return form.made(
        kinds.Run,
        command=command,
        shell=shell,
        heredocs=form.statement.heredocs,
        mounts=tuple(map(mount_options.unexpanded, flags.get("mount", ()))),
        network=network,
        security=security,
        devices=tuple(map(mount_options.device, flags.get("device", ()))),
    )


def _files(form: _StatementParser) -> dict[str, Any]:
    """Return the sources, inline files and destination of COPY and ADD."""
    words = form.items()
    if len(words) < 2:
        raise InvalidStatementError(
            f"{form.name} requires at least two arguments, but only one was provided. "
            "Destination could not be determined"
        )
    *sources, destination = words
    if heredoc_mark(destination) is not None:
        raise InvalidStatementError(f"{form.name} cannot accept a heredoc as a destination")
    bodies = {heredoc.name: heredoc for heredoc in form.statement.heredocs}
    paths: list[str] = []
    inline: list[Heredoc] = []
    for source in sources:
        mark = heredoc_mark(source)
        if mark is None:
            paths.append(source)
        else:
            body = bodies.get(mark.name, mark)
            chomped = Heredoc(mark.name, body.content, mark.expand, mark.chomp).chomped()
            inline.append(Heredoc(mark.name, chomped, mark.expand, mark.chomp))
    return {"sources": tuple(paths), "destination": destination, "heredocs": tuple(inline)}


def _copy(form: _StatementParser) -> kinds.Copy:
    flags = form.flags(chown=str, from_=str, chmod=str, link=bool, exclude=list, parents=bool)
    source = flags.get("from_", "")
    if expand(source, {}, escape=form.escape) != source:
        raise InvalidStatementError(
            "variable expansion is not supported for --from, "
            "define a new stage with FROM using ARG from global scope as a workaround"
        )
    return form.made(kinds.Copy, **_files(form), **flags)


def _add(form: _StatementParser) -> kinds.Add:
    flags = form.flags(chown=str, chmod=str, link=bool, keep_git_dir=bool, checksum=str, unpack=bool, exclude=list)
    return form.made(kinds.Add, **_files(form), **flags)


def _env(form: _StatementParser) -> kinds.Env:
    form.flags()
    pairs, legacy = form.pairs()
    return form.made(kinds.Env, pairs=pairs, legacy=legacy)


def _label(form: _StatementParser) -> kinds.Label:
    form.flags()
    pairs, legacy = form.pairs()
    return form.made(kinds.Label, pairs=pairs, legacy=legacy)


def _arg(form: _StatementParser) -> kinds.Arg:
    found: list[tuple[str, str | None]] = []
    for word in form.some(split.words(form.statement.rest, form.escape)):
        name, equals, value = word.partition("=")
        if equals and not name:
            raise InvalidStatementError("ARG names can not be blank")
        found.append((name, value if equals else None))
    return form.made(kinds.Arg, assignments=tuple(found))


def _cmd(form: _StatementParser) -> kinds.Cmd:
    form.flags()
    command, shell = form.program(form.statement.rest)
    return form.made(kinds.Cmd, command=command, shell=shell)


def _entrypoint(form: _StatementParser) -> kinds.Entrypoint:
    form.flags()
    command, shell = form.program(form.statement.rest)
    return form.made(kinds.Entrypoint, command=command, shell=shell)


def _shell(form: _StatementParser) -> kinds.Shell:
    form.flags()
    command, plain = form.program(form.statement.rest)
    form.some([*command])
    if plain:
        raise InvalidStatementError("SHELL requires the arguments to be in JSON form")
    return form.made(kinds.Shell, command=command)


def _expose(form: _StatementParser) -> kinds.Expose:
    ports = form.some(form.words())
    form.flags()
    return form.made(kinds.Expose, ports=tuple(sorted(ports)))


def _volume(form: _StatementParser) -> kinds.Volume:
    paths = tuple(map(split.strip, form.some(form.items())))
    form.flags()
    if "" in paths:
        raise InvalidStatementError("VOLUME specified can not be an empty string")
    return form.made(kinds.Volume, paths=paths)


def _user(form: _StatementParser) -> kinds.User:
    user = form.one()
    form.flags()
    return form.made(kinds.User, user=user)


def _workdir(form: _StatementParser) -> kinds.Workdir:
    path = form.one()
    form.flags()
    return form.made(kinds.Workdir, path=path)


def _stopsignal(form: _StatementParser) -> kinds.Stopsignal:
    return form.made(kinds.Stopsignal, signal=form.one())


def _maintainer(form: _StatementParser) -> kinds.Maintainer:
    name = form.one()
    form.flags()
    return form.made(kinds.Maintainer, name=name)


def _onbuild(form: _StatementParser) -> kinds.Onbuild:
    if not form.statement.rest:
        raise InvalidStatementError("ONBUILD requires at least one argument")
    form.flags()
    trigger, _, arguments = split.command(form.statement.rest, form.escape)
    trigger = trigger.upper()
    if trigger == "ONBUILD":
        raise InvalidStatementError("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("MAINTAINER", "FROM"):
        raise InvalidStatementError(f"{trigger} isn't allowed as an ONBUILD trigger")
    _check_trigger(trigger, arguments, form.escape)
    bodies = "".join(f"\n{heredoc.content}{heredoc.name}" for heredoc in form.statement.heredocs)
    return form.made(kinds.Onbuild, expression=re.sub(_ONBUILD, "", form.statement.text, count=1) + bodies)


def _check_trigger(keyword: str, arguments: str, escape: str) -> None:
    """Validate what BuildKit validates when ONBUILD is parsed; the rest is validated when the trigger runs."""
    if keyword in ("ENV", "LABEL"):
        words = split.words(arguments, escape)
        if words and "=" in words[0]:
            for word in words:
                _name_and_value(word)
        elif words and len(split.fields(arguments, 1)) == 1:
            raise InvalidStatementError(f"{keyword} must have two arguments")
    elif keyword in ("ADD", "COPY", "VOLUME", "RUN", "CMD", "ENTRYPOINT", "SHELL"):
        split.json_array(arguments)
    elif keyword == "HEALTHCHECK":
        split.json_array("".join(split.fields(arguments, 1)[1:]))


def _name_and_value(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        raise InvalidStatementError(
            f"Syntax error - can't find = in {split.quoted(word)}. Must be of the form: name=value"
        )
    return name, value


def _healthcheck(form: _StatementParser) -> kinds.Healthcheck:
    parts = form.some(re.split(f"[{split.SPACE}]+", form.statement.rest, maxsplit=1) if form.statement.rest else [])
    kind, text = parts[0].upper(), "".join(parts[1:])
    command, shell = form.program(text)
    if kind == "NONE":
        if command:
            raise InvalidStatementError("HEALTHCHECK NONE takes no arguments")
        return form.made(kinds.Healthcheck, kind="none")
    flags = form.flags(interval=str, timeout=str, start_period=str, start_interval=str, retries=str)
    if kind != "CMD":
        raise InvalidStatementError(f"Unknown type {split.quoted(kind)} in HEALTHCHECK (try CMD)")
    if not command:
        raise InvalidStatementError("Missing command after HEALTHCHECK CMD")
    retries = _retries(flags.pop("retries", ""))
    times = {key: _interval(key.replace("_", "-"), value) for key, value in flags.items()}
    return form.made(kinds.Healthcheck, kind="shell" if shell else "cmd", command=command, retries=retries, **times)


def _interval(name: str, text: str) -> int:
    time = nanoseconds(text) if text else 0
    if time is None:
        raise InvalidStatementError(f'time: invalid duration "{text}"')
    if time and time < _SHORTEST:
        raise InvalidStatementError(f'Interval "{name}" cannot be less than 1ms')
    return time


def _retries(text: str) -> int:
    digits = text.removeprefix("+").removeprefix("-")
    if text and (not digits.isascii() or not digits.isdigit() or len(digits) > 10 or int(digits) > _RETRIES_LIMIT):
        raise InvalidStatementError(f'--retries must be a number, not "{text}"')
    if text.startswith("-") and int(text):
        raise InvalidStatementError(f"--retries cannot be negative ({text})")
    return int(text or "0")


_READERS: Final[Mapping[str, Callable[[_StatementParser], kinds.Instruction]]] = {
    "add": _add,
    "arg": _arg,
    "cmd": _cmd,
    "copy": _copy,
    "entrypoint": _entrypoint,
    "env": _env,
    "expose": _expose,
    "from": _from,
    "healthcheck": _healthcheck,
    "label": _label,
    "maintainer": _maintainer,
    "onbuild": _onbuild,
    "run": _run,
    "shell": _shell,
    "stopsignal": _stopsignal,
    "user": _user,
    "volume": _volume,
    "workdir": _workdir,
}
