"""The snapshotters by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor.snapshotter.overlay import Overlays

if TYPE_CHECKING:
    from executor.protocol import SnapshotterKind
    from executor.snapshotter.snapshotter import Snapshotter
    from executor.store.store import Store


def snapshotter(kind: SnapshotterKind, store: Store, directory: str) -> Snapshotter:
    """Return the snapshotter of one job. ``directory``: for temporary files, on the store's file system."""
    if kind == "plain":
        from executor.snapshotter.plain import Plain

        return Plain(store, directory)
    return Overlays(store, directory)
