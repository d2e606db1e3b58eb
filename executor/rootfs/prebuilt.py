"""Programs for several platforms side by side, by design: ``prebuilds/linux-x64/x.node`` beside ``linux-arm64/x.node``.

Some packages (node's native add-ons, Python wheels with several libraries, plugins) bring a file for each platform and
choose one when they are run. Such a set is told by names and content together: files in one directory, or below sibling
directories, whose names differ by the architecture, whose ELF headers say the architecture that their names say, and
among which one is for the image's own platform. A lone foreign file is no set, whatever it is called.
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
"""How packages call architectures, and Go's names for them."""
_NAMED: Final = re.compile(
    "(?<![A-Za-z0-9])(" + "|".join(sorted(_NAMES, key=len, reverse=True)) + ")(?![A-Za-z0-9])", re.IGNORECASE
)
_WORDS: Final = re.compile(
    "(?<![A-Za-z0-9])(linux|android|gnu|glibc|musl|musleabihf|gnueabihf|gnueabi|eabihf|eabi|unknown|alpine)(?![A-Za-z0-9])"
    "|[-_.]+",
    re.IGNORECASE,
)
"""What else such names are made of, and what stands between."""
_MULTIARCH: Final = re.compile(r"(?:usr/)?(?:local/)?(?:lib|libexec|lib32|lib64|libx32|include)/[^/]+-linux-[^/]+/")
"""Where Debian has the libraries of an architecture: those that are there were installed or copied, not shipped so."""


def by_design(found: Iterable[tuple[str, str]], architecture: str) -> frozenset[str]:
    """The paths of ``found`` (a path relative to the root, and its machine) that are of a set for several platforms."""
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
    """What a set that ``path`` may be of has in common: a directory, and a name without what tells platforms apart."""
    if _MULTIARCH.match(path):
        return None
    above = ""
    for component in path.split("/"):
        if any(_NAMES[each.lower()] == machine for each in _NAMED.findall(component)):
            return above, _WORDS.sub("", _NAMED.sub("", component))
        above += component + "/"
    return None
