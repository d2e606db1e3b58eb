"""The boundary behind which file systems of steps are made: containerd's words, prepare, view, commit, remove, diff.

Whoever is on this side of it knows snapshots (one layer's files, finished), stacks of them (``Parents``), and root
file systems that can be written to until they are committed (``ActiveRoot``). How files are laid out, mounted and
compared is known behind it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import msgspec

from executor.rootfs.tree import Tree
from executor.snapshotter.rootfs import Rootfs
from executor.store.snapshots import ActiveSnapshot, Snapshot
from platforms.paths import below

if TYPE_CHECKING:
    from executor.rootfs.entry import Entry
    from executor.rootfs.streams import Readable
    from executor.snapshotter.unpack import Unpacked, UnpackLimits

Parents = tuple[Snapshot, ...]
"""The snapshots that a file system is made of, bottom first, as an image names its layers; () for an empty one."""

MOUNT_POINTS = ("dev", "proc", "sys")


class ActiveRoot(msgspec.Struct, frozen=True):
    """A root file system that can be written to: its maker's until it is committed or removed."""

    rootfs: Rootfs
    parents: Parents
    snapshot: ActiveSnapshot
    """What becomes the snapshot of the changes."""


class Mounted(msgspec.Struct, frozen=True):
    """Files of a stack as a mount that is attached nowhere, for ``executor.sandbox.spec.BindFd``."""

    fd: int
    """Of its root, a directory or a file."""
    directories: tuple[str, ...]
    """Beside which it is recorded what the kernel refused to set, top first."""


class Snapshotter(Protocol):
    """Makes, shows and compares the file systems of one job's steps. To be used from any thread."""

    def view(self, parents: Parents) -> Tree:
        """The file system of ``parents``, to be read until the snapshotter is closed. Made once for equal parents."""
        ...

    def prepare(self, parents: Parents) -> ActiveRoot:
        """A root file system on top of ``parents``, which is nobody else's."""
        ...

    def add_mount_points(self, active: ActiveRoot, made_ns: int) -> None:
        """Make the directories that every step needs and ``active`` lacks; they stay, of the time ``made_ns``."""
        ...

    def apply(self, active: ActiveRoot, stream: Readable, limits: UnpackLimits) -> Unpacked:
        """Apply a layer's archive to ``active``. Raises as ``unpack.unpack_onto`` does."""
        ...

    def commit(self, active: ActiveRoot, *, keys: tuple[str, ...], description: str = "") -> Snapshot:
        """The changes of ``active`` to its parents, to be found by ``keys``. Nobody may write to it any more."""
        ...

    def remove(self, active: ActiveRoot) -> None:
        """Give ``active`` up, with what was changed."""
        ...

    def diff(self, snapshot: Snapshot, parents: Parents) -> Iterator[Entry]:
        """What ``snapshot`` changes of ``parents``, as a comparison of the two trees would tell it (``diff.scan``)."""
        ...

    def mounted(self, parents: Parents, inside: str, *, readonly: bool) -> AbstractContextManager[Mounted]:
        """What is at ``inside``, a path in the file system of ``parents``, links followed inside, as a mount.

        What is written to it is thrown away at the end. Raises ``BuildError`` when there is no such thing.
        """
        ...

    def close(self) -> None:
        """Close all views."""
        ...


def make_mount_points(tree: Tree, directory: str, made_ns: int) -> None:
    """``Snapshotter.add_mount_points`` for what is seen as ``tree`` and written in ``directory``."""
    for name in MOUNT_POINTS:
        if tree.lstat(name.encode()) is None:
            made = below(directory, name)
            os.mkdir(made)
            os.chmod(made, 0o755)
            os.utime(made, ns=(made_ns, made_ns))


def stacked(parents: Parents) -> tuple[str, ...]:
    """The directories of ``parents``, top first.

    A layer may occur twice (the same COPY twice). overlayfs refuses that, and the upper one says it all.
    """
    return tuple(dict.fromkeys(each.fs for each in reversed(parents)))
