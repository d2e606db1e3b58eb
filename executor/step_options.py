"""The options of a build that say how its steps are run: from the command line they go as they are to the sandbox."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Part = str | int | tuple["Part", ...]
Network = Literal["isolated", "host", "none"]
DEFAULT_SHM_SIZE: Final = 64 << 20


class ResourceLimits(msgspec.Struct, frozen=True):
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


class StepOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """What every RUN of a build is run with. A RUN's own ``--network`` and ``--security`` are not in it."""

    hosts: tuple[tuple[str, str], ...] = ()
    """More lines for ``/etc/hosts``: (name, address)."""
    network: Literal["", "host", "none"] = ""
    """The network of steps that do not say; "" for ``default_network``."""
    default_network: Literal["isolated", "host"] = "isolated"
    """The network where nobody says. It is no part of what a step asks for, and needs no permission."""
    shm_size: int = 0
    """Bytes of ``/dev/shm``; 0 for ``DEFAULT_SHM_SIZE``."""
    ulimits: tuple[tuple[str, int, int], ...] = ()
    """(name as Docker has it: ``nofile``; soft limit; hard limit), -1 for none."""
    limits: ResourceLimits = ResourceLimits()
    """Bounds of each step by control groups."""
    cgroup_parent: str = ""
    """The control group that steps' groups are made in, as a path below the root; "" for ours or one above it."""
    allow: tuple[str, ...] = ()
    """What a Dockerfile may ask for that it may not by itself: ``security.insecure``, ``network.host``."""

    @property
    def observed(self) -> tuple[Part, ...]:
        """What a step can see of the options besides its network, which is what its cache key holds of them."""
        return self.hosts, self.shm_size, self.ulimits


def control_files(limits: ResourceLimits) -> tuple[tuple[str, str], ...]:
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
