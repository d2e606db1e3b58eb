"""Selecting the manifest of a platform from an index, which may be nested.

An index may list further indexes (image-spec, image-index.md), with a platform or without. As in containerd
(core/images, ``Manifest``), entries with a matching platform are preferred; if there are none, entries without a
platform are opened: an index for its entries, a manifest for the platform in its config.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from executor.image import config as image
from executor.image import mediatypes
from executor.image.manifest import Descriptor, Index, Manifest, PlatformSpec, parse
from platforms import select
from platforms.errors import ArchiveError, PlatformMissing
from platforms.platform import Platform

DEPTH: Final = 4
"""Maximum nesting of indexes."""
DOCUMENTS: Final = 64
"""Maximum number of documents that are read to find one manifest: an index can list any number at little cost."""

_CONFIGS: Final = frozenset({mediatypes.OCI_CONFIG, mediatypes.DOCKER_CONFIG})

Read = Callable[[Descriptor], bytes]
"""A function that returns the verified bytes of a manifest, an index or a config."""


def find(name: str, index: Index, platform: Platform, read: Read) -> tuple[Descriptor, Manifest]:
    """Return the manifest of the image ``name`` that matches ``platform`` best; ``index`` is the image's root.

    Raises ``PlatformMissing``, which lists the platforms that there are, and ``ArchiveError`` for too deep nesting.
    """
    search = _Search(name, platform, read)
    found = search.within(index, 1)
    if found is None:
        there = ", ".join(dict.fromkeys(map(str, search.seen))) or "none that says its platform"
        raise PlatformMissing(
            f"{name} has no image for {platform}",
            why=f"it has {there}",
            remedy="choose among those platforms, or another base image",
        )
    return found


def platform_of(spec: PlatformSpec) -> Platform:
    """Return the platform of a descriptor."""
    return Platform(spec.os, spec.architecture, spec.variant, spec.os_version, spec.os_features)


class _Search:
    """The state of one search."""

    def __init__(self, name: str, platform: Platform, read: Read) -> None:
        self._name = name
        self._platform = platform
        self._read = read
        self._opened: set[str] = set()
        self._read_so_far = 0
        self.seen: list[Platform] = []

    def within(self, index: Index, depth: int) -> tuple[Descriptor, Manifest] | None:
        """Return the best manifest of ``index``, nested ``depth`` deep; None when none matches."""
        stated = [(platform_of(each.platform), each) for each in index.manifests if each.platform]
        found = self._best([(platform, each) for platform, each in stated if platform.os != "unknown"], depth)
        if found is not None:
            return found
        unstated: list[tuple[Platform, Descriptor]] = []
        for each in index.manifests:
            if each.platform is None and each.media_type in mediatypes.MANIFESTS | mediatypes.INDEXES:
                unstated += self._listed(each, depth)
        return self._best(unstated, depth + 1)

    def _best(self, entries: list[tuple[Platform, Descriptor]], depth: int) -> tuple[Descriptor, Manifest] | None:
        self.seen += [platform for platform, _ in entries]
        while (best := select(self._platform, [platform for platform, _ in entries])) is not None:
            _, chosen = entries.pop(best)
            document = self._open(chosen, depth)
            if isinstance(document, Manifest):
                return chosen, document
            if document is not None and (found := self.within(document, depth + 1)) is not None:
                return found
        return None

    def _listed(self, entry: Descriptor, depth: int) -> list[tuple[Platform, Descriptor]]:
        """Return the manifests and indexes of ``entry``, which has no platform of its own, with their platforms."""
        document = self._open(entry, depth)
        if document is None:
            return []
        if isinstance(document, Manifest):
            if document.config.media_type not in _CONFIGS:
                return []
            self._opened.discard(entry.digest)  # so that it can be opened when it is selected
            return [(image.parse(self._read(document.config)).platform, entry)]
        found: list[tuple[Platform, Descriptor]] = []
        for each in document.manifests:
            if each.platform is None and each.media_type in mediatypes.MANIFESTS | mediatypes.INDEXES:
                found += self._listed(each, depth + 1)
            elif each.platform is not None and each.platform.os != "unknown":
                found.append((platform_of(each.platform), each))
        return found

    def _open(self, entry: Descriptor, depth: int) -> Manifest | Index | None:
        """Return the document of ``entry``, from an index nested ``depth`` deep; None when it was opened before."""
        if entry.digest in self._opened:
            return None
        self._opened.add(entry.digest)
        self._read_so_far += 1
        if depth > DEPTH or self._read_so_far > DOCUMENTS:
            raise ArchiveError(
                f"{self._name} is an index of indexes without end",
                why=f"more than {DEPTH} of them lie within one another, or more than {DOCUMENTS} would have to be read",
            )
        return parse(self._read(entry), entry.media_type)
