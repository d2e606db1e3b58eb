"""The interface of snapshotters, which make the file systems of steps (containerd's prepare, view, commit, diff).

Callers know snapshots (the files of one layer, immutable), stacks of them (``Parents``), and root file systems that can
be written to until they are committed (``ActiveRoot``). How files are stored, mounted and compared is known to the
implementations only.
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
    from executor.snapshotter.unpack import Meaning, Unpacked, UnpackLimits

Parents = tuple[Snapshot, ...]
"""The snapshots that a file system is made of, bottom first, as an image names its layers; () for an empty one."""

MOUNT_POINTS = ("dev", "proc", "sys")


class ActiveRoot(msgspec.Struct, frozen=True):
    """A writable root file system. It belongs to the caller of ``prepare`` until it is committed or removed."""

    rootfs: Rootfs
    parents: Parents
    snapshot: ActiveSnapshot
    """Becomes the snapshot of the changes."""


class Mounted(msgspec.Struct, frozen=True):
    """A detached mount of files of a stack, or where nothing can be mounted a copy, for ``sandbox.spec.BindFd``."""

    fd: int
    """A descriptor of its root, a directory or a file."""
    directories: tuple[str, ...]
    """The directories whose records apply to it (``records``), top first."""


class Snapshotter(Protocol):
    """Makes, shows and compares the file systems of the steps of one job. Thread-safe."""

    def view(self, parents: Parents) -> Tree:
        """Return the file system of ``parents`` for reading, valid until ``close``; the same for equal parents."""
        ...

    def prepare(self, parents: Parents) -> ActiveRoot:
        """Return a new writable root file system on top of ``parents``."""
        ...

    def add_mount_points(self, active: ActiveRoot, made_ns: int) -> None:
        """Make those of MOUNT_POINTS that ``active`` lacks, dated ``made_ns``. They become part of the snapshot."""
        ...

    def apply(self, active: ActiveRoot, stream: Readable, limits: UnpackLimits, meant: Meaning) -> Unpacked:
        """Apply the archive of a layer to ``active``. Otherwise as ``unpack.unpack_onto``."""
        ...

    def commit(self, active: ActiveRoot, *, keys: tuple[str, ...], description: str = "") -> Snapshot:
        """Return the snapshot of the changes to the parents, found by ``keys`` from now on. ``active`` is used up."""
        ...

    def remove(self, active: ActiveRoot) -> None:
        """Discard ``active`` and its changes."""
        ...

    def diff(self, snapshot: Snapshot, parents: Parents) -> Iterator[Entry]:
        """Yield the changes of ``snapshot`` to ``parents``: the result of comparing both trees (``diff.scan``)."""
        ...

    def mounted(self, parents: Parents, inside: str, *, readonly: bool) -> AbstractContextManager[Mounted]:
        """Return a mount of what is at the path ``inside`` in the file system of ``parents``, links followed inside.

        Changes to it are discarded at the end. Raises ``BuildError`` if the path does not exist.
        """
        ...

    def close(self) -> None:
        """Close all views."""
        ...


def make_mount_points(tree: Tree, directory: str, made_ns: int) -> None:
    """``Snapshotter.add_mount_points`` for a root that is read as ``tree`` and written in ``directory``."""
    for name in MOUNT_POINTS:
        if tree.lstat(name.encode()) is None:
            made = below(directory, name)
            os.mkdir(made)
            os.chmod(made, 0o755)
            os.utime(made, ns=(made_ns, made_ns))


def stacked(parents: Parents) -> tuple[str, ...]:
    """Return the directories of ``parents``, top first, each once.

    A layer may occur twice (the same COPY twice). overlayfs refuses that, and the upper one is enough.
    """
    return tuple(dict.fromkeys(each.fs for each in reversed(parents)))
