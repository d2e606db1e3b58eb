"""Archives that ADD extracts: their files as entries of a plan."""

from __future__ import annotations

from executor.context import add_archive
from executor.rootfs.tree import open_directory
from executor.snapshotter.records import Applied
from executor.solver import copying
from executor.solver.copying import CopyOptions, CopyPlan
from executor.solver.lifetime import ScratchSpace


def copy_archive(scratch: ScratchSpace, plan: CopyPlan, path: bytes, destination: str, treatment: CopyOptions) -> bool:
    """Add the files of the archive ``path`` to ``plan``. Returns False when the file is not an archive."""
    directory = scratch.new()
    found = add_archive.extract(path, directory)
    if found is None:
        return False
    recorded = {record.path: record for record in found.records}
    tree = scratch.keep(open_directory(directory, meaning=Applied(recorded.get)))
    copying.unpack_into(plan, tree, frozenset(found.implicit), destination, treatment.owner)
    return True
