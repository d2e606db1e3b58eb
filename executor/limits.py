"""What a step may take of the machine, as data: bounds by the names that buildx gives them (``--resource``)."""

from __future__ import annotations

import msgspec

from platforms.errors import UsageError


class Limits(msgspec.Struct, frozen=True):
    """What a step may take; 0 and "" are no bound. The names are buildx's, ``pids`` excepted."""

    memory: int = 0
    """Bytes."""
    memory_swap: int = 0
    """Bytes of memory and swap together; -1 for as much swap as there is."""
    cpu_shares: int = 0
    """The share of processors beside others, 2 to 262144; 1024 is the usual one."""
    cpu_period: int = 0
    cpu_quota: int = 0
    """Microseconds of processors that may be used in each period of so many."""
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    """Processors and memory nodes: ``0-3,7``."""
    pids: int = 0
    """Processes and threads."""


def files(limits: Limits) -> tuple[tuple[str, str], ...]:
    """The files of a group, and what is written to them (Documentation/admin-guide/cgroup-v2.rst)."""
    found: list[tuple[str, str]] = []
    if limits.memory:
        found.append(("memory.max", str(limits.memory)))
    if limits.memory_swap:
        swap = "max" if limits.memory_swap < 0 else str(max(0, limits.memory_swap - limits.memory))
        found.append(("memory.swap.max", swap))
    if limits.cpu_shares:
        # As runc and crun convert it: 2 to 262144 becomes 1 to 10000.
        shares = min(max(limits.cpu_shares, 2), 262144)
        found.append(("cpu.weight", str(1 + (shares - 2) * 9999 // 262142)))
    if limits.cpu_quota or limits.cpu_period:
        found.append(("cpu.max", f"{limits.cpu_quota or 'max'} {limits.cpu_period or 100_000}"))
    for name, text in (("cpuset.cpus", limits.cpuset_cpus), ("cpuset.mems", limits.cpuset_mems)):
        if text:
            found.append((name, text))
    if limits.pids:
        found.append(("pids.max", str(limits.pids)))
    return tuple(found)


def parent_path(text: str) -> str:
    """``--cgroup-parent`` as a path below the root of the hierarchy, without slashes at its ends.

    A path, or the name of a slice, which systemd nests by its dashes: ``a-b.slice`` is in ``a.slice``.
    """
    path = text.strip("/")
    if not path or any(part in ("", ".", "..") for part in path.split("/")):
        raise UsageError(f"--cgroup-parent {text!r} is no path of a control group")
    if "/" in path or not path.endswith(".slice"):
        return path
    parts = path.removesuffix(".slice").split("-")
    if "" in parts:
        raise UsageError(f"--cgroup-parent {text!r} is no name of a slice")
    return "/".join("-".join(parts[:count]) + ".slice" for count in range(1, len(parts) + 1))
