"""Platforms: what they are called, which stand in for which, and how to choose one from an image index.

The names, their normal forms and the order of fallbacks are those of containerd's ``platforms`` package, which Docker
and BuildKit use, so that one text means one thing everywhere. Unlike there, text that a *user* wrote and that names no
known system or architecture is refused: a typing error would otherwise become the label of an image.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from platforms.errors import UsageError

SYSTEMS: Final = (
    "aix", "android", "darwin", "dragonfly", "freebsd", "hurd", "illumos", "ios", "js", "linux", "nacl", "netbsd",
    "openbsd", "plan9", "solaris", "wasi", "wasip1", "windows", "zos",
)  # fmt: skip
"""Operating systems, by their Go names (go/build/syslist.go), as the OCI image specification asks for; and wasi, as
Docker has it."""

ARCHITECTURES: Final = (
    "386", "amd64", "amd64p32", "arm", "arm64", "arm64be", "armbe", "loong64", "mips", "mips64", "mips64le",
    "mips64p32", "mips64p32le", "mipsle", "ppc", "ppc64", "ppc64le", "riscv", "riscv64", "s390", "s390x", "sparc",
    "sparc64", "wasm",
)  # fmt: skip
"""Architectures, by their Go names."""

_ALIASES: Final = {
    "i386": ("386", ""),
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}
"""Other names that containerd takes: the architecture, and the variant they stand for (None: as given)."""

_HINTS: Final = {
    "x64": "amd64", "x86": "386", "i486": "386", "i586": "386", "i686": "386", "armv5": "arm/v5", "armv5l": "arm/v5",
    "armv6": "arm/v6", "armv6l": "arm/v6", "armv7": "arm/v7", "armv7l": "arm/v7", "arm32": "arm/v7", "armv8": "arm64",
    "armv8l": "arm/v8", "arm32v6": "arm/v6", "arm32v7": "arm/v7", "arm64v8": "arm64", "ppc64el": "ppc64le",
    "powerpc64le": "ppc64le", "mips64el": "mips64le", "mipsel": "mipsle", "loongarch64": "loong64",
    "risc-v": "riscv64",
}  # fmt: skip
"""Names of Debian, of the kernel and of habit that are not platform names; suggested, never guessed."""

_ARM64: Final = {
    **{f"v8.{minor}": ((8, minor),) for minor in range(1, 10)},
    "v9": ((9, 0), (8, 5)),
    **{f"v9.{minor}": ((9, minor), (8, minor + 5 if minor < 5 else 9)) for minor in range(1, 8)},
    "": ((8, 0),),
}
"""arm64 variants: the highest minor version that each of the major versions they include has (v9.1 has all of v8.6)."""

_VARIANTS: Final = {
    "amd64": ("", "v2", "v3", "v4"),
    "arm": ("v5", "v6", "v7", "v8"),
    "arm64": tuple(_ARM64),
}

_OPTION: Final = r"[A-Za-z0-9_.%-]"
_SYSTEM: Final = re.compile(rf"([A-Za-z0-9_-]+)(?:\(({_OPTION}*)((?:\+{_OPTION}+)*)\))?")
_PART: Final = re.compile(r"[A-Za-z0-9_.-]+")


class Platform(msgspec.Struct, frozen=True, order=True):
    """What an image runs on, with the fields of an OCI descriptor's ``platform`` object (image-index.md).

    As read from an image it may be in any form; ``normalise`` gives the one form in which platforms can be compared.
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        """``os[(version+features)]/architecture[/variant]``, normalised: ``linux/arm64`` for arm64 v8."""
        own = normalise(self)
        options = "".join((_escape(own.os_version), *(f"+{_escape(feature)}" for feature in own.os_features)))
        system = f"{own.os}({options})" if options else own.os
        return "/".join(part for part in (system or "unknown", own.architecture, own.variant) if part)


def parse(text: str) -> Platform:
    """The platform that ``text`` names, normalised.

    ``OS[(VERSION+FEATURE…)]/ARCHITECTURE[/VARIANT]``; the system or the architecture alone, completed by this host's;
    or ``local``, what a build without a platform makes. Raises UsageError for what nobody knows.
    """
    from platforms.host import default_platform

    if text == "local":
        return default_platform()
    system, *rest = text.split("/")
    if not (match := _SYSTEM.fullmatch(system)) or len(rest) > 2 or not all(map(_PART.fullmatch, rest)):
        raise _refusal(text, "a platform is written OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT")
    name, version, features = match.groups()
    name, version = _system(name), _unescape(version or "")
    wanted = tuple(_unescape(feature) for feature in (features or "").split("+") if feature)
    if not rest:
        local = default_platform()
        if name in SYSTEMS:
            return normalise(replace(local, os=name, os_version=version, os_features=wanted))
        name, rest = local.os, [system]
    elif name not in SYSTEMS:
        raise _refusal(text, f"there is no operating system {name!r}")
    architecture, variant = _architecture(rest[0], rest[1] if len(rest) > 1 else "")
    if architecture not in ARCHITECTURES:
        raise _refusal(text, f"there is no architecture {rest[0]!r}")
    known = _VARIANTS.get(architecture)
    if known is not None and variant not in known:
        listed = ", ".join(each or {"amd64": "v1", "arm64": "v8"}[architecture] for each in known)
        raise UsageError(
            f"unknown platform {text!r}",
            why=f"{architecture} has no variant {rest[1]!r}",
            remedy=f"use one of its variants: {listed}",
        )
    return normalise(Platform(name, architecture, variant, version, wanted))


def parse_list(values: Iterable[str]) -> tuple[Platform, ...]:
    """The platforms of all ``values``, each a list with commas, in order, each platform once.

    ``local`` stands for what a build without a platform makes. Raises UsageError as ``parse`` does, and for a list
    with nothing in it, which is what an unset variable of a CI script becomes.
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


def normalise(platform: Platform) -> Platform:
    """The one form of ``platform`` that containerd's Normalize gives; unknown names stay as they are.

    The usual variants go (arm64's v8, amd64's v1) except arm's, whose absence means v7.
    """
    architecture, variant = _architecture(platform.architecture, platform.variant)
    features = tuple(sorted({each for each in platform.os_features if each}))
    return Platform(_system(platform.os), architecture, variant, platform.os_version, features)


def candidates(want: Platform) -> tuple[Platform, ...]:
    """The platforms whose images ``want`` can run, best first, ``want`` itself among them; all normalised.

    containerd's platformVector: amd64 falls back to its lower levels and then to 386, arm to older arms down to v5,
    arm64 to older arm64s and then to 32-bit arms.
    """
    want = normalise(want)
    if want.architecture == "amd64":
        level = _level(want.variant) or 1
        lower = [replace(want, variant=f"v{n}" if n > 1 else "") for n in range(level - 1, 0, -1)]
        return (want, *lower, replace(want, architecture="386", variant=""))
    if want.architecture == "arm":
        return (want, *(replace(want, variant=f"v{n}") for n in range((_level(want.variant) or 0) - 1, 4, -1)))
    if want.architecture == "arm64":
        versions = _ARM64.get(want.variant)
        own = [
            normalise(replace(want, variant=f"v{major}.{minor}"))
            for major, highest in versions or ()
            for minor in range(highest, -1, -1)
        ] or [want]
        # Every v8 and v9 has the 32-bit instructions of arm v8 by this rule; a variant nobody knows promises nothing.
        return (*own, *(candidates(replace(want, architecture="arm", variant="v8")) if versions else ()))
    return (want,)


def select(want: Platform, have: Sequence[Platform]) -> int | None:
    """The index in ``have`` of the image to use for ``want``: None when none of them runs there.

    This is containerd's ``Only`` matcher, which BuildKit chooses base images with (``OnlyStrict`` serves only its
    tests): fallbacks count, a nearer one wins, then more of the wanted ``os_features``, then the earlier in the list.
    Whoever must know whether a fallback was taken compares the chosen one with ``want``.
    """
    normal = [normalise(each) for each in have]
    for candidate in candidates(want):
        fitting = [index for index, each in enumerate(normal) if _same(candidate, each)]
        if fitting:
            return max(fitting, key=lambda index: (len(normal[index].os_features), -index))
    return None


def satisfies(want: Platform, image: Platform) -> bool:
    """Whether an image that says ``image`` may be published as ``want``.

    Strict where ``select`` is not: a 386 image in the place of amd64 runs, yet is not what was asked for. An image
    that leaves its variant out (many do) may stand for any variant of its architecture.
    """
    wanted, own = normalise(want), normalise(image)
    if not image.variant and _ALIASES.get(image.architecture.lower(), ("", None))[1] is None:
        own = replace(own, variant=wanted.variant)
    return _same(wanted, own)


def _same(want: Platform, image: Platform) -> bool:
    """Both normalised: the same machine, no feature that ``want`` lacks, and on Windows the same build."""
    return (
        (want.os, want.architecture, want.variant) == (image.os, image.architecture, image.variant)
        and set(image.os_features) <= set(want.os_features)
        and (want.os != "windows" or _same_build(want.os_version, image.os_version))
    )


def _same_build(want: str, image: str) -> bool:
    """Windows containers run on hosts of their own build: the first three numbers of the version."""
    return not want or not image or want.split(".")[:3] == image.split(".")[:3]


def _system(name: str) -> str:
    name = name.lower()
    return "darwin" if name == "macos" else name


def _architecture(name: str, variant: str) -> tuple[str, str]:
    name, variant = name.lower(), variant.lower()
    name, stands_for = _ALIASES.get(name, (name, None))
    if stands_for is not None:
        return name, stands_for
    if name == "amd64" and variant == "v1":
        variant = ""
    elif name == "arm64":
        variant = {"8": "", "v8": "", "v8.0": "", "9": "v9", "9.0": "v9", "v9.0": "v9"}.get(variant, variant)
    elif name == "arm":
        variant = f"v{variant}" if variant in ("5", "6", "7", "8") else variant or "v7"
    return name, variant


def _level(variant: str) -> int | None:
    return int(variant[1:]) if re.fullmatch(r"v[0-9]{1,2}", variant) else None


def _escape(option: str) -> str:
    for character in "%+()/":
        option = option.replace(character, f"%{ord(character):02X}")
    return option


def _unescape(option: str) -> str:
    if "%" not in option:
        return option
    from urllib.parse import unquote

    return unquote(option)


def _split(value: str) -> list[str]:
    return [text.strip() for text in value.split(",")]


def _refusal(text: str, why: str) -> UsageError:
    """What to say about ``text``: the nearest names when there are any, else the usual ones."""
    from difflib import get_close_matches

    system, _, rest = text.lower().partition("/")
    if not rest and system not in SYSTEMS:
        system, rest = "linux", system
    systems = [system] if system in SYSTEMS else get_close_matches(system, SYSTEMS, 1)
    wanted = rest.split("/")[0]
    known = (*ARCHITECTURES, *_ALIASES)
    if wanted in _HINTS or rest.replace("/", "") in _HINTS:
        near = [_HINTS.get(wanted) or _HINTS[rest.replace("/", "")]]
    else:
        near = [wanted] if wanted in known else get_close_matches(wanted, known, 3, 0.7)
    suggested = [f"{each}/{name}" for each in systems for name in near]
    if suggested:
        return UsageError(f"unknown platform {text!r}", why=why, remedy=f"did you mean {' or '.join(suggested)}?")
    usual = "linux/amd64, linux/arm64, linux/arm/v7, linux/arm/v6, linux/386, linux/riscv64, linux/ppc64le, linux/s390x"
    return UsageError(f"unknown platform {text!r}", why=why, remedy=f"the usual ones are {usual}")
