"""The snapshotters by name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from executor.snapshotter.overlay import Overlays
from platforms import syscalls
from platforms.errors import EnvironmentUnfit
from platforms.paths import below

if TYPE_CHECKING:
    from executor.protocol import SnapshotterKind
    from executor.snapshotter.snapshotter import Snapshotter
    from executor.store.store import Store

_WITH_OVERLAYS: Final = frozenset({0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0xCA451A4E})
"""File systems that take overlays, by their magic numbers (linux/magic.h): ext4, XFS, btrfs, F2FS, bcachefs."""
_TMPFS: Final = 0x01021994
_OVERLAY: Final = 0x794C7630


def snapshotter(kind: SnapshotterKind, store: Store, directory: str, *, mounts: bool = True) -> Snapshotter:
    """Return the snapshotter of one job. ``directory``: for temporary files, on the store's file system.

    ``mounts``: whether this process can mount anything; the ``overlay`` snapshotter cannot do without.
    """
    if kind == "plain" or not mounts or (kind == "auto" and fitting(directory) == "plain"):
        from executor.snapshotter.plain import Plain

        return Plain(store, directory)
    return Overlays(store, directory)


def fitting(directory: str) -> SnapshotterKind:
    """Return the kind for the file system of ``directory``. Whether one that is not known takes overlays is tried."""
    kind = syscalls.file_system_type(directory)
    if kind in _WITH_OVERLAYS:
        return "overlay"
    if kind == _OVERLAY or not _has_user_attributes(directory):
        return "plain"
    if kind == _TMPFS:
        return "overlay"
    from executor.snapshotter.overlayfs import mount_stack

    upper, work, empty = (below(directory, name) for name in ("upper", "work", "empty"))
    for each in (upper, work, empty):
        os.mkdir(each)
    try:
        os.close(mount_stack((), empty, upper=upper, work=work))
    except EnvironmentUnfit:
        return "plain"
    return "overlay"


def _has_user_attributes(directory: str) -> bool:
    """Whether overlayfs can keep its records there, without which removing a directory of a lower layer fails.

    tmpfs has attributes of users since Linux 6.6.
    """
    try:
        os.setxattr(directory, "user.overlay.trial", b"")
        os.removexattr(directory, "user.overlay.trial")
    except OSError:
        return False
    return True
