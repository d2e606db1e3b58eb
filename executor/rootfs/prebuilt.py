"""Sets of programs for several platforms: ``prebuilds/linux-x64/x.node`` beside ``linux-arm64/x.node``.

Some packages (node's native add-ons, Python wheels with several libraries, plugins) have a file for each platform and
choose one at run time. Such a set is recognised by names and content together: files in one directory, or below sibling
directories, whose names differ in the architecture, whose ELF headers match the architecture in the name, and one of
which is for the image's own platform. A single foreign file is not a set, whatever its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from executor.rootfs.elf_audit import foreign

_NAMES: Final = {
    "amd64": "amd64", "x86_64": "amd64", "x86-64": "amd64", "x64": "amd64",
    "386": "386", "i386": "386", "i586": "386", "i686": "386", "ia32": "386", "x86": "386",
    "arm64": "arm64", "aarch64": "arm64",
    "arm": "arm", "armel": "arm", "armhf": "arm", "armv5": "arm", "armv6": "arm", "armv6l": "arm", "armv7": "arm",
    "armv7l": "arm",
    "ppc64le": "ppc64le", "ppc64el": "ppc64le", "powerpc64le": "ppc64le", "ppc64": "ppc64", "s390x": "s390x",
    "riscv64": "riscv64", "loong64": "loong64", "loongarch64": "loong64",
    "mips": "mips", "mipsel": "mipsle", "mipsle": "mipsle", "mips64el": "mips64le", "mips64le": "mips64le",
}  # fmt: skip
"""Names of architectures in packages, and Go's names for them."""
_NAMED: Final = re.compile(
    "(?<![A-Za-z0-9])(" + "|".join(sorted(_NAMES, key=len, reverse=True)) + ")(?![A-Za-z0-9])", re.IGNORECASE
)
_WORDS: Final = re.compile(
    "(?<![A-Za-z0-9])(linux|android|gnu|glibc|musl|musleabihf|gnueabihf|gnueabi|eabihf|eabi|unknown|alpine)(?![A-Za-z0-9])"
    "|[-_.]+",
    re.IGNORECASE,
)
"""Other parts of such names, and separators."""
_MULTIARCH: Final = re.compile(r"(?:usr/)?(?:local/)?(?:lib|libexec|lib32|lib64|libx32|include)/[^/]+-linux-[^/]+/")
"""Debian's directories of an architecture's libraries: their files were installed or copied, and are not part of a
set."""


def by_design(found: Iterable[tuple[str, str]], architecture: str) -> frozenset[str]:
    """Return the paths of ``found`` (paths relative to the root, with their machines) that belong to such a set."""
    families: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for path, machine in found:
        family = _family(path, machine)
        if family is not None:
            families.setdefault(family, []).append((path, machine))
    return frozenset(
        path
        for members in families.values()
        if len({foreign(machine, architecture) for _, machine in members}) > 1
        for path, _ in members
    )


def _family(path: str, machine: str) -> tuple[str, str] | None:
    """Return what the members of a set have in common: a directory, and the name without the platform."""
    if _MULTIARCH.match(path):
        return None
    above = ""
    for component in path.split("/"):
        if any(_NAMES[each.lower()] == machine for each in _NAMED.findall(component)):
            return above, _WORDS.sub("", _NAMED.sub("", component))
        above += component + "/"
    return None
