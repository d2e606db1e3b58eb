"""The files of /proc about the mounts of a step that has none: what it would see if it had them.

See fstab(5) and proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from executor.sandbox.spec import Bind, BindFd, SecretFile
from executor.sandbox.step_process import normal_target

if TYPE_CHECKING:
    from executor.sandbox.spec import Spec

_SYSTEM: Final = (
    ("/", "overlay", "overlay", "rw,relatime"),
    ("/proc", "proc", "proc", "rw,nosuid,nodev,noexec,relatime"),
    ("/dev", "tmpfs", "tmpfs", "rw,nosuid,size=65536k,mode=755"),
    ("/dev/pts", "devpts", "devpts", "rw,nosuid,noexec,relatime,gid=5,mode=620,ptmxmode=666"),
    ("/dev/shm", "tmpfs", "shm", "rw,nosuid,nodev,noexec,relatime"),
    ("/sys", "sysfs", "sysfs", "ro,nosuid,nodev,noexec,relatime"),
)
"""The mounts that a container has: target, type, source and options (fstab(5))."""
_FIRST_MOUNT: Final = 20
"""The number of the first mount in /proc/self/mountinfo."""


def mount_table(spec: Spec) -> tuple[bytes, bytes]:
    """Return /proc/self/mounts and /proc/self/mountinfo, as a step with mounts would have them."""
    rows = [*_SYSTEM]
    for mount in spec.mounts:
        options = "rw,relatime"
        if isinstance(mount, SecretFile) or (isinstance(mount, Bind | BindFd) and mount.readonly):
            options = "ro,relatime"
        rows.append((_escaped(normal_target(mount.target)), "tmpfs", "tmpfs", options))
    mounts = "".join(f"{source} {target} {kind} {options} 0 0\n" for target, kind, source, options in rows)
    lines = [
        f"{_FIRST_MOUNT + index} {_FIRST_MOUNT if index else 1} 0:{_FIRST_MOUNT + index} / {target} "
        f"{options.partition(',size')[0]} - {kind} {source} {options.partition(',')[0]}\n"
        for index, (target, kind, source, options) in enumerate(rows)
    ]
    return os.fsencode(mounts), os.fsencode("".join(lines))


def _escaped(target: str) -> str:
    return "".join(f"\\{ord(each):03o}" if each in " \t\n\\" else each for each in target)
