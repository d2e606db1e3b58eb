"""Options of a build for running its steps, passed unchanged from the command line to the sandbox."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Part = str | int | tuple["Part", ...]
Network = Literal["isolated", "host", "none"]
DEFAULT_SHM_SIZE: Final = 64 << 20


class ResourceLimits(msgspec.Struct, frozen=True):
    """Resource limits of a step; 0 and "" for none. Names are buildx's, except ``pids``."""

    memory: int = 0
    """Bytes."""
    memory_swap: int = 0
    """Bytes of memory and swap; -1 for unlimited swap."""
    cpu_shares: int = 0
    """Relative weight, 2 to 262144; the default is 1024."""
    cpu_period: int = 0
    cpu_quota: int = 0
    """Microseconds of CPU time in each period."""
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    """Processors and memory nodes: ``0-3,7``."""
    pids: int = 0
    """Number of processes and threads."""


class StepOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """Options of every RUN of a build. ``--network`` and ``--security`` of a RUN are not part of them."""

    hosts: tuple[tuple[str, str], ...] = ()
    """Additional lines of ``/etc/hosts``: (name, address)."""
    network: Literal["", "host", "none"] = ""
    """The network of steps without ``--network``; "" for ``default_network``."""
    default_network: Literal["isolated", "host"] = "isolated"
    """The default network. It is not part of cache keys and needs no permission."""
    shm_size: int = 0
    """Bytes of ``/dev/shm``; 0 for ``DEFAULT_SHM_SIZE``."""
    ulimits: tuple[tuple[str, int, int], ...] = ()
    """(Docker's name, such as ``nofile``; soft limit; hard limit), -1 for unlimited."""
    limits: ResourceLimits = ResourceLimits()
    """Limits of each step by control groups."""
    cgroup_parent: str = ""
    """The parent of the steps' control groups, as a path from the root; "" for our own or one above it."""
    allow: tuple[str, ...] = ()
    """Permissions (``--allow``): ``security.insecure``, ``network.host``."""

    @property
    def observed(self) -> tuple[Part, ...]:
        """Return the part of the cache key for what a step can observe of the options besides its network."""
        return self.hosts, self.shm_size, self.ulimits


def control_files(limits: ResourceLimits) -> tuple[tuple[str, str], ...]:
    """Return the files of a control group and their content (Documentation/admin-guide/cgroup-v2.rst)."""
    found: list[tuple[str, str]] = []
    if limits.memory:
        found.append(("memory.max", str(limits.memory)))
    if limits.memory_swap:
        swap = "max" if limits.memory_swap < 0 else str(max(0, limits.memory_swap - limits.memory))
        found.append(("memory.swap.max", swap))
    if limits.cpu_shares:
        # Converted as in runc and crun: 2 to 262144 becomes 1 to 10000.
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
