"""The content of an image: its indexes and manifests, their blobs, and their referrers.

Indexes are untrusted, so there are limits to nesting, to the number and size of documents, and to blobs. Cycles are
impossible: a document would have to contain its own digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec

from executor.image import mediatypes
from executor.image.manifest import Descriptor, Index, Manifest
from executor.image.selection import DEPTH
from orchestrator.index.image_sources import DOCUMENT_TYPES, Document, ImageSource
from platforms.errors import ArchiveError

DOCUMENTS: Final = 4096
"""Maximum number of manifests and indexes of an image, referrers included."""
DOCUMENT_BYTES: Final = 256 << 20
BLOBS: Final = 100_000
AT_ONCE: Final = 8
"""Number of concurrent requests to registries."""

CONFIGS: Final = frozenset({mediatypes.OCI_CONFIG, mediatypes.DOCKER_CONFIG})
"""Media types of image configs; manifests with others are no images."""
NONDISTRIBUTABLE: Final = (
    "application/vnd.docker.image.rootfs.foreign.",
    "application/vnd.oci.image.layer.nondistributable.",
)
"""Prefixes of media types of layers that are not pushed (image-spec layer.md, "Non-Distributable Layers")."""


class Blob(msgspec.Struct, frozen=True):
    """A blob and its source."""

    descriptor: Descriptor
    source: ImageSource


class SourcedDocument(msgspec.Struct, frozen=True):
    """A document and the source of it and of its blobs."""

    document: Document
    source: ImageSource


class ImageContents(msgspec.Struct, frozen=True):
    """The content of images."""

    documents: tuple[SourcedDocument, ...]
    """Documents, each after all that it lists."""
    blobs: tuple[Blob, ...]
    referrers: tuple[SourcedDocument, ...] = ()
    """Documents with a subject among the others, each after its subject; their blobs are in ``blobs``."""
    left_out: tuple[Descriptor, ...] = ()
    """Layers that are not pushed."""


class GraphLimits:
    """Counts what was read, for the limits."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._documents = 0
        self._bytes = 0

    def take(self, document: Document) -> None:
        """Count the bytes of ``document``. Raises ``ArchiveError`` when that is too much."""
        self._bytes += len(document.data)
        if self._bytes > DOCUMENT_BYTES:
            raise ArchiveError(f"{self._name} is too large", why=f"its manifests have more than {DOCUMENT_BYTES} bytes")

    def announce(self, count: int) -> None:
        """Count ``count`` documents that are about to be read. Raises ``ArchiveError`` when that is too much."""
        self._documents += count
        if self._documents > DOCUMENTS:
            raise ArchiveError(f"{self._name} is too large", why=f"it has more than {DOCUMENTS} manifests")


def collect(
    root: SourcedDocument, sources: Mapping[str, ImageSource], *, referrers: bool, nondistributable: bool = False
) -> ImageContents:
    """Return the content of ``root``; with ``referrers``, also all that refers to it, recursively.

    ``sources`` has the sources of entries of the root by digest; the default is the root's. Nondistributable layers are
    left out unless ``nondistributable``. Raises ``ArchiveError`` and ``RegistryError`` for content that is missing,
    damaged, or above a limit.
    """
    with ThreadPoolExecutor(AT_ONCE, "contents") as pool:
        reader = _GraphReader(GraphLimits(root.source.name), pool, sources)
        reader.limits.take(root.document)
        reader.read([root])
        found: list[SourcedDocument] = []
        asked: set[str] = set()
        for _ in range(DEPTH if referrers else 0):
            subjects = [each for digest, each in reader.known.items() if digest not in asked]
            asked |= reader.known.keys()
            fresh = reader.referrers(subjects)
            if not fresh:
                break
            reader.read(fresh)
            found += fresh
        everything = reader.ordered(_digests([root, *found]))
    own = set(_digests(found))
    blobs, left_out = _blobs(everything, nondistributable=nondistributable)
    return ImageContents(
        tuple(each for each in everything if each.document.descriptor.digest not in own),
        blobs,
        tuple(reader.known[digest] for digest in _digests(found)),
        left_out,
    )


def is_nondistributable(descriptor: Descriptor) -> bool:
    """Whether ``descriptor`` is a layer that is not pushed."""
    return descriptor.media_type.startswith(NONDISTRIBUTABLE)


class _GraphReader:
    """The documents that have been read, by digest."""

    def __init__(self, limits: GraphLimits, pool: ThreadPoolExecutor, sources: Mapping[str, ImageSource]) -> None:
        self.limits = limits
        self._pool = pool
        self._sources = sources
        self.known: dict[str, SourcedDocument] = {}

    def read(self, parts: Sequence[SourcedDocument]) -> None:
        """Read all that ``parts`` list, level by level."""
        level = self._taken(parts)
        for _ in range(DEPTH):
            wanted = self._listed(level)
            if not wanted:
                return
            self.limits.announce(len(wanted))
            level = self._taken(self._fetched(wanted))
        if not self._listed(level):
            return
        raise ArchiveError(
            f"{parts[0].source.name} is an index of indexes without end",
            why=f"more than {DEPTH} of them lie within one another",
        )

    def referrers(self, subjects: Sequence[SourcedDocument]) -> list[SourcedDocument]:
        """Return referrers of ``subjects`` that were not read yet."""
        listed: dict[str, tuple[Descriptor, ImageSource]] = {}
        about: dict[str, str] = {}
        for subject, found in zip(subjects, self._pool.map(_referrers, subjects), strict=True):
            for each in found:
                if each.digest not in self.known and each.digest not in listed:
                    self.limits.announce(1)
                    if each.media_type not in DOCUMENT_TYPES:
                        raise ArchiveError(
                            f"{each.digest}, which refers to {subject.document.descriptor.digest} of "
                            f"{subject.source.name}, is neither a manifest nor an index",
                            why=f"its media type is {each.media_type}",
                            remedy="--no-referrers leaves out whatever refers to the image",
                        )
                    listed[each.digest] = (each, subject.source)
                    about[each.digest] = subject.document.descriptor.digest
        parts = list(self._fetched(listed.values()))
        for part in parts:
            digest = part.document.descriptor.digest
            if part.document.subject != about[digest]:
                raise ArchiveError(
                    f"{digest} of {part.source.name} is listed as a referrer of {about[digest]}",
                    why=f"its subject is {part.document.subject or 'missing'}",
                    remedy="whoever wrote the list is wrong; --no-referrers copies the image without them",
                )
        return parts

    def ordered(self, digests: Iterable[str]) -> list[SourcedDocument]:
        """Return the documents of ``digests`` and all below them, each once, after all that it lists."""
        done: dict[str, SourcedDocument] = {}
        waiting = [(digest, False) for digest in reversed(tuple(digests))]
        while waiting:
            digest, through = waiting.pop()
            if digest in done:
                continue
            part = self.known[digest]
            if through or not isinstance(part.document.content, Index):
                done[digest] = part
                continue
            waiting.append((digest, True))
            waiting += [(each.digest, False) for each in reversed(part.document.content.manifests)]
        return list(done.values())

    def _listed(self, level: Iterable[SourcedDocument]) -> list[tuple[Descriptor, ImageSource]]:
        """Return the entries of the indexes of ``level`` that were not read yet, with their sources."""
        wanted: dict[str, tuple[Descriptor, ImageSource]] = {}
        for each in level:
            if not isinstance(each.document.content, Index):
                continue
            for entry in each.document.content.manifests:
                if entry.digest in self.known:
                    known = self.known[entry.digest].document.descriptor
                else:
                    source = self._sources.get(entry.digest, each.source)
                    known = wanted.setdefault(entry.digest, (entry, source))[0]
                _check_same(known, entry, each.source.name)
        return list(wanted.values())

    def _fetched(self, wanted: Iterable[tuple[Descriptor, ImageSource]]) -> Iterator[SourcedDocument]:
        """Read ``wanted`` concurrently; return them in order. Each is counted when it arrives."""
        for part in self._pool.map(_read, wanted):
            self.limits.take(part.document)
            yield part

    def _taken(self, parts: Iterable[SourcedDocument]) -> list[SourcedDocument]:
        """Return those of ``parts`` that are new."""
        level = []
        for each in parts:
            if each.document.descriptor.digest not in self.known:
                self.known[each.document.descriptor.digest] = each
                level.append(each)
        return level


def _digests(parts: Iterable[SourcedDocument]) -> list[str]:
    return [each.document.descriptor.digest for each in parts]


def _read(wanted: tuple[Descriptor, ImageSource]) -> SourcedDocument:
    descriptor, source = wanted
    plain = Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)
    return SourcedDocument(source.document(plain), source)


def _referrers(part: SourcedDocument) -> tuple[Descriptor, ...]:
    return part.source.referrers(part.document.descriptor.digest)


def _blobs(
    parts: Iterable[SourcedDocument], *, nondistributable: bool
) -> tuple[tuple[Blob, ...], tuple[Descriptor, ...]]:
    """Return the blobs of all manifests among ``parts``, each once, and the layers that are left out."""
    found: dict[str, Blob] = {}
    left_out: dict[str, Descriptor] = {}
    for part in parts:
        if not isinstance(part.document.content, Manifest):
            continue
        for each in (part.document.content.config, *part.document.content.layers):
            if is_nondistributable(each) and not nondistributable:
                left_out[each.digest] = each
                continue
            known = found.setdefault(each.digest, Blob(each, part.source))
            if known.descriptor.size != each.size:
                raise ArchiveError(
                    f"{part.source.name} says two things of {each.digest}",
                    why=f"it has {known.descriptor.size} bytes, or {each.size}",
                )
            if len(found) > BLOBS:
                raise ArchiveError(f"{part.source.name} is too large", why=f"it has more than {BLOBS} blobs")
    return tuple(found.values()), tuple(each for digest, each in left_out.items() if digest not in found)


def _check_same(known: Descriptor, again: Descriptor, name: str) -> None:
    if (known.media_type, known.size) != (again.media_type, again.size):
        raise ArchiveError(
            f"{name} says two things of {known.digest}",
            why=f"{known.media_type} of {known.size} bytes, and {again.media_type} of {again.size}",
        )
