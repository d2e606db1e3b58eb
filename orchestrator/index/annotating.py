"""Annotations (``--annotation``) of an index, of the descriptors in it, and of the descriptor that points to it.

Annotations of manifests (``manifest:``) are refused: they would change the digests of the manifests, to which
signatures and attestations refer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from executor.registry.layout import REF_NAME
from orchestrator.index.entries import IndexEntry
from orchestrator.request import Annotation
from orchestrator.values import parse_annotations
from platforms.errors import UsageError

Pairs = tuple[tuple[str, str], ...]


def parse(texts: Iterable[str], default: str = "index") -> tuple[Annotation, ...]:
    """Parse ``[LEVEL[PLATFORM],…:]KEY=VALUE``; without a level, ``default`` is used. Raises ``UsageError``."""
    found = parse_annotations(texts, "--annotation", default)
    for each in found:
        if each.level == "manifest":
            raise UsageError(
                f"--annotation {each.key}: a manifest that exists cannot be annotated",
                why="it would be another manifest, with another digest, and lose its attestations and signatures",
                remedy="annotate its descriptor (manifest-descriptor:), or the image when it is built",
            )
        if each.level == "index-descriptor" and each.key == REF_NAME:
            raise UsageError(
                f"--annotation {each.key} is the name of an image in a layout", remedy="give it with the image: DIR:TAG"
            )
        if each.platform and each.level != "manifest-descriptor":
            raise UsageError(f"--annotation {each.key}: an {each.level} is for no platform")
    return found


def of_level(annotations: Iterable[Annotation], level: str) -> Pairs:
    """Return the keys and values for ``level``."""
    return tuple((each.key, each.value) for each in annotations if each.level == level)


def together(*annotations: Pairs) -> Pairs:
    """Return ``annotations`` merged; the last of one key is used."""
    found: dict[str, str] = {}
    for each in annotations:
        found |= dict(each)
    return tuple(sorted(found.items()))


def described(entries: Sequence[IndexEntry], annotations: Iterable[Annotation]) -> tuple[IndexEntry, ...]:
    """Return ``entries`` with the annotations for their descriptors; attestations are unchanged.

    Raises ``UsageError`` for a platform that no entry is for.
    """
    wanted = [each for each in annotations if each.level == "manifest-descriptor"]
    there = {str(each.platform) for each in entries if each.platform}
    for each in wanted:
        if each.platform and each.platform not in there:
            raise UsageError(
                f"the annotation {each.key!r} is for {each.platform}, which is not there",
                why=f"there are {', '.join(sorted(there))}" if there else "no manifest says its platform",
            )
    return tuple(entry if entry.subject else _annotated(entry, wanted) for entry in entries)


def _annotated(entry: IndexEntry, annotations: Iterable[Annotation]) -> IndexEntry:
    """Return ``entry`` with the annotations for all entries, overridden by those for its platform."""
    meant = [
        tuple((each.key, each.value) for each in annotations if each.platform == platform)
        for platform in ("", str(entry.platform))
    ]
    pairs = together(entry.descriptor.annotations, *meant)
    return replace(entry, descriptor=replace(entry.descriptor, annotations=pairs)) if any(meant) else entry
