"""The build contexts of a job: directories on this machine, or sent by the orchestrator."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from typing import ClassVar, assert_never

import msgspec

from executor import protocol
from executor.context.directory import open_context
from executor.conversation import Conversation
from executor.rootfs.tree import Tree
from executor.snapshotter import unpack
from executor.solver import keys
from executor.solver.inputs import Input
from executor.solver.lazy import Lazy
from executor.solver.lifetime import ScratchSpace
from platforms.errors import ContextError, StoreError


class Contexts:
    """The contexts by name. Each is opened when it is first read. Thread-safe."""

    def __init__(self, contexts: Iterable[protocol.Context], conversation: Conversation, scratch: ScratchSpace) -> None:
        self._contexts = {context.name: context for context in contexts}
        self._trees = {
            name: Lazy(partial(_open, each, conversation, scratch))
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


def _open(context: protocol.FilesContext, conversation: Conversation, scratch: ScratchSpace) -> Tree:
    match context:
        case protocol.DirectoryContext():
            directory = context.path
        case protocol.SentContext():
            directory = _received(context.name, conversation, scratch)
        case _:
            assert_never(context)
    return scratch.keep(open_context(directory, context.ignore, owners=context.owners))


def _received(name: str, conversation: Conversation, scratch: ScratchSpace) -> str:
    """Receive the context ``name`` from the orchestrator; returns the directory."""
    directory = scratch.new()
    path = os.path.join(scratch.new(), "context.tar")
    try:
        with open(path, "wb") as file:
            if not conversation.ask_into(file.write, protocol.AskContext(name)):
                raise ContextError(f"the orchestrator does not know the context {name!r}")
    except OSError as error:
        raise StoreError("cannot keep the build context", why=error.strerror or str(error)) from error
    with open(path, "rb") as stream:
        unpack.extract(stream, directory, limits=unpack.UnpackLimits())
    os.unlink(path)
    return directory
