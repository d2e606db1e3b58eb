"""Platforms: names, normal forms, compatibility, and selection of an image from an index.

Names, normal forms and the order of fallbacks are those of containerd's ``platforms`` package, which Docker and
BuildKit use.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

SYSTEMS: Final = (
    "aix", "android", "darwin", "dragonfly", "freebsd", "hurd", "illumos", "ios", "js", "linux", "nacl", "netbsd",
    "openbsd", "plan9", "solaris", "wasi", "wasip1", "windows", "zos",
)  # fmt: skip
"""Operating systems, by Go's names (go/build/syslist.go), as in the OCI image specification; and Docker's wasi."""

ARCHITECTURES: Final = (
    "386", "amd64", "amd64p32", "arm", "arm64", "arm64be", "armbe", "loong64", "mips", "mips64", "mips64le",
    "mips64p32", "mips64p32le", "mipsle", "ppc", "ppc64", "ppc64le", "riscv", "riscv64", "s390", "s390x", "sparc",
    "sparc64", "wasm",
)  # fmt: skip
"""Architectures, by Go's names."""

ALIASES: Final = {
    "i386": ("386", ""),
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}
"""Other names that containerd accepts: the architecture, and the variant that they imply (None: as given)."""

_ARM64: Final = {
    **{f"v8.{minor}": ((8, minor),) for minor in range(1, 10)},
    "v9": ((9, 0), (8, 5)),
    **{f"v9.{minor}": ((9, minor), (8, minor + 5 if minor < 5 else 9)) for minor in range(1, 8)},
    "": ((8, 0),),
}
"""For an arm64 variant, the highest minor version of each major version that it includes (v9.1 includes v8.6)."""

VARIANTS: Final = {
    "amd64": ("", "v2", "v3", "v4"),
    "arm": ("v5", "v6", "v7", "v8"),
    "arm64": tuple(_ARM64),
}
"""The variants of the architectures that have some; "" is the default."""


class Platform(msgspec.Struct, frozen=True, order=True):
    """The fields of the ``platform`` object of an OCI descriptor (image-index.md).

    Values read from an image may be in any form; ``normalise`` returns the form in which platforms can be compared.
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return ``os[(version+features)]/architecture[/variant]``, normalised: ``linux/arm64`` for arm64 v8."""
        own = normalise(self)
        options = "".join((_escape(own.os_version), *(f"+{_escape(feature)}" for feature in own.os_features)))
        system = f"{own.os}({options})" if options else own.os
        return "/".join(part for part in (system or "unknown", own.architecture, own.variant) if part)


def normalise(platform: Platform) -> Platform:
    """Return ``platform`` as containerd's Normalize does; unknown names are unchanged.

    Default variants are removed (v8 of arm64, v1 of amd64), except for arm, where none means v7.
    """
    architecture, variant = architecture_name(platform.architecture, platform.variant)
    features = tuple(sorted({each for each in platform.os_features if each}))
    return Platform(system_name(platform.os), architecture, variant, platform.os_version, features)


def candidates(want: Platform) -> tuple[Platform, ...]:
    """Return the platforms whose images ``want`` can run, best first, itself included; all normalised.

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
        # By this rule every v8 and v9 has the 32-bit instructions of arm v8; an unknown variant has not.
        return (*own, *(candidates(replace(want, architecture="arm", variant="v8")) if versions else ()))
    return (want,)


def select(want: Platform, have: Sequence[Platform]) -> int | None:
    """Return the index in ``have`` of the best image for ``want``: None when none of them runs there.

    This is containerd's ``Only`` matcher, with which BuildKit selects base images (``OnlyStrict`` is used only in its
    tests): fallbacks match, a nearer one is preferred, then more of the wanted ``os_features``, then the earlier in the
    list. Compare the selected one with ``want`` to see whether it is a fallback.
    """
    normal = [normalise(each) for each in have]
    for candidate in candidates(want):
        fitting = [index for index, each in enumerate(normal) if _same(candidate, each)]
        if fitting:
            return max(fitting, key=lambda index: (len(normal[index].os_features), -index))
    return None


def satisfies(want: Platform, image: Platform) -> bool:
    """Whether an image of the platform ``image`` may be published as ``want``.

    Stricter than ``select``: an image of 386 runs on amd64 but is not what was requested. An image without a variant
    (many have none) may stand for any variant of its architecture.
    """
    wanted, own = normalise(want), normalise(image)
    if not image.variant and ALIASES.get(image.architecture.lower(), ("", None))[1] is None:
        own = replace(own, variant=wanted.variant)
    return _same(wanted, own)


def extended(want: Platform, base: Platform) -> Platform:
    """Return ``want`` with the version and the features of the system of ``base``, an image for Windows, unless it has
    its own (BuildKit, dockerui/build.go, extendWindowsPlatform)."""
    if not want.os == base.os.lower() == "windows":
        return want
    version, features = want.os_version or base.os_version, want.os_features or base.os_features
    return replace(want, os_version=version, os_features=features)


def _same(want: Platform, image: Platform) -> bool:
    """Whether both, normalised, have the same system and architecture, ``image`` has no feature that ``want`` lacks,
    and on Windows the same build."""
    return (
        (want.os, want.architecture, want.variant) == (image.os, image.architecture, image.variant)
        and _features(image) <= set(want.os_features)
        and (want.os != "windows" or _same_build(want.os_version, image.os_version))
    )


def _features(image: Platform) -> set[str]:
    """Return the features that a host needs for ``image``; every Windows that runs such images has win32k."""
    return set(image.os_features) - ({"win32k"} if image.os == "windows" else set())


def _same_build(want: str, image: str) -> bool:
    """Whether two versions of Windows have the same build, the first three numbers: containers require a host of their
    build."""
    return not want or not image or want.split(".")[:3] == image.split(".")[:3]


def system_name(name: str) -> str:
    """Return the normal form of the operating system ``name``."""
    name = name.lower()
    return "darwin" if name == "macos" else name


def architecture_name(name: str, variant: str) -> tuple[str, str]:
    """Return the normal form of an architecture and its variant."""
    name, variant = name.lower(), variant.lower()
    name, stands_for = ALIASES.get(name, (name, None))
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
