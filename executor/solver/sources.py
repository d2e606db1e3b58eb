"""The sources of COPY and ADD: paths of a tree and here-documents; ``fetched`` has URLs and git repositories.

Each has a part of the step's cache key, and can be copied into a plan. Nothing is read or downloaded for a key if the
key can be computed without.
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
from executor.solver.statwalk import StatWalk, pattern_of, source_of, walk
from executor.solver.treename import Name, Observed
from platforms.errors import ContextError

_CONTENT: Final = "content"
"""The name of the temporary file of a here-document."""


class FileSource(Protocol):
    """The files that source arguments refer to: a tree, and how it is identified in cache keys."""

    @property
    def identity(self) -> Name | None:
        """The name of the tree, if it has one (a stage has); None if the files have to be read for a key."""
        ...

    @property
    def context(self) -> str | None:
        """The name of the context, if it is one."""
        ...

    @property
    def shared(self) -> str:
        """A name that all jobs of a build use for the same tree; "" if they do not share it."""
        ...

    def open(self, input_: Input) -> Tree:
        """Open the tree as the input ``input_``. A context is then accounted for only by its stat signature."""
        ...

    def snapshots(self) -> Parents | None:
        """Return the snapshots of the tree; None for a context."""
        ...


class Sources(msgspec.Struct, frozen=True):
    """All sources of one COPY or ADD, in order, each with its input."""

    parts: tuple[tuple[SourceArgument, Input], ...]

    def key(self) -> tuple[Observed, ...]:
        """Return the sources' part of the step's cache key."""
        return tuple(part.key(input_) for part, input_ in self.parts)

    def copy_to(self, plan: CopyPlan, destination: str, copy_options: CopyOptions) -> None:
        """Add the files of all sources to ``plan``."""
        for part, _ in self.parts:
            part.copy_to(plan, destination, copy_options)


class SourceArgument(Protocol):
    """One source argument."""

    def key(self, input_: Input) -> Observed:
        """Return the source's part of the cache key. Has to account for ``input_``, else the result is not
        cacheable."""
        ...

    def copy_to(self, plan: CopyPlan, destination: str, copy_options: CopyOptions) -> None:
        """Add the files to ``plan``."""
        ...


class Paths(msgspec.Struct, frozen=True):
    """A source argument that is a path, or a pattern of paths, in ``files``."""

    files: FileSource
    input_: Input
    pattern: str
    parents: bool
    exclude: tuple[str, ...]

    def source(self) -> CopySource:
        """Return the argument with the opened tree."""
        context = self.files.context is not None
        return source_of(self.files.open(self.input_), self.pattern, parents=self.parents, context=context)

    def version(self) -> str:
        """Return a name for the argument and all that it matches, that is known without a walk; "" if there is none."""
        source = self.source()
        pattern = pattern_of(source, self.exclude)
        found = source.tree.version(pattern)
        return keys.key("files", found, msgspec.json.encode(pattern)) if found else ""

    @property
    def shared(self) -> str:
        """A name that all jobs of a build use for the same argument and files; "" if they do not share the files."""
        if not self.files.shared:
            return ""
        return keys.key("source", self.files.shared, self.pattern, self.parents, self.exclude)

    def signature(self, digest: str) -> protocol.StatSignature:
        """Return the stat signature by which files of a context are checked again. ``digest``: of their lstat(2)
        results."""
        return protocol.StatSignature(self.files.context or "", self.pattern, self.parents, self.exclude, digest)


class Reading:
    """Reads the files that ``paths`` match. They are walked and read once, so key and layer have the same content."""

    def __init__(self, contents: Contents, paths: Paths) -> None:
        self._contents = contents
        self._paths = paths
        self._walked = Lazy(self._walk)
        self.selected = Lazy(self._select)
        """The files that are copied."""
        self.agreed = Lazy(self._agree)
        """The digest of ``selected``, for keys; it may come from another job, without a walk."""

    def _walk(self) -> StatWalk:
        contents = self._contents
        return walk(contents.directory, self._paths.source(), self._paths.exclude, contents.cancellation.check)

    def _select(self) -> MatchedSource:
        return self._contents.selected(self._walked())

    def _agree(self) -> SelectionDigest:
        shared = self._paths.files.shared
        found = None if shared else self._contents.recorded_digest(self._paths.version, self.selected)
        return (
            found
            if found is not None
            else self._contents.shared_digest(self._paths.shared, self._walked, self.selected)
        )


class StagePaths(msgspec.Struct, frozen=True):
    """Paths of a stage or an image, which are identified by the name of the file system."""

    paths: Paths
    identity: Name
    unpack: bool

    def key(self, input_: Input) -> Observed:
        input_.mark_static()
        return ("tree", self.identity, self.paths.pattern, self.paths.parents, self.unpack)

    def copy_to(self, plan: CopyPlan, destination: str, copy_options: CopyOptions) -> None:
        copying.copy(plan, self.paths.source(), destination, copy_options)


class ContextPaths(msgspec.Struct, frozen=True):
    """Paths of a context, which are identified by a digest of the files."""

    paths: Paths
    reading: Reading
    unpack: bool
    scratch: ScratchSpace

    def key(self, input_: Input) -> Observed:
        found = self.reading.agreed()
        input_.mark_signed(self.paths.signature(found.signature))
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
        """Copy the content of ``matched`` if it is an archive, else the file itself."""
        from executor.solver.archives import copy_archive  # which few Dockerfiles need

        for each in matched.entries:
            if copy_archive(self.scratch, plan, each.entry.source, destination, copy_options):
                content.check(each.entry)
            else:
                one = Matched(matched.match, matched.top, (each,))
                copying.copy_match(plan, source, one, destination, copy_options)


class Inline(msgspec.Struct, frozen=True):
    """A here-document: a file whose content is in the Dockerfile.

    Its temporary file has a constant name. The name in the Dockerfile is used for the entry in the layer only.
    """

    name: str
    """One component (``Heredoc.file``)."""
    content: bytes
    scratch: ScratchSpace

    def key(self, input_: Input) -> keys.Part:
        input_.mark_static()
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


def of(
    services: Services, memory: Memory, instruction: Copy | Add, files: Lazy[FileSource], *, windows: bool
) -> Sources:
    """Return the sources of ``instruction``, whose paths, those of Windows if ``windows``, refer to ``files``."""
    parts: list[tuple[SourceArgument, Input]] = []
    for text in instruction.sources:
        input_ = memory.inputs.add("source")
        part = _fetched(services, memory, instruction, text)
        if part is None:
            part = _paths(memory, instruction, _windows_source(text) if windows else text, files, input_)
        parts.append((part, input_))
    for each in instruction.heredocs:
        content = each.content.encode("utf-8", "surrogateescape")
        parts.append((Inline(each.file(), content, memory.scratch), memory.inputs.add("here-document")))
    return Sources(tuple(parts))


def _windows_source(text: str) -> str:
    from executor.solver import windows_paths  # late: few builds are for Windows

    return windows_paths.source(text)


def _fetched(services: Services, memory: Memory, instruction: Copy | Add, text: str) -> SourceArgument | None:
    """Return the source ``text`` if it is a URL or a git repository, else None."""
    if not isinstance(instruction, Add):
        return None
    from executor.solver import fetched  # with all that fetches, which few Dockerfiles need

    fetcher = fetched.Fetcher(
        services.store, services.conversation, services.cancellation, memory.scratch, memory.downloads
    )
    return fetched.part(fetcher, instruction, text)


def _paths(
    memory: Memory, instruction: Copy | Add, text: str, found: Lazy[FileSource], input_: Input
) -> SourceArgument:
    """Return the source ``text``, a path or a pattern of paths."""
    parents = isinstance(instruction, Copy) and instruction.parents
    unpack = isinstance(instruction, Add) and instruction.unpack is not False
    files = found()
    paths = Paths(files, input_, text, parents, instruction.exclude)
    if files.identity is not None:
        return StagePaths(paths, files.identity, unpack)
    return ContextPaths(paths, Reading(memory.contents, paths), unpack, memory.scratch)
