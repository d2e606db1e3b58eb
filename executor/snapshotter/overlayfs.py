"""Overlay mounts that are attached nowhere: a stack of layers behind a file descriptor, gone when that is closed."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Final

from platforms import syscalls
from platforms.errors import EnvironmentUnfit

_CLONE: Final = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC


def mount_stack(layers: Sequence[str], empty: str, *, upper: str = "", work: str = "") -> int:
    """The merged view of the directories ``layers`` (top first, in overlay's format) as a descriptor of its root.

    With ``upper`` and ``work`` (existing, empty, on one file system) what is written goes to ``upper``; without,
    nothing can be. ``empty`` is an empty directory: overlayfs wants two layers where there is nothing to write to.
    Devices in the layers cannot be opened. The caller closes the descriptor.
    """
    lower = tuple(layers)
    if len(lower) + bool(upper) < 2:
        lower = (*lower, empty)
    try:
        try:
            return _mount(lower, upper, work)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return _mount_by_options(lower, upper, work, os.path.dirname(empty))
    except OSError as error:
        raise EnvironmentUnfit(
            "cannot mount the layers of an image",
            why=error.strerror or str(error),
            remedy="kanifold doctor says what this host allows",
        ) from error


def _mount(lower: Sequence[str], upper: str, work: str) -> int:
    """Mount by fsopen(2), which takes any number of layers. EINVAL before Linux 6.8, which lacks ``lowerdir+``."""
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
    finally:
        os.close(context)


def _mount_by_options(lower: Sequence[str], upper: str, work: str, place: str) -> int:
    """Mount by mount(2), on a directory in ``place`` until there is a descriptor of it.

    Its options are a page of text in which colons and commas of paths would be parsed, so directories are passed as
    links of open descriptors: room for some 230 layers.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    fds: list[int] = []
    try:
        for directory in (*lower, *((upper, work) if upper else ())):
            fds.append(os.open(directory, flags))
        links = [f"/proc/self/fd/{each}" for each in fds]
        options = f"userxattr,lowerdir={':'.join(links[: len(lower)])}"
        if upper:
            options += f",upperdir={links[-2]},workdir={links[-1]},volatile"
        attributes = syscalls.MS_NODEV | (0 if upper else syscalls.MS_RDONLY)
        with _mount_point(place) as point:
            syscalls.mount("kanifold", point, "overlay", attributes, options)
            return syscalls.open_tree(syscalls.AT_FDCWD, point, _CLONE)
    finally:
        for fd in fds:
            os.close(fd)


def part_of(mount: int, place: int, directory: str) -> int:
    """Return a mount of ``place``, a descriptor of a file in ``mount``, which is nowhere attached.

    Linux before 6.15 clones parts of attached mounts only (EINVAL), so it is attached in ``directory`` for that moment.
    """
    try:
        return syscalls.open_tree(place, "", _CLONE | syscalls.AT_EMPTY_PATH)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    with _mount_point(directory) as point:
        syscalls.move_mount(mount, "", syscalls.AT_FDCWD, point, syscalls.MOVE_MOUNT_F_EMPTY_PATH)
        return syscalls.open_tree(place, "", _CLONE | syscalls.AT_EMPTY_PATH)


@contextlib.contextmanager
def _mount_point(directory: str) -> Iterator[str]:
    """Make a directory in ``directory`` to mount on; in the end it is removed, with what is mounted there."""
    point = tempfile.mkdtemp(dir=directory)
    try:
        yield point
    finally:
        with contextlib.suppress(OSError):  # nothing was mounted
            syscalls.umount(point, syscalls.MNT_DETACH)
        os.rmdir(point)
