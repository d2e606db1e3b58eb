"""Traps of building one Dockerfile for several platforms: it builds, and what comes out is for the wrong one.

Each function looks at one kind of trap and knows nothing of the others. Texts are looked at, not run: a RUN that names
a platform ARG or asks the machine before it chooses a URL is believed to know what it does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from typing import Final

import msgspec

from executor.dockerfile import answers
from executor.dockerfile.answers import Asking
from executor.dockerfile.instructions import Add, Arg, Instruction, Run
from executor.dockerfile.rules import (
    BUILD_MACHINE_ASKED,
    PLATFORM_ARG_DEFAULT,
    SINGLE_PLATFORM_DIGEST,
    SINGLE_PLATFORM_URL,
    Violation,
)
from executor.dockerfile.stages import Dockerfile, Stage
from platforms import parsing
from platforms.errors import UsageError

_ASKS_MACHINE: Final = re.compile(
    r"uname\s+-[snrvo]*[mpia][asnrvmpio]*\b|uname\s+--(?:machine|processor|hardware-platform|all)\b"
    r"|dpkg\s+--print-architecture|apk\s+--print-arch|rpm\s+(?:-E|--eval)[\s=]*\S*_arch\S*|go\s+env\s+GOARCH"
    r"|(?:\$\(|`|[;&|]|^)[ \t]*(arch)[ \t]*(?:\)|`|[;&|>]|$)",
    re.MULTILINE,
)
_KNOWS_TARGET: Final = re.compile(r"TARGET(?:ARCH|PLATFORM|VARIANT|OS)\b")
_URL: Final = re.compile(r"(?:https?|ftp)://[^\s\"'`<>|;()]+")
_ARCHITECTURES: Final = {
    "amd64": "amd64",
    "x86_64": "amd64",
    "x86-64": "amd64",
    "x64": "amd64",
    "linux64": "amd64",
    "arm64": "arm64",
    "aarch64": "arm64",
    "armhf": "arm",
    "armv6": "arm",
    "armv6l": "arm",
    "armv7": "arm",
    "armv7l": "arm",
    "i386": "386",
    "i686": "386",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}
_ARCHITECTURE: Final = re.compile(
    "(?<![a-z0-9])(" + "|".join(sorted(_ARCHITECTURES, key=len, reverse=True)) + ")(?![a-z0-9])", re.IGNORECASE
)
_SHOWN: Final = 100

PLATFORM_ARGS: Final = frozenset(
    f"{side}{part}" for side in ("BUILD", "TARGET") for part in ("PLATFORM", "OS", "OSVERSION", "ARCH", "VARIANT")
)
"""Dockerfile reference, "Automatic platform ARGs in the global scope"."""


class Base(msgspec.Struct, frozen=True):
    """What is known of a base image."""

    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    has_shell: bool = False
    """Whether it sets SHELL."""
    platform: str = ""
    """The platform of the image that was found, "" when not known."""
    only: str = ""
    """The one platform that its reference can give, when it names a manifest rather than an index."""


def platform_defaults(arg: Arg, seen: Container[str]) -> Iterator[Violation]:
    """A platform ARG that is given a default of its own, and not one made of itself when it is ``seen`` already."""
    for name, default in arg.assignments:
        if name in PLATFORM_ARGS and default:
            itself = re.search(rf"\$\{{?{name}\b", default)
            if itself is None or name not in seen:
                yield PLATFORM_ARG_DEFAULT.at(arg.location, name, default, name)


def asks_machine(instruction: Instruction) -> str:
    """How a RUN asks the machine what it is; "" if it does not, or names the target as well."""
    if not isinstance(instruction, Run):
        return ""
    text = _text(instruction)
    found = _ASKS_MACHINE.search(text)
    return "" if found is None or _KNOWS_TARGET.search(text) else found.group(1) or found.group()


def build_machine(instruction: Instruction) -> Iterator[Violation]:
    """In a stage that runs on the build platform: programs whose answer about the machine is for the target."""
    yield BUILD_MACHINE_ASKED.at(instruction.location, asks_machine(instruction))


def machine_answers(
    dockerfile: Dockerfile, stages: Collection[int], parents: Mapping[int, int], on_builder: Collection[int]
) -> frozenset[int]:
    """The ``id`` of each RUN whose question about the machine decides what the target gets (``answers.reaching``)."""
    how = Asking(lambda text: bool(_ASKS_MACHINE.search(text)), lambda text: bool(_KNOWS_TARGET.search(text)))
    return answers.reaching(dockerfile, stages, parents, on_builder, how)


def for_windows(dockerfile: Dockerfile) -> bool:
    """Whether the Dockerfile is written for Windows, whose programs ask otherwise and where ` is no question."""
    return dockerfile.escape == "`"


def single_platform_urls(instruction: Instruction, stage: str, targets: Iterable[str]) -> Iterator[Violation]:
    """In a stage that is built for every target: URLs that name an architecture which is not every target's.

    Unless the stage's name says so too (``FROM tool-$TARGETARCH`` chooses among such stages), or there is one for each.
    """
    if isinstance(instruction, Add):
        texts: tuple[str, ...] = instruction.sources
    elif isinstance(instruction, Run):
        text = _text(instruction)
        texts = () if _KNOWS_TARGET.search(text) or _ASKS_MACHINE.search(text) else (text,)
    else:
        return
    wanted = {_architecture(target): target for target in targets}
    meant = _architectures(stage)
    urls = [url for text in texts for url in _URL.findall(text)]
    if wanted.keys() <= _architectures(" ".join(urls)):
        return
    for url in urls:
        named = _architectures(url) - meant
        others = [target for architecture, target in wanted.items() if architecture not in named]
        if len(named) == 1 and others:
            shown = url if len(url) <= _SHOWN else url[:_SHOWN] + "…"
            yield SINGLE_PLATFORM_URL.at(instruction.location, shown, *named, ", ".join(others))


def single_platform_digest(stage: Stage, image: str, base: Base, targets: Iterable[str]) -> Iterator[Violation]:
    """A FROM that all targets share, pinned to the manifest of one."""
    others = [target for target in targets if base.only and not alike(base.only, target)]
    if "@" in image and others:
        yield SINGLE_PLATFORM_DIGEST.at(stage.location, image, base.only, ", ".join(others))


def _text(run: Run) -> str:
    return "\n".join((*run.command, *(heredoc.content for heredoc in run.heredocs)))


def _architectures(text: str) -> set[str]:
    return {_ARCHITECTURES[found.lower()] for found in _ARCHITECTURE.findall(text)}


def _architecture(platform: str) -> str:
    try:
        return parsing.parse(platform).architecture
    except UsageError:
        return platform


def alike(one: str, other: str) -> bool:
    """Whether two platforms have the same system and architecture."""
    try:
        found, wanted = parsing.parse(one), parsing.parse(other)
    except UsageError:
        return one == other
    return (found.os, found.architecture) == (wanted.os, wanted.architecture)
