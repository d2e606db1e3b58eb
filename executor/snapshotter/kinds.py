"""Which snapshotter a job has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor.snapshotter.overlay import Overlays

if TYPE_CHECKING:
    from executor.protocol import SnapshotterKind
    from executor.snapshotter.snapshotter import Snapshotter
    from executor.store.store import Store


def snapshotter(kind: SnapshotterKind, store: Store, directory: str) -> Snapshotter:
    """The snapshotter of one job: ``directory``, on the store's file system, is for what lives as long as the job."""
    if kind == "plain":
        from executor.snapshotter.plain import Plain

        return Plain(store, directory)
    return Overlays(store, directory)
