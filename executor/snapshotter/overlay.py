"""The snapshotter of overlay mounts: the upper directory of a step becomes the snapshot of its changes.

A snapshot costs what was changed. A view is a detached mount.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from executor.rootfs.tree import Tree, TreeOptions, open_directory
from executor.snapshotter import diff, records
from executor.snapshotter.overlayfs import mount_stack, part_of
from executor.snapshotter.records import Applied, Read, Stack, applied_as_seen
from executor.snapshotter.rootfs import Overlay
from executor.snapshotter.snapshotter import ActiveRoot, Mounted, Parents, make_mount_points, stacked
from executor.snapshotter.unpack import Meaning, Unpacked, UnpackLimits, unpack_onto
from executor.store import removal, snapshots
from executor.store.snapshots import Snapshot
from platforms import syscalls
from platforms.errors import BuildError
from platforms.paths import below

if TYPE_CHECKING:
    from executor.rootfs.entry import Entry
    from executor.rootfs.streams import Readable
    from executor.store.store import Store


class Overlays:
    """``Snapshotter``."""

    def __init__(self, store: Store, directory: str) -> None:
        self._store = store
        self._directory = directory
        self._numbers = itertools.count()
        self._empty = self._new()
        self._lock = threading.Lock()
        self._trees: dict[tuple[str, ...], Tree] = {}
        self.recorded: Read = functools.cache(records.read)
        """Cached reading of a snapshot's records, which do not change while the job leases it."""

    def _new(self) -> str:
        """An empty directory."""
        made = below(self._directory, f"overlay-{next(self._numbers)}")
        os.mkdir(made)
        os.chmod(made, 0o755)
        return made

    def view(self, parents: Parents) -> Tree:
        directories = stacked(parents)
        with self._lock:
            tree = self._trees.get(directories)
            if tree is None:
                tree = self._trees[directories] = self._mounted_tree(directories)
            return tree

    def _mounted_tree(self, directories: tuple[str, ...]) -> Tree:
        if not directories:
            return open_directory(self._empty)
        fd = mount_stack(directories, self._empty)
        stack = Stack(directories, self.recorded)
        return Tree(fd, b"/proc/self/fd/%d" % fd, TreeOptions(meaning=Applied(stack.of, applied_as_seen)))

    def prepare(self, parents: Parents) -> ActiveRoot:
        draft = snapshots.prepare(self._store)
        return ActiveRoot(Overlay(stacked(parents), draft.fs, draft.work), parents, draft)

    def add_mount_points(self, active: ActiveRoot, made_ns: int) -> None:
        make_mount_points(self.view(active.parents), active.snapshot.fs, made_ns)

    def apply(self, active: ActiveRoot, stream: Readable, limits: UnpackLimits, meant: Meaning) -> Unpacked:
        draft, directories = active.snapshot, stacked(active.parents)
        merged = mount_stack(directories, self._empty, upper=draft.fs, work=draft.work)
        try:
            unpacked = unpack_onto(stream, f"/proc/self/fd/{merged}", limits=limits, meant=meant)
        finally:
            os.close(merged)
        below = Stack(directories, self.recorded)
        records.write(draft.fs, unpacked.recorded_onto(records.carried(draft.fs, below), below.of))
        return unpacked

    def commit(self, active: ActiveRoot, *, keys: tuple[str, ...], description: str = "") -> Snapshot:
        size = removal.disk_usage(active.snapshot.fs)
        return snapshots.commit(
            self._store, active.snapshot, diff_id=None, size=size, keys=keys, description=description
        )

    def remove(self, active: ActiveRoot) -> None:
        snapshots.discard(self._store, active.snapshot)

    def diff(self, snapshot: Snapshot, parents: Parents) -> Iterator[Entry]:
        return diff.scan(snapshot.fs, stacked(parents), self.recorded)

    @contextmanager
    def mounted(self, parents: Parents, inside: str, *, readonly: bool) -> Iterator[Mounted]:
        directories = stacked(parents)
        upper = work = ""
        if not readonly:
            upper, work = self._new(), self._new()
        with ExitStack() as stack:
            fd = mount_stack(directories, self._empty, upper=upper, work=work)
            stack.callback(os.close, fd)
            path = inside.strip("/")
            if path:
                try:
                    place = syscalls.openat2(fd, path, os.O_PATH | os.O_CLOEXEC, resolve=syscalls.RESOLVE_IN_ROOT)
                except OSError as error:
                    why = error.strerror or str(error)
                    raise BuildError(f"mount source {inside} does not exist", why=why) from error
                stack.callback(os.close, place)
                fd = part_of(fd, place, os.path.dirname(self._empty))
                stack.callback(os.close, fd)
            yield Mounted(fd, directories)

    def close(self) -> None:
        with self._lock:
            for tree in self._trees.values():
                tree.close()
            self._trees.clear()
