"""Parsing platforms from the command line.

Unlike in containerd's ``platforms`` package, an unknown system or architecture is an error: a typing error would
otherwise become the platform of an image.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from platforms.errors import UsageError
from platforms.host import default_platform
from platforms.platform import (
    ALIASES,
    ARCHITECTURES,
    SYSTEMS,
    VARIANTS,
    Platform,
    architecture_name,
    normalise,
    system_name,
)

_HINTS: Final = {
    "x64": "amd64", "x86": "386", "i486": "386", "i586": "386", "i686": "386", "armv5": "arm/v5", "armv5l": "arm/v5",
    "armv6": "arm/v6", "armv6l": "arm/v6", "armv7": "arm/v7", "armv7l": "arm/v7", "arm32": "arm/v7", "armv8": "arm64",
    "armv8l": "arm/v8", "arm32v6": "arm/v6", "arm32v7": "arm/v7", "arm64v8": "arm64", "ppc64el": "ppc64le",
    "powerpc64le": "ppc64le", "mips64el": "mips64le", "mipsel": "mipsle", "loongarch64": "loong64",
    "risc-v": "riscv64",
}  # fmt: skip
"""Names used by Debian, the kernel and others that are not platform names; suggested in errors."""

_OPTION: Final = r"[A-Za-z0-9_.%-]"
_SYSTEM: Final = re.compile(rf"([A-Za-z0-9_-]+)(?:\(({_OPTION}*)((?:\+{_OPTION}+)*)\))?")
_PART: Final = re.compile(r"[A-Za-z0-9_.-]+")


def parse(text: str) -> Platform:
    """Return the platform that ``text`` names, normalised.

    ``OS[(VERSION+FEATURE…)]/ARCHITECTURE[/VARIANT]``; the system or the architecture alone, completed by this host's;
    or ``local``, the default platform. Raises UsageError for unknown names.
    """
    if text == "local":
        return default_platform()
    system, *rest = text.split("/")
    if not (match := _SYSTEM.fullmatch(system)) or len(rest) > 2 or not all(map(_PART.fullmatch, rest)):
        raise _refusal(text, "a platform is written OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT")
    name, version, features = match.groups()
    name, version = system_name(name), _unescape(version or "")
    wanted = tuple(_unescape(feature) for feature in (features or "").split("+") if feature)
    if not rest:
        local = default_platform()
        if name in SYSTEMS:
            return normalise(replace(local, os=name, os_version=version, os_features=wanted))
        name, rest = local.os, [system]
    elif name not in SYSTEMS:
        raise _refusal(text, f"there is no operating system {name!r}")
    architecture, variant = architecture_name(rest[0], rest[1] if len(rest) > 1 else "")
    if architecture not in ARCHITECTURES:
        raise _refusal(text, f"there is no architecture {rest[0]!r}")
    known = VARIANTS.get(architecture)
    if known is not None and variant not in known:
        listed = ", ".join(each or {"amd64": "v1", "arm64": "v8"}[architecture] for each in known)
        raise UsageError(
            f"unknown platform {text!r}",
            why=f"{architecture} has no variant {rest[1]!r}",
            remedy=f"use one of its variants: {listed}",
        )
    return normalise(Platform(name, architecture, variant, version, wanted))


def parse_list(values: Iterable[str]) -> tuple[Platform, ...]:
    """Return the platforms in all ``values``, each a comma-separated list, in order and without duplicates.

    Raises UsageError as ``parse`` does, and for an empty list, which is what an unset variable of a CI script gives.
    """
    found: dict[Platform, None] = {}
    for value in values:
        for text in _split(value):
            if not text:
                raise UsageError(
                    f"empty platform in {value!r}",
                    why="a platform list has something between all of its commas",
                    remedy="write --platform linux/amd64,linux/arm64, or leave the flag out to build for this host",
                )
            found[parse(text)] = None
    return tuple(found)


def _unescape(option: str) -> str:
    if "%" not in option:
        return option
    from urllib.parse import unquote

    return unquote(option)


def _split(value: str) -> list[str]:
    return [text.strip() for text in value.split(",")]


def _refusal(text: str, why: str) -> UsageError:
    """Return the error for ``text``, with the most similar names if there are any, else the usual ones."""
    from difflib import get_close_matches

    system, _, rest = text.lower().partition("/")
    if not rest and system not in SYSTEMS:
        system, rest = "linux", system
    systems = [system] if system in SYSTEMS else get_close_matches(system, SYSTEMS, 1)
    wanted = rest.split("/")[0]
    known = (*ARCHITECTURES, *ALIASES)
    if wanted in _HINTS or rest.replace("/", "") in _HINTS:
        near = [_HINTS.get(wanted) or _HINTS[rest.replace("/", "")]]
    else:
        near = [wanted] if wanted in known else get_close_matches(wanted, known, 3, 0.7)
    suggested = [f"{each}/{name}" for each in systems for name in near]
    if suggested:
        return UsageError(f"unknown platform {text!r}", why=why, remedy=f"did you mean {' or '.join(suggested)}?")
    usual = "linux/amd64, linux/arm64, linux/arm/v7, linux/arm/v6, linux/386, linux/riscv64, linux/ppc64le, linux/s390x"
    return UsageError(f"unknown platform {text!r}", why=why, remedy=f"the usual ones are {usual}")
