"""The platform of this host, and those that it runs without an emulator.

Images are Linux images, so on macOS the functions return Linux on the same processor, the default target of a build
there. Such a host runs nothing itself; its builds run on a node.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Final

from platforms.platform import Platform, normalise

# The flags in /proc/cpuinfo of each level of the x86-64 psABI ("Micro-Architecture Levels").
_AMD64_LEVELS: Final = (
    ("v2", "cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3"),
    ("v3", "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"),
    ("v4", "avx512f avx512bw avx512cd avx512dq avx512vl"),
)

_MACHINES: Final = {
    "i386": "386", "i486": "386", "i586": "386", "i686": "386", "ppc64": "ppc64", "mips64": "mips64",
    "loongarch64": "loong64",
}  # fmt: skip
"""The machine of uname(2) where containerd does not know it by that name."""

COMPAT: Final = {"amd64": ("386",), "arm64": ("arm",)}
"""The 32-bit architectures whose programs a 64-bit kernel may run."""


@functools.cache
def host() -> Platform:
    """Return the platform of this host, always with ``os`` linux; amd64 with its level (v2 to v4), arm with its
    version."""
    machine = os.uname().machine.lower()
    architecture = _MACHINES.get(machine, machine)
    variant = ""
    if machine in ("mips", "mips64") and sys.byteorder == "little":
        architecture = machine + "le"
    elif machine == "x86_64":
        variant = amd64_level(_cpuinfo("flags")) if sys.platform == "linux" else ""
    elif machine.startswith("armv"):
        architecture, variant = "arm", _arm_variant(machine)
    return normalise(Platform("linux", architecture, variant))


def default_platform() -> Platform:
    """Return the platform of a build without ``--platform``: linux on this architecture, amd64 without a level."""
    return without_level(host())


def without_level(own: Platform) -> Platform:
    """Return the platform of a build on the host ``own`` without ``--platform``."""
    return Platform("linux", own.architecture, own.variant if own.architecture == "arm" else "")


def amd64_level(flags: str) -> str:
    """Return the x86-64 level, "" or ``v2`` to ``v4``, of a processor with these ``flags`` of /proc/cpuinfo."""
    has = set(flags.split())
    level = ""
    for variant, needed in _AMD64_LEVELS:
        if not has.issuperset(needed.split()):
            break
        level = variant
    return level


def _arm_variant(machine: str) -> str:
    """Return v7 for ``armv7l``; the processor of the Raspberry Pi 1, which reports 7, is recognised by its model
    name."""
    version = machine[4:5]
    if version == "7" and _cpuinfo("model name").lower().startswith("armv6-compatible"):
        version = "6"
    return f"v{version}"


def _cpuinfo(key: str) -> str:
    """Return the value of the first processor in /proc/cpuinfo; "" if there is none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == key:
                    return value.strip()
    except OSError:
        return ""
    return ""
