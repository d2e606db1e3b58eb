"""Expansion of the variables in an instruction.

    expanded    FROM; ADD and COPY (sources, destination, --chown, --chmod, --checksum, unquoted here-documents);
                ENV and LABEL (names and values); EXPOSE; STOPSIGNAL; USER; VOLUME; WORKDIR; the fields of RUN --mount
    unchanged   RUN, CMD, ENTRYPOINT, HEALTHCHECK, SHELL, ONBUILD, MAINTAINER; --from, --exclude
    elsewhere   ARG: each default sees the names before it, and may be overridden (``scope``)

All words of an ENV line are expanded with the variables from before the line. What can be validated only after
expansion (mounts, ports, signals, patterns, modes) is validated here.

Source: Dockerfile reference, "Environment replacement".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, TypeVar, cast

from msgspec.structs import replace

from executor.dockerfile import copy_checks, ignore, mount_options, ports
from executor.dockerfile import instructions as kinds
from executor.dockerfile.lines import Heredoc
from executor.dockerfile.suggestions import hint_any
from executor.dockerfile.words import BODY, RecordingMapping, expand_words
from executor.dockerfile.words import expand as expand_text
from platforms.errors import DockerfileError

I = TypeVar("I", bound=kinds.Instruction)  # noqa: E741 -- the instruction

_SIGNALS: Final = frozenset(
    (
        *(
            "ABRT",
            "ALRM",
            "BUS",
            "CHLD",
            "CLD",
            "CONT",
            "FPE",
            "HUP",
            "ILL",
            "INT",
            "IO",
            "IOT",
            "KILL",
            "PIPE",
            "POLL",
        ),
        *(
            "PROF",
            "PWR",
            "QUIT",
            "SEGV",
            "STKFLT",
            "STOP",
            "SYS",
            "TERM",
            "TRAP",
            "TSTP",
            "TTIN",
            "TTOU",
            "URG",
            "USR1",
        ),
        *("URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX"),
        *(f"RTMIN+{number}" for number in range(1, 16)),
        *(f"RTMAX-{number}" for number in range(1, 15)),
    )
)


def expand(instruction: I, env: Mapping[str, str], escape: str = "\\") -> I:
    """Return ``instruction`` with its words expanded by ``env``: the global ARGs for FROM, else the stage's variables.

    Raises DockerfileError with the location of the instruction.
    """
    word = partial(expand_text, env=env, escape=escape)
    try:
        return cast(I, _expanded(instruction, word, env, escape))
    except DockerfileError as error:
        problem = error.problem
        raise DockerfileError(
            problem.what, why=problem.why, remedy=problem.remedy, where=instruction.location
        ) from error
    except ValueError as wrong:
        from executor.dockerfile.grammar import USAGE

        usage = USAGE[instruction.keyword.lower()]
        raise DockerfileError(str(wrong), remedy=f"Write it as: {usage}", where=instruction.location) from wrong


def _expanded(
    instruction: kinds.Instruction, word: Callable[[str], str], env: Mapping[str, str], escape: str
) -> kinds.Instruction:
    match instruction:
        case kinds.From():
            return _base(instruction, word, env, escape)
        case kinds.Env() | kinds.Label():
            return replace(instruction, pairs=tuple((word(name), word(value)) for name, value in instruction.pairs))
        case kinds.Copy():
            copy = replace(instruction, **_files(instruction, word, env))
            copy_checks.check(copy)
            return copy
        case kinds.Add():
            add = replace(instruction, **_files(instruction, word, env), checksum=word(instruction.checksum))
            copy_checks.check(add)
            return add
        case kinds.Run() if instruction.mounts:
            return replace(
                instruction, mounts=tuple(mount_options.mount(mount.text, word) for mount in instruction.mounts)
            )
        case kinds.Workdir():
            return replace(instruction, path=word(instruction.path))
        case kinds.User():
            return replace(instruction, user=word(instruction.user))
        case kinds.Volume():
            paths = tuple(map(word, instruction.paths))
            if "" in paths:
                raise ValueError("VOLUME specified can not be an empty string")
            return replace(instruction, paths=paths)
        case kinds.Expose():
            words = (part for port in instruction.ports for part in expand_words(port, env, escape=escape))
            return replace(instruction, ports=ports.exposed(tuple(words)))
        case kinds.Stopsignal():
            signal = word(instruction.signal)
            _check_signal(signal)
            return replace(instruction, signal=signal)
        case _:
            return instruction


def _base(base: kinds.From, word: Callable[[str], str], env: Mapping[str, str], escape: str) -> kinds.From:
    image = word(base.image)
    if not image:
        raise ValueError(f"base name ({base.image}) should not be blank")
    platform = word(base.platform)
    if base.platform and not platform:
        meant = misspelt(base.platform, env, escape)
        raise ValueError(f"empty platform value from expression {base.platform}{meant}")
    return replace(base, image=image, platform=platform)


def misspelt(text: str, env: Mapping[str, str], escape: str) -> str:
    """Return `` (did you mean NAME?)`` for a variable of ``text`` that is not in ``env`` but resembles one; else ""."""
    seen = RecordingMapping(env)
    expand_text(text, seen, escape=escape)
    return hint_any(seen.missing, env)


def _files(
    instruction: kinds.Copy | kinds.Add, word: Callable[[str], str], env: Mapping[str, str]
) -> dict[str, object]:
    ignore.compile_patterns(instruction.exclude)
    return {
        "chown": word(instruction.chown),
        "chmod": word(instruction.chmod),
        "sources": tuple(map(word, instruction.sources)),
        "destination": word(instruction.destination),
        "heredocs": tuple(
            Heredoc(doc.name, expand_text(doc.content, env, style=BODY), doc.expand, doc.chomp) if doc.expand else doc
            for doc in instruction.heredocs
        ),
    }


def _check_signal(signal: str) -> None:
    number = signal.removeprefix("+").removeprefix("-")
    if number.isascii() and number.isdigit():
        valid = int(number[:20]) != 0
    else:
        valid = signal.upper().removeprefix("SIG") in _SIGNALS
    if not valid:
        raise ValueError(f"invalid signal: {signal}")
