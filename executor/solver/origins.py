"""What FROM, ``--from`` and ``from=`` name: states to build on, their file systems, and files to take."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import ClassVar, assert_never

import msgspec
from msgspec.structs import replace

from executor import protocol
from executor.dockerfile import Stage
from executor.image import config as image
from executor.rootfs import moment
from executor.rootfs.tree import Tree
from executor.snapshotter.snapshotter import Parents
from executor.solver import base, caching, content, copying, graph, keys, treename
from executor.solver.contexts import Contexts
from executor.solver.graph import FromContext, FromImage, FromStage, JobPlan, Origin, Scratch
from executor.solver.inputs import Input
from executor.solver.layer import from_result
from executor.solver.once import Once
from executor.solver.progress import Progress
from executor.solver.sources import FileSource
from executor.solver.state import State
from executor.solver.treename import Name
from executor.solver.workshop import Workshop, together
from platforms.errors import Location
from platforms.platform import Platform


class FileSystems:
    """The file systems of one job's stages. Safe for threads."""

    def __init__(self, workshop: Workshop, progress: Progress) -> None:
        self._workshop = workshop
        self._progress = progress

    def snapshots(self, state: State) -> Parents:
        """The layers of ``state`` as snapshots, bottom first; missing ones are made at the same time."""
        missing = [layer for layer in state.layers if not layer.snapshot.done]
        with nullcontext() if all(layer.unpacked() for layer in missing) else self._progress.waiting("unpack"):
            together(self._workshop, [layer.snapshot for layer in missing])
        return tuple(layer.snapshot() for layer in state.layers)

    def tree(self, state: State) -> Tree:
        """The file system of ``state``, mounted for reading until the job ends."""
        return self._workshop.snapshotter.view(self.snapshots(state))


class StageFiles(msgspec.Struct, frozen=True):
    """The files of a stage or an image (``sources.FileSource``)."""

    state: State
    filesystems: FileSystems
    context: ClassVar[None] = None
    shared: ClassVar[str] = ""

    @property
    def identity(self) -> Name:
        return self.state.tree

    def open(self, _taken: Input) -> Tree:
        return self.filesystems.tree(self.state)

    def snapshots(self) -> Parents:
        return self.filesystems.snapshots(self.state)


class Origins:
    """What the names in one job's Dockerfile stand for. Safe for threads."""

    def __init__(
        self, workshop: Workshop, plan: JobPlan, stages: Mapping[int, Once[State]], filesystems: FileSystems
    ) -> None:
        self._workshop = workshop
        self._plan = plan
        self._stages = stages
        self._filesystems = filesystems
        self.contexts = Contexts(workshop)

    def named(self, name: str, stage: Stage, where: Location, *, numbers: bool) -> Origin:
        """What ``name`` (``numbers``: or a stage's number) means to a step of ``stage`` that stands at ``where``."""
        plan = self._plan
        return graph.named_origin(plan.dockerfile, name, stage.index, where, plan.named, numbers=numbers)

    def state(self, origin: Origin, platform: Platform) -> State:
        """The state of what ``origin`` names, for ``platform`` unless it is a stage."""
        if isinstance(origin, FromStage):
            return self._stages[origin.index]()
        taken = self._workshop.inputs.add("base")
        held = self.contexts.use(origin.name) if isinstance(origin, FromContext) else origin
        match held:
            case Scratch() | protocol.ScratchContext():
                taken.nothing()
                return State(platform, image.empty(platform))
            case FromImage():
                return _from_base(platform, base.from_registry(self._workshop, taken, held.name, platform))
            case protocol.ImageContext():
                return _from_base(platform, base.from_registry(self._workshop, taken, held.image, platform))
            case protocol.LayoutContext():
                return _from_base(platform, base.from_layout(self._workshop, held.name, held.path, platform))
            case protocol.SentLayoutContext():
                return _from_base(platform, base.from_sent_layout(self._workshop, held.name, held.image, platform))
            case protocol.DirectoryContext() | protocol.SentContext():
                return self._with_files(platform, self.contexts.read(held.name, taken))
            case _:
                assert_never(held)

    def files(self, origin: Origin) -> FileSource:
        """The files that ``origin`` names, to copy from."""
        if isinstance(origin, FromContext):
            context = self.contexts.use(origin.name)
            if isinstance(context, protocol.FilesContext):
                return self.contexts.files(context)
        return StageFiles(self.state(origin, self._workshop.platform), self._filesystems)

    def _with_files(self, platform: Platform, tree: Tree) -> State:
        """A state with one layer: all files of the context ``tree``."""
        empty = State(platform, image.empty(platform))
        workshop = self._workshop
        source = copying.CopySource(tree, "/", wildcards=False, context=True)
        plan = copying.CopyPlan(None, workshop.directory, moment.nanoseconds(workshop.job.epoch))
        for match, top, found in content.select(workshop, source).matches():
            copying.copy_match(plan, source, match, top, found, "/", copying.CopyOptions())
        entries = plan.finish()
        result = content.name(workshop, entries)
        layer = from_result(workshop, result, caching.now(), entries, ())
        return replace(empty, layers=(layer,), tree=treename.name(keys.key("tree", empty.tree.here, result)))


def _from_base(platform: Platform, found: base.Base) -> State:
    return State(
        platform, found.config, found.layers, treename.name(found.tree), base_history=len(found.config.history)
    )
