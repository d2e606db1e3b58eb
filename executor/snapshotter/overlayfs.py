"""Overlay mounts that are attached nowhere: a stack of layers behind a file descriptor, gone when that is closed."""

from __future__ import annotations

import os
from collections.abc import Sequence

from platforms import syscalls
from platforms.errors import EnvironmentUnfit


def mount_stack(layers: Sequence[str], empty: str, *, upper: str = "", work: str = "") -> int:
    """The merged view of the directories ``layers`` (top first, in overlay's format) as a descriptor of its root.

    With ``upper`` and ``work`` (existing, empty, on one file system) what is written goes to ``upper``; without,
    nothing can be. ``empty`` is an empty directory: overlayfs wants two layers where there is nothing to write to.
    Devices in the layers cannot be opened. The caller closes the descriptor.
    """
    lower = tuple(layers)
    if len(lower) + bool(upper) < 2:
        lower = (*lower, empty)
    context = syscalls.fsopen("overlay")
    try:
        syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "source", "kanifold")
        syscalls.fsconfig(context, syscalls.FSCONFIG_SET_FLAG, "userxattr")
        for directory in lower:
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "lowerdir+", directory)
        if upper:
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "upperdir", upper)
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "workdir", work)
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_FLAG, "volatile")  # else its end writes all of the disk
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        attributes = syscalls.MOUNT_ATTR_NODEV | (0 if upper else syscalls.MOUNT_ATTR_RDONLY)
        return syscalls.fsmount(context, attributes)
    except OSError as error:
        raise EnvironmentUnfit(
            "cannot mount the layers of an image",
            why=error.strerror or str(error),
            remedy="kanifold doctor says what this host allows; Linux 6.8 or newer is needed",
        ) from error
    finally:
        os.close(context)
