"""COPY, ADD and WORKDIR as steps: find the sources, look in the cache, plan the layer."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from executor.build import copying, keys, modes, users
from executor.build.copying import Plan, Source, Treatment
from executor.build.once import Once
from executor.build.state import normal_path
from executor.build.workshop import Workshop
from executor.dockerfile.instructions import Add, Copy
from executor.rootfs.entry import Entry, Kind
from executor.rootfs.tree import Tree, open_directory
from executor.store import files
from platforms.errors import ContextError, DockerfileError


@dataclass(frozen=True, slots=True)
class Input:
    """Where one or more source arguments come from: a tree, and how its content is told apart for cache keys."""

    tree: Once[Tree]
    identity: str
    """Names the whole tree when that is known without reading (a stage's file system); "" to read what is copied."""
    root_times: bool = True


@dataclass(frozen=True, slots=True)
class Inputs:
    """All sources of one COPY or ADD, in order."""

    workshop: Workshop
    parts: tuple[Part, ...]

    def key(self) -> tuple[keys.Part, ...]:
        """What the sources are, for the cache key of the step."""
        return tuple(part.key(self.workshop) for part in self.parts)

    def copy_to(self, plan: Plan, destination: str, treatment: Treatment) -> None:
        """Add everything to ``plan``."""
        for part in self.parts:
            part.copy_to(plan, destination, treatment)


class Part(Protocol):
    """One source argument."""

    def key(self, workshop: Workshop) -> keys.Part:
        """What it is, for the cache key."""
        ...

    def copy_to(self, plan: Plan, destination: str, treatment: Treatment) -> None:
        """Copy it."""
        ...


@dataclass(frozen=True, slots=True)
class FromTree:
    """Paths of a context, a stage or an image."""

    source: Callable[[], Source]
    identity: str
    """Of the whole tree; "" when the key has to be taken over what is copied."""
    pattern: str
    parents: bool

    def key(self, workshop: Workshop) -> keys.Part:
        if self.identity:
            return ("tree", self.identity, self.pattern, self.parents)
        return ("files", self.pattern, self.parents, content_key(workshop, selected(self.source())))

    def copy_to(self, plan: Plan, destination: str, treatment: Treatment) -> None:
        copying.copy(plan, self.source(), destination, treatment)


@dataclass(frozen=True, slots=True)
class Inline:
    """A here-document: a file whose content is in the Dockerfile."""

    workshop: Workshop
    name: str
    content: bytes

    def key(self, workshop: Workshop) -> keys.Part:
        return ("inline", self.name, self.content)

    def copy_to(self, plan: Plan, destination: str, treatment: Treatment) -> None:
        directory = self.workshop.scratch()
        name = self.name.lstrip("/")
        path = os.path.join(directory, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(self.content)
        os.chmod(path, 0o644)
        os.utime(path, (0, 0))
        tree = self.workshop.trees.keep(open_directory(directory, owner=(0, 0)))
        copying.copy(plan, Source(tree, "/" + name, wildcards=False, contents=False), destination, treatment)


def inputs(workshop: Workshop, instruction: Copy | Add, found: Input) -> Inputs:
    """The sources of ``instruction``, whose paths are looked up in ``found``."""
    if len(instruction.sources) + len(instruction.heredocs) > 1 and not instruction.destination.endswith("/"):
        raise DockerfileError(
            f"When using {instruction.keyword.upper()} with more than one source file, "
            "the destination must be a directory and end with a /",
            where=instruction.location,
        )
    parts: list[Part] = []
    for text in instruction.sources:
        parents = isinstance(instruction, Copy) and instruction.parents
        parts.append(FromTree(_source(found, text, parents), found.identity, text, parents))
    parts += [Inline(workshop, each.name, each.content.encode()) for each in instruction.heredocs]
    return Inputs(workshop, tuple(parts))


def _source(found: Input, text: str, parents: bool) -> Callable[[], Source]:
    def make() -> Source:
        if not parents:
            return Source(found.tree(), normal_path("/", text), root_times=found.root_times)
        pivot, dot, below = text.partition("/./")
        if not dot:
            pivot, below = "/", text
        pattern = normal_path("/", below)
        required = not copying.has_wildcards(pivot) and not copying.has_wildcards(pattern)
        return Source(
            found.tree(),
            normal_path("/", pivot),
            include=(pattern.lstrip("/"),),
            required=required,
            root_times=found.root_times,
        )

    return make


def content_key(workshop: Workshop, entries: Sequence[Entry]) -> tuple[keys.Part, ...]:
    """What ``entries`` are, content included and times left out: touching a file is not changing it."""
    digests = file_digests(workshop, [each for each in entries if each.kind is Kind.FILE])
    return tuple(
        (
            entry.path,
            entry.kind.value,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.link,
            entry.device,
            entry.xattrs,
            digests.get(entry.source, ""),
        )
        for entry in entries
    )


def layer_name(workshop: Workshop, entries: Sequence[Entry]) -> str:
    """The name of the layer that ``entries`` make: equal names, equal bytes of the archive."""
    digests = file_digests(workshop, [each for each in entries if each.kind is Kind.FILE])
    return keys.key(
        "layer",
        tuple(
            (
                entry.path,
                entry.kind.value,
                entry.mode,
                entry.uid,
                entry.gid,
                entry.mtime_ns // 1_000_000_000,
                entry.size,
                entry.link,
                entry.device,
                entry.xattrs,
                digests.get(entry.source, ""),
            )
            for entry in entries
        ),
        workshop.order.epoch,
    )


def file_digests(workshop: Workshop, entries: Iterable[Entry]) -> dict[bytes, str]:
    """The SHA-256 of each entry's content by its ``source``: read once, and again only when a file's status changed."""
    found: dict[bytes, str] = {}
    asked: list[tuple[str, bytes]] = []
    sources: list[bytes] = []
    read_at = files.now()
    for entry in entries:
        status = os.lstat(entry.source)
        stamp = files.stamp(status)
        known = workshop.digests.get(stamp)
        if known is not None:
            found[entry.source] = known
        else:
            sources.append(entry.source)
            asked.append((f"{status.st_dev}:{status.st_ino}", stamp))
    rows: list[tuple[str, bytes, str]] = []
    for source, (name, stamp), digest in zip(sources, asked, files.get(workshop.store, asked), strict=True):
        content = digest
        if content is None:
            workshop.check()
            content = _digest_of(source)
            rows.append((name, stamp, content))
        found[source] = workshop.digests[stamp] = content
    if rows:
        files.put(workshop.store, rows, read_at=read_at)
    return found


def _digest_of(path: bytes) -> str:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ContextError(f"cannot read {os.fsdecode(path)}", why=error.strerror or str(error)) from error


def selected(source: Source) -> tuple[Entry, ...]:
    """Everything that ``source`` names, with paths from the tree's root: what its content key is taken over."""
    found: list[Entry] = []
    for match in copying.matches(source):
        _walk(source.tree, match.path, found)
    return tuple(found)


def _walk(tree: Tree, path: bytes, found: list[Entry]) -> None:
    entry = tree.entry(path)
    if entry is None:
        return
    found.append(entry)
    if entry.kind is Kind.DIRECTORY:
        for name in tree.names(path):
            _walk(tree, path + b"/" + name if path else name, found)


def treatment(
    stage: Once[Tree] | None, chown: str, chmod: str, exclude: tuple[str, ...], *, replace_existing: bool = False
) -> Treatment:
    """What ``--chown``, ``--chmod`` and ``--exclude`` do; names of users are looked up in ``stage``."""
    owner = None
    if chown:
        owner = users.owner(stage() if stage is not None and not _numeric(chown) else None, chown)
    number = modes.octal(chmod) if chmod else None
    return Treatment(
        owner=owner,
        mode=modes.parse(chmod) if chmod else None,
        parents_mode=0o755 if number is None else number,
        exclude=exclude,
        replace_existing=replace_existing,
    )


def _numeric(chown: str) -> bool:
    return all(part.isdigit() for part in chown.split(":") if part)
