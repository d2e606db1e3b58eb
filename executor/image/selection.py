"""The manifest of an image for a platform, out of an index or of indexes within it.

An index may list further indexes (image-spec, image-index.md), with a platform or without. As in containerd
(core/images, ``Manifest``), an entry that says a platform which fits comes first; where none does, entries without a
platform are opened: an index for what it lists, a manifest for what its config says.
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
"""Indexes that may lie within one another."""
DOCUMENTS: Final = 64
"""Documents that are read to find one manifest: an index costs its author a line for each that it makes us read."""

_CONFIGS: Final = frozenset({mediatypes.OCI_CONFIG, mediatypes.DOCKER_CONFIG})

Read = Callable[[Descriptor], bytes]
"""The bytes of a manifest, an index or an image's config, verified."""


def find(name: str, index: Index, platform: Platform, read: Read) -> tuple[Descriptor, Manifest]:
    """The manifest of the image ``name``, whose root is ``index``, that is best for ``platform``.

    Raises ``PlatformMissing``, which lists what there is, and ``ArchiveError`` for indexes that are nested without end.
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
    """A descriptor's platform as ours."""
    return Platform(spec.os, spec.architecture, spec.variant, spec.os_version, spec.os_features)


class _Search:
    """One search, with what it has met."""

    def __init__(self, name: str, platform: Platform, read: Read) -> None:
        self._name = name
        self._platform = platform
        self._read = read
        self._opened: set[str] = set()
        self._read_so_far = 0
        self.seen: list[Platform] = []

    def within(self, index: Index, depth: int) -> tuple[Descriptor, Manifest] | None:
        """The best manifest of ``index``, which lies ``depth`` deep; None when it has none that fits."""
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
        """What ``entry``, which does not say its platform, comes to: manifests (and indexes) with a platform."""
        document = self._open(entry, depth)
        if document is None:
            return []
        if isinstance(document, Manifest):
            if document.config.media_type not in _CONFIGS:
                return []
            self._opened.discard(entry.digest)  # for when it is chosen
            return [(image.parse(self._read(document.config)).platform, entry)]
        found: list[tuple[Platform, Descriptor]] = []
        for each in document.manifests:
            if each.platform is None and each.media_type in mediatypes.MANIFESTS | mediatypes.INDEXES:
                found += self._listed(each, depth + 1)
            elif each.platform is not None and each.platform.os != "unknown":
                found.append((platform_of(each.platform), each))
        return found

    def _open(self, entry: Descriptor, depth: int) -> Manifest | Index | None:
        """The document of ``entry``, found in an index that lies ``depth`` deep; None when it was opened before."""
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
