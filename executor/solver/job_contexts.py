"""The build contexts of a job: directories on this machine, or sent by the orchestrator."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, assert_never

import msgspec

from executor import protocol
from executor.context.directory import open_context
from executor.rootfs.tree import Tree
from executor.solver import keys
from executor.solver.graph import JobPlan
from executor.solver.inputs import Input
from executor.solver.lazy import Lazy
from executor.solver.lifetime import ScratchSpace
from executor.solver.services import Services
from platforms.errors import ContextError


class Contexts:
    """The contexts by name. Each is opened when it is first read. Thread-safe."""

    def __init__(self, job: protocol.Job, plan: JobPlan, services: Services, scratch: ScratchSpace) -> None:
        self._contexts = {context.name: context for context in job.contexts}
        self._trees = {
            name: Lazy(partial(_open, each, _Opening(job.build, plan, services, scratch)))
            for name, each in self._contexts.items()
            if isinstance(each, protocol.FilesContext)
        }
        self.used: set[str] = set()
        """The names of the contexts that were used."""

    def use(self, name: str) -> protocol.Context:
        """Return the context ``name`` and mark it as used. Raises ``ContextError`` if there is none."""
        if name not in self._contexts:
            raise ContextError(
                "there is no build context",
                why="the Dockerfile came from stdin alone",
                remedy="build with a directory: kanifold build DIRECTORY --file -",
            )
        self.used.add(name)
        return self._contexts[name]

    def files(self, context: protocol.FilesContext) -> JobContextFiles:
        """Return the files of ``context`` as a source of COPY and of mounts."""
        shared = ""
        if isinstance(context, protocol.DirectoryContext):
            shared = keys.key("context", context.path, context.ignore, context.owners)
        return JobContextFiles(self, context.name, shared)

    def read(self, name: str, input_: Input) -> Tree:
        """Open the context ``name`` as the input ``input_``."""
        input_.mark_opened()
        return self._trees[name]()


class JobContextFiles(msgspec.Struct, frozen=True):
    """The files of a context (``sources.FileSource``)."""

    contexts: Contexts
    context: str
    shared: str
    identity: ClassVar[None] = None

    def open(self, input_: Input) -> Tree:
        return self.contexts.read(self.context, input_)

    def snapshots(self) -> None:
        return None


class _Opening(msgspec.Struct, frozen=True):
    """What is needed to open a context."""

    build: str
    plan: JobPlan
    services: Services
    scratch: ScratchSpace


def _open(context: protocol.FilesContext, opening: _Opening) -> Tree:
    match context:
        case protocol.DirectoryContext():
            return opening.scratch.keep(open_context(context.path, context.ignore, owners=context.owners))
        case protocol.SentContext():
            return _sent(context, opening)
        case _:
            assert_never(context)


def _sent(context: protocol.SentContext, opening: _Opening) -> Tree:
    """Return the files of a context that the orchestrator sends."""
    from executor.solver.context_content import ContextSender  # which builds on this machine have not
    from executor.solver.sent_context import SentTree
    from executor.solver.usual_patterns import usual_patterns

    services = opening.services
    source = ContextSender(
        context,
        opening.build,
        services.conversation,
        services.store,
        services.cancellation,
        services.registry,
        opening.scratch,
    )
    return SentTree(source, partial(usual_patterns, opening.plan, context.name))
