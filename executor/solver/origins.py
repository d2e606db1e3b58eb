"""Resolves the names in FROM, ``--from`` and ``from=``: to states to build on, and to files to copy or mount."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, assert_never

import msgspec
from msgspec.structs import replace

from executor import protocol
from executor.dockerfile import Stage
from executor.image import config as image
from executor.rootfs.tree import Tree
from executor.snapshotter.snapshotter import Parents
from executor.solver import copying, graph, keys, treename
from executor.solver.base import Base, Bases
from executor.solver.graph import FromContext, FromImage, FromScratch, FromStage, JobPlan, Origin
from executor.solver.inputs import Input
from executor.solver.job_contexts import Contexts
from executor.solver.layer import USUAL, form_of
from executor.solver.lazy import Lazy
from executor.solver.services import FileSystems, Memory, Services
from executor.solver.sources import FileSource
from executor.solver.state import State
from executor.solver.treename import Name
from platforms.errors import Location
from platforms.platform import Platform


class StageFiles(msgspec.Struct, frozen=True):
    """The files of a stage or an image (``sources.FileSource``)."""

    state: State
    filesystems: FileSystems
    context: ClassVar[None] = None
    shared: ClassVar[str] = ""

    @property
    def identity(self) -> Name:
        return self.state.tree

    def open(self, _input: Input) -> Tree:
        return self.filesystems.tree(self.state.layers)

    def snapshots(self) -> Parents:
        return self.filesystems.snapshots(self.state.layers)


class Origins(msgspec.Struct, frozen=True):
    """Resolves origins for one job. Thread-safe."""

    plan: JobPlan
    services: Services
    memory: Memory
    stages: Mapping[int, Lazy[State]]
    filesystems: FileSystems
    contexts: Contexts
    bases: Bases
    made_ns: int
    """The modification time of directories that are created, nanoseconds."""

    def named(self, name: str, stage: Stage, where: Location, *, numbers: bool) -> Origin:
        """Return the origin ``name``, as a step of ``stage`` at ``where`` sees it. ``numbers``: it may be a stage's
        number."""
        plan = self.plan
        return graph.named_origin(plan.dockerfile, name, stage.index, where, plan.named, numbers=numbers)

    def state(self, origin: Origin, platform: Platform) -> State:
        """Return the state of ``origin``, for ``platform`` unless it is a stage."""
        if isinstance(origin, FromStage):
            return self.stages[origin.index]()
        input_ = self.memory.inputs.add("base")
        held = self.contexts.use(origin.name) if isinstance(origin, FromContext) else origin
        match held:
            case FromScratch() | protocol.ScratchContext():
                input_.mark_static()
                return State(platform, image.empty(platform))
            case FromImage():
                return _from_base(platform, self.bases.from_registry(input_, held.name, platform))
            case protocol.ImageContext():
                return _from_base(platform, self.bases.from_registry(input_, held.image, platform))
            case protocol.LayoutContext():
                return _from_base(platform, self.bases.from_layout(held.name, held.path, platform))
            case protocol.SentLayoutContext():
                return _from_base(platform, self.bases.from_sent_layout(held.name, held.image, platform))
            case protocol.DirectoryContext() | protocol.SentContext():
                return self._with_files(platform, self.contexts.read(held.name, input_))
            case _:
                assert_never(held)

    def files(self, origin: Origin) -> FileSource:
        """Return the files of ``origin``."""
        if isinstance(origin, FromContext):
            context = self.contexts.use(origin.name)
            if isinstance(context, protocol.FilesContext):
                return self.contexts.files(context)
        return StageFiles(self.state(origin, self.services.platform), self.filesystems)

    def _with_files(self, platform: Platform, tree: Tree) -> State:
        """Return a state with a single layer, which has all files of the context ``tree``."""
        contents = self.memory.contents
        empty = State(platform, image.empty(platform))
        source = copying.CopySource(tree, "/", wildcards=False, context=True)
        plan = copying.CopyPlan(None, contents.directory, self.made_ns)
        for matched in contents.select(source).matches():
            copying.copy_match(plan, source, matched, "/", copying.CopyOptions())
        entries = plan.finish()
        result = contents.name(entries)
        layer = self.services.layers.from_result(result, self.services.now(), entries, (), USUAL)
        return replace(empty, layers=(layer,), tree=treename.name(keys.key("tree", empty.tree.local, result)))


def _from_base(platform: Platform, found: Base) -> State:
    return State(
        platform,
        found.config,
        found.layers,
        treename.name(found.tree),
        base_history=len(found.config.history),
        form=form_of(found.config.platform),
    )
