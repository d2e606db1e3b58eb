"""Mounting and clearing the root file system that a value stands for (``executor.snapshotter.rootfs``)."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from executor.sandbox import staging, targets
from executor.snapshotter.rootfs import Directory, Overlay

if TYPE_CHECKING:
    from collections.abc import Sequence

    from executor.sandbox.targets import Made, Touched
    from executor.snapshotter.rootfs import Rootfs

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def mount(rootfs: Rootfs) -> tuple[int, int]:
    """Mount ``rootfs`` in the staging area of a step's process. Return O_PATH descriptors of its root directory and of
    the directory that receives the changes. Raises OSError."""
    if isinstance(rootfs, Overlay):
        staging.mount_overlay(rootfs.lower, rootfs.upper, rootfs.work, staging.ROOT)
    else:
        staging.mount_directory(rootfs.path, staging.ROOT)
    return os.open(staging.ROOT, _DIRECTORY), os.open(written(rootfs), _DIRECTORY)


def described(rootfs: Rootfs) -> str:
    """Return what ``mount`` mounts, for error messages."""
    if isinstance(rootfs, Overlay):
        return f"an overlay file system on {rootfs.upper}"
    return f"the directory {rootfs.path}"


def remedy(rootfs: Rootfs, why: str) -> str:
    """Return the remedy if ``why`` is that the file system of ``rootfs`` does not support the mount; else ""."""
    if isinstance(rootfs, Overlay) and described(rootfs) in why and why.endswith(os.strerror(errno.EINVAL)):
        return "put the store on another file system (--root, KANIFOLD_ROOT), or build with --snapshotter plain"
    if why.endswith(staging.NO_PROGRAMS):
        return "put the store on another file system (--root, KANIFOLD_ROOT), or have it mounted without noexec"
    return ""


def written(rootfs: Rootfs) -> str:
    """Return the directory that receives the changes to ``rootfs``."""
    return rootfs.upper if isinstance(rootfs, Overlay) else rootfs.path


def tidy(rootfs: Rootfs, made: Sequence[Made], touched: Sequence[Touched]) -> None:
    """Remove what was ``made`` for mounts; see ``targets.unmake``."""
    if not made:
        return
    directory = os.open(written(rootfs), _DIRECTORY)
    try:
        targets.unmake(directory, made, touched)
    finally:
        os.close(directory)


def clear(rootfs: Rootfs) -> None:
    """Remove what the kernel leaves in the work directory after a step."""
    if isinstance(rootfs, Directory):
        return
    for kernels_own in ("work", "index"):
        _remove(f"{rootfs.work}/{kernels_own}")


def _remove(tree: str) -> None:
    for directory, directories, files in os.walk(tree, topdown=False):
        for name in (*files, *directories):
            path = f"{directory}/{name}"
            try:
                os.unlink(path)  # also a link to a directory, which os.walk counts among the directories
            except IsADirectoryError:
                os.rmdir(path)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(tree)
