"""Programs in new layers that are for another architecture than the image."""

from __future__ import annotations

from collections.abc import Iterable

from executor import protocol
from executor.rootfs.elf_audit import foreign
from executor.solver.layer import Layer


def foreign_programs(layers: Iterable[Layer], architecture: str) -> tuple[protocol.Finding, ...]:
    """The programs in ``layers`` that are not for ``architecture``, except those that are meant to be there."""
    found = tuple(
        protocol.Finding(layer.blob().descriptor.digest, path, machine.name)
        for layer in layers
        if layer.machines is not None
        for machine in layer.machines()
        for path in machine.paths
    )
    strange = tuple(each for each in found if foreign(each.machine, architecture))
    if not strange:
        return ()
    from executor.rootfs.prebuilt import by_design  # which few builds need

    meant = by_design(((each.path, each.machine) for each in found), architecture)
    return tuple(each for each in strange if each.path not in meant)
