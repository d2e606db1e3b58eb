"""The sources of COPY and ADD: paths of a tree and here-documents; ``fetched`` has URLs and git repositories.

Each knows two things: what it is, for the cache key of the step, and how it is copied into a plan. Nothing is read or
downloaded for a key when that can be known without.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import msgspec

from executor import protocol
from executor.dockerfile.instructions import Add, Copy
from executor.rootfs.entry import Kind
from executor.rootfs.tree import Tree, open_directory
from executor.snapshotter.snapshotter import Parents
from executor.solver import content, copying, keys
from executor.solver.content import Agreed, Selection
from executor.solver.copying import CopyOptions, CopyPlan, CopySource
from executor.solver.inputs import Input
from executor.solver.once import Once
from executor.solver.statwalk import source_of, walk
from executor.solver.treename import Name, Observed
from executor.solver.workshop import Workshop
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

    workshop: Workshop
    parts: tuple[tuple[SourceArgument, Input], ...]

    def key(self) -> tuple[Observed, ...]:
        """What the sources are, for the cache key of the step."""
        return tuple(part.key(self.workshop, taken) for part, taken in self.parts)

    def copy_to(self, plan: CopyPlan, destination: str, copy_options: CopyOptions) -> None:
        """Add everything to ``plan``."""
        for part, _ in self.parts:
            part.copy_to(self.workshop, plan, destination, copy_options)


class SourceArgument(Protocol):
    """One source argument."""

    def key(self, workshop: Workshop, taken: Input) -> Observed:
        """What it is, for the cache key. It accounts for ``taken``; else the job's answer is not cacheable."""
        ...

    def copy_to(self, workshop: Workshop, plan: CopyPlan, destination: str, copy_options: CopyOptions) -> None:
        """Copy it."""
        ...


class FromTree(msgspec.Struct, frozen=True):
    """Paths of a context, a stage or an image."""

    source: Callable[[], CopySource]
    identity: Name | None
    """Of the whole tree; None when the key has to be taken over what is copied."""
    pattern: str
    parents: bool
    unpack: bool
    selected: Once[Selection]
    """What is copied, as it was when its key was taken: what is looked at once cannot have two forms."""
    agreed: Once[Agreed]
    """What ``selected`` is, for keys; it may be known from another job while this one has looked at nothing."""
    signature: Callable[[str], protocol.StatSignature]
    """How files of a context are looked at again, given the digest of what lstat(2) says of them."""

    def key(self, workshop: Workshop, taken: Input) -> Observed:
        if self.identity is not None:
            taken.nothing()
            return ("tree", self.identity, self.pattern, self.parents, self.unpack)
        found = self.agreed()
        taken.files(self.signature(found.signature))
        return ("files", self.pattern, self.parents, self.unpack, found.name)

    def copy_to(self, workshop: Workshop, plan: CopyPlan, destination: str, copy_options: CopyOptions) -> None:
        source = self.source()
        if self.identity is not None:
            copying.copy(plan, source, destination, copy_options)
            return
        copying.require(source, copy_options.exclude)
        selection = self.selected()
        if selection.name() != self.agreed().name:
            raise ContextError(f'"{self.pattern}" changed during the build', remedy="build again")
        for match, top, found in selection.matches():
            if self.unpack and top.kind is Kind.FILE:
                from executor.solver.archives import copy_archive  # which few Dockerfiles need

                for each in found:
                    if copy_archive(workshop, plan, each.entry.source, destination, copy_options):
                        content.check(each.entry)
                    else:
                        copying.copy_match(plan, source, match, top, (each,), destination, copy_options)
            else:
                copying.copy_match(plan, source, match, top, found, destination, copy_options)


class Inline(msgspec.Struct, frozen=True):
    """A here-document: a file whose content is in the Dockerfile.

    On this machine the content lies in a file that is named here; the Dockerfile's name is only what the entry of the
    layer is called.
    """

    name: str
    """One component (``Heredoc.file``)."""
    content: bytes

    def key(self, workshop: Workshop, taken: Input) -> keys.Part:
        taken.nothing()
        return ("inline", self.name, self.content)

    def copy_to(self, workshop: Workshop, plan: CopyPlan, destination: str, copy_options: CopyOptions) -> None:
        directory = workshop.scratch()
        path = os.path.join(directory, _CONTENT)
        with open(path, "xb") as file:
            file.write(self.content)
        os.chmod(path, 0o644)
        os.utime(path, ns=(plan.made, plan.made))
        tree = workshop.trees.keep(open_directory(directory, owner=(0, 0)))
        copying.copy_file(plan, tree, _CONTENT, self.name, destination, copy_options)


def of(workshop: Workshop, instruction: Copy | Add, found: Once[FileSource]) -> Sources:
    """The sources of ``instruction``, whose paths are looked up in what ``found`` gives."""
    parts: list[tuple[SourceArgument, Input]] = []
    for text in instruction.sources:
        taken = workshop.inputs.add("source")
        parts.append((_part(workshop, instruction, text, found, taken), taken))
    for each in instruction.heredocs:
        content = each.content.encode("utf-8", "surrogateescape")
        parts.append((Inline(each.file(), content), workshop.inputs.add("here-document")))
    return Sources(workshop, tuple(parts))


def _part(
    workshop: Workshop, instruction: Copy | Add, text: str, found: Once[FileSource], taken: Input
) -> SourceArgument:
    if isinstance(instruction, Add):
        from executor.solver import fetched  # with all that fetches, which few Dockerfiles need

        elsewhere = fetched.part(instruction, text)
        if elsewhere is not None:
            return elsewhere
    parents = isinstance(instruction, Copy) and instruction.parents
    unpack = isinstance(instruction, Add) and instruction.unpack is not False
    place = found()
    exclude = instruction.exclude

    def source() -> CopySource:
        return source_of(place.open(taken), text, parents=parents, context=place.context is not None)

    walked = Once(lambda: walk(workshop.directory, source(), exclude, workshop.check))
    selected = Once(lambda: content.selected(workshop, walked()))
    what = keys.key("source", place.shared, text, parents, exclude) if place.shared else ""
    agreed = Once(lambda: content.agreed(workshop, what, walked, selected))
    signature = partial(protocol.StatSignature, place.context or "", text, parents, exclude)
    return FromTree(source, place.identity, text, parents, unpack, selected, agreed, signature)
