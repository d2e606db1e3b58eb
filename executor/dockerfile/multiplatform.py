"""Multi-platform build checks: Dockerfiles that build but give an image for the wrong platform.

Each function is one check and independent of the others. RUN texts are inspected, not run: a RUN that names a platform
ARG, or queries the machine before it chooses a URL, is assumed to be right.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from typing import Final

import msgspec

from executor.dockerfile import taint
from executor.dockerfile.instructions import Add, Arg, Instruction, Run
from executor.dockerfile.rules import (
    BUILD_MACHINE_ASKED,
    PLATFORM_ARG_DEFAULT,
    SINGLE_PLATFORM_DIGEST,
    SINGLE_PLATFORM_URL,
    Violation,
)
from executor.dockerfile.stages import Dockerfile, Stage
from executor.dockerfile.taint import Query
from platforms import parsing
from platforms.errors import Location, UsageError

_ASKS_MACHINE: Final = re.compile(
    r"uname\s+-[snrvo]*[mpia][asnrvmpio]*\b|uname\s+--(?:machine|processor|hardware-platform|all)\b"
    r"|dpkg\s+--print-architecture|apk\s+--print-arch|rpm\s+(?:-E|--eval)[\s=]*\S*_arch\S*|go\s+env\s+GOARCH"
    r"|(?:\$\(|`|[;&|]|^)[ \t]*(arch)[ \t]*(?:\)|`|[;&|>]|$)",
    re.MULTILINE,
)
_KNOWS_TARGET: Final = re.compile(r"TARGET(?:ARCH|PLATFORM|VARIANT|OS)\b")
_ABSOLUTE: Final = re.compile(r"(?:[Cc]:)?[\\/]")
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


class BaseImage(msgspec.Struct, frozen=True):
    """What is known of a base image."""

    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    has_shell: bool = False
    """Whether it sets SHELL."""
    platform: str = ""
    """The platform of the image that was found, "" if unknown."""
    only: str = ""
    """The only platform that the reference can give, when it names a manifest rather than an index."""


def platform_defaults(arg: Arg, seen: Container[str]) -> Iterator[Violation]:
    """Report a platform ARG with a default of its own, unless that is made of the ARG itself and it is ``seen``
    already."""
    for name, default in arg.assignments:
        if name in PLATFORM_ARGS and default:
            itself = re.search(rf"\$\{{?{name}\b", default)
            if itself is None or name not in seen:
                yield PLATFORM_ARG_DEFAULT.at(arg.location, name, default, name)


def asks_machine(instruction: Instruction) -> str:
    """Return the command with which a RUN queries the machine; "" if it has none, or names the target as well."""
    if not isinstance(instruction, Run):
        return ""
    text = _text(instruction)
    found = _ASKS_MACHINE.search(text)
    return "" if found is None or _KNOWS_TARGET.search(text) else found.group(1) or found.group()


def build_machine(instruction: Instruction) -> Iterator[Violation]:
    """Report programs whose output about the build machine is used for the target, in a stage of the build platform."""
    yield BUILD_MACHINE_ASKED.at(instruction.location, asks_machine(instruction))


def machine_answers(
    dockerfile: Dockerfile, stages: Collection[int], parents: Mapping[int, int], on_builder: Collection[int]
) -> frozenset[Location]:
    """Return the location of each RUN that queries the build machine and whose output reaches the target."""
    how = Query(lambda text: bool(_ASKS_MACHINE.search(text)), lambda text: bool(_KNOWS_TARGET.search(text)))
    return taint.queries_that_reach_target(dockerfile, stages, parents, on_builder, how)


def for_windows(dockerfile: Dockerfile) -> bool:
    """Whether the Dockerfile is for Windows, where machine queries differ and ` is the escape character."""
    return dockerfile.escape == "`"


def is_absolute(path: str, targets: Collection[str]) -> bool:
    r"""Whether ``path`` is absolute on all ``targets``: on Windows, ``\app`` and ``C:\app`` are, too."""
    windows = bool(targets) and all(each.startswith("windows") for each in targets)
    return path.startswith("/") or (windows and _ABSOLUTE.match(path) is not None)


def single_platform_urls(instruction: Instruction, stage: str, targets: Iterable[str]) -> Iterator[Violation]:
    """Report URLs, in a stage that is built for every target, that name an architecture which not every target has.

    Not reported when the stage's name has the architecture (``FROM tool-$TARGETARCH`` selects such stages), or when
    there is a URL for each.
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


def single_platform_digest(stage: Stage, image: str, base: BaseImage, targets: Iterable[str]) -> Iterator[Violation]:
    """Report a FROM that all targets share and that is pinned to the manifest of one platform."""
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
    """Whether two platforms have the same operating system and architecture."""
    try:
        found, wanted = parsing.parse(one), parsing.parse(other)
    except UsageError:
        return one == other
    return (found.os, found.architecture) == (wanted.os, wanted.architecture)
