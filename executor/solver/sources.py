"""The sources of COPY and ADD: paths of a tree and here-documents; ``fetched`` has URLs and git repositories.

Each knows two things: what it is, for the cache key of the step, and how it is copied into a plan. Nothing is read or
downloaded for a key when that can be known without.
"""

from __future__ import annotations

import os
from typing import Final, Protocol

import msgspec

from executor import protocol
from executor.dockerfile.instructions import Add, Copy
from executor.rootfs.entry import Kind
from executor.rootfs.tree import Tree, open_directory
from executor.snapshotter.snapshotter import Parents
from executor.solver import content, copying, keys
from executor.solver.content import Contents, MatchedSource, SelectionDigest
from executor.solver.copying import CopyOptions, CopyPlan, CopySource, Matched
from executor.solver.inputs import Input
from executor.solver.lazy import Lazy
from executor.solver.lifetime import ScratchSpace
from executor.solver.services import Memory, Services
from executor.solver.statwalk import StatWalk, source_of, walk
from executor.solver.treename import Name, Observed
from platforms.errors import ContextError

_CONTENT: Final = "content"
"""What the file with a here-document's content is called on this machine."""


class FileSource(Protocol):
    """Where one or more source arguments come from: a tree, and how its content is told apart for cache keys."""

    @property
    def identity(self) -> Name | None:
        """The name of the whole tree, if that is known without reading (a stage's); None to read what is copied."""
        ...

    @property
    def context(self) -> str | None:
        """The context that it is, if it is one, by name."""
        ...

    @property
    def shared(self) -> str:
        """What all jobs of a build that see the same tree call it; "" when others see none or another."""
        ...

    def open(self, taken: Input) -> Tree:
        """The tree, for whoever reads it as that input: a context's can then only be accounted for by its signature."""
        ...

    def snapshots(self) -> Parents | None:
        """The snapshots that the tree is made of; None for a context."""
        ...


class Sources(msgspec.Struct, frozen=True):
    """All sources of one COPY or ADD, in order, each with what it is as an input."""

    parts: tuple[tuple[SourceArgument, Input], ...]

    def key(self) -> tuple[Observed, ...]:
        """What the sources are, for the cache key of the step."""
        return tuple(part.key(taken) for part, taken in self.parts)

    def copy_to(self, plan: CopyPlan, destination: str, copy_options: CopyOptions) -> None:
        """Add everything to ``plan``."""
        for part, _ in self.parts:
            part.copy_to(plan, destination, copy_options)


class SourceArgument(Protocol):
    """One source argument."""

    def key(self, taken: Input) -> Observed:
        """What it is, for the cache key. It accounts for ``taken``; else the job's answer is not cacheable."""
        ...

    def copy_to(self, plan: CopyPlan, destination: str, copy_options: CopyOptions) -> None:
        """Copy it."""
        ...


class Paths(msgspec.Struct, frozen=True):
    """What a source argument names in ``files``."""

    files: FileSource
    taken: Input
    pattern: str
    parents: bool
    exclude: tuple[str, ...]

    def source(self) -> CopySource:
        """The argument in the tree that it is about."""
        context = self.files.context is not None
        return source_of(self.files.open(self.taken), self.pattern, parents=self.parents, context=context)

    @property
    def shared(self) -> str:
        """What all jobs of a build that see the same files call it; "" when others see none or others."""
        if not self.files.shared:
            return ""
        return keys.key("source", self.files.shared, self.pattern, self.parents, self.exclude)

    def signature(self, digest: str) -> protocol.StatSignature:
        """How files of a context are looked at again, given the digest of what lstat(2) says of them."""
        return protocol.StatSignature(self.files.context or "", self.pattern, self.parents, self.exclude, digest)


class Reading:
    """The files that ``paths`` name, as they are when they are first looked at: nothing is looked at twice."""

    def __init__(self, contents: Contents, paths: Paths) -> None:
        self._contents = contents
        self._paths = paths
        self._walked = Lazy(self._walk)
        self.selected = Lazy(self._select)
        """What is copied, as it was when its key was taken: what is looked at once cannot have two forms."""
        self.agreed = Lazy(self._agree)
        """What ``selected`` is, for keys; it may be known from another job while this one has looked at nothing."""

    def _walk(self) -> StatWalk:
        contents = self._contents
        return walk(contents.directory, self._paths.source(), self._paths.exclude, contents.cancellation.check)

    def _select(self) -> MatchedSource:
        return self._contents.selected(self._walked())

    def _agree(self) -> SelectionDigest:
        return self._contents.shared_digest(self._paths.shared, self._walked, self.selected)


class StagePaths(msgspec.Struct, frozen=True):
    """Paths of a stage or an image, whose file system has a name."""

    paths: Paths
    identity: Name
    unpack: bool

    def key(self, taken: Input) -> Observed:
        taken.nothing()
        return ("tree", self.identity, self.paths.pattern, self.paths.parents, self.unpack)

    def copy_to(self, plan: CopyPlan, destination: str, copy_options: CopyOptions) -> None:
        copying.copy(plan, self.paths.source(), destination, copy_options)


class ContextPaths(msgspec.Struct, frozen=True):
    """Paths of a context, whose key has to be taken over what is copied."""

    paths: Paths
    reading: Reading
    unpack: bool
    scratch: ScratchSpace

    def key(self, taken: Input) -> Observed:
        found = self.reading.agreed()
        taken.files(self.paths.signature(found.signature))
        return ("files", self.paths.pattern, self.paths.parents, self.unpack, found.name)

    def copy_to(self, plan: CopyPlan, destination: str, copy_options: CopyOptions) -> None:
        source = self.paths.source()
        copying.require(source, copy_options.exclude)
        selection = self.reading.selected()
        if selection.name() != self.reading.agreed().name:
            raise ContextError(f'"{self.paths.pattern}" changed during the build', remedy="build again")
        for matched in selection.matches():
            if self.unpack and matched.top.kind is Kind.FILE:
                self._unpack(plan, source, matched, destination, copy_options)
            else:
                copying.copy_match(plan, source, matched, destination, copy_options)

    def _unpack(
        self, plan: CopyPlan, source: CopySource, matched: Matched, destination: str, copy_options: CopyOptions
    ) -> None:
        """Copy what is in the file ``matched`` if that is an archive, else the file."""
        from executor.solver.archives import copy_archive  # which few Dockerfiles need

        for each in matched.entries:
            if copy_archive(self.scratch, plan, each.entry.source, destination, copy_options):
                content.check(each.entry)
            else:
                one = Matched(matched.match, matched.top, (each,))
                copying.copy_match(plan, source, one, destination, copy_options)


class Inline(msgspec.Struct, frozen=True):
    """A here-document: a file whose content is in the Dockerfile.

    On this machine the content lies in a file that is named here; the Dockerfile's name is only what the entry of the
    layer is called.
    """

    name: str
    """One component (``Heredoc.file``)."""
    content: bytes
    scratch: ScratchSpace

    def key(self, taken: Input) -> keys.Part:
        taken.nothing()
        return ("inline", self.name, self.content)

    def copy_to(self, plan: CopyPlan, destination: str, copy_options: CopyOptions) -> None:
        directory = self.scratch.new()
        path = os.path.join(directory, _CONTENT)
        with open(path, "xb") as file:
            file.write(self.content)
        os.chmod(path, 0o644)
        os.utime(path, ns=(plan.made, plan.made))
        tree = self.scratch.keep(open_directory(directory, owner=(0, 0)))
        copying.copy_file(plan, tree, _CONTENT, self.name, destination, copy_options)


def of(services: Services, memory: Memory, instruction: Copy | Add, files: Lazy[FileSource]) -> Sources:
    """The sources of ``instruction``, whose paths are looked up in ``files``."""
    parts: list[tuple[SourceArgument, Input]] = []
    for text in instruction.sources:
        taken = memory.inputs.add("source")
        part = _fetched(services, memory, instruction, text) or _paths(memory, instruction, text, files, taken)
        parts.append((part, taken))
    for each in instruction.heredocs:
        content = each.content.encode("utf-8", "surrogateescape")
        parts.append((Inline(each.file(), content, memory.scratch), memory.inputs.add("here-document")))
    return Sources(tuple(parts))


def _fetched(services: Services, memory: Memory, instruction: Copy | Add, text: str) -> SourceArgument | None:
    """The source ``text`` when it is a URL or a git repository."""
    if not isinstance(instruction, Add):
        return None
    from executor.solver import fetched  # with all that fetches, which few Dockerfiles need

    fetcher = fetched.Fetcher(
        services.store, services.conversation, services.cancellation, memory.scratch, memory.downloads
    )
    return fetched.part(fetcher, instruction, text)


def _paths(memory: Memory, instruction: Copy | Add, text: str, found: Lazy[FileSource], taken: Input) -> SourceArgument:
    """The source ``text`` when it is a path, or a pattern of paths."""
    parents = isinstance(instruction, Copy) and instruction.parents
    unpack = isinstance(instruction, Add) and instruction.unpack is not False
    files = found()
    paths = Paths(files, taken, text, parents, instruction.exclude)
    if files.identity is not None:
        return StagePaths(paths, files.identity, unpack)
    return ContextPaths(paths, Reading(memory.contents, paths), unpack, memory.scratch)
