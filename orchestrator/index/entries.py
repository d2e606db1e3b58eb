"""Joins manifests and indexes into one index. Works on data only, without requests to registries.

Indexes are flattened by one level; an index within an index remains one entry. An entry of several sources is listed
once. Two manifests for one platform are refused unless an option selects one. An attestation is kept or removed with
the manifest that it refers to (BuildKit's attestation-storage.md).

An index with only Docker manifests and no annotations is a Docker manifest list; others are OCI indexes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, Final, Literal

import msgspec
from msgspec.structs import replace

from executor.image import mediatypes
from executor.image.digest import sha256
from executor.image.manifest import Descriptor, Index, PlatformSpec, encode
from executor.image.selection import platform_of
from platforms import decoding
from platforms.errors import PlatformMissing, UsageError
from platforms.platform import Platform, normalise, satisfies

REFERENCE_DIGEST: Final = "vnd.docker.reference.digest"
REFERENCE_TYPE: Final = "vnd.docker.reference.type"
ATTESTATION: Final = "attestation-manifest"

_KNOWN: Final = frozenset({"mediaType", "digest", "size", "platform", "annotations", "artifactType"})

Duplicate = Literal["refuse", "first", "last", "all"]
"""Which of two manifests for one platform is kept."""


class IndexEntry(msgspec.Struct, frozen=True):
    """An entry of an index: its descriptor, and the fields that are passed on unread (``urls``, ``data``)."""

    descriptor: Descriptor
    rest: Mapping[str, Any] = {}
    source: str = ""
    """The name of its source as the user wrote it."""

    @property
    def platform(self) -> Platform | None:
        """The platform of an image; None for an attestation, or any other entry without one."""
        spec = self.descriptor.platform
        if spec is None or spec.os == "unknown" or not (spec.os or spec.architecture):
            return None
        return normalise(platform_of(spec))

    @property
    def subject(self) -> str:
        """The digest of the manifest that this attestation refers to; "" if it is no attestation.

        Attestations have no platform, or ``unknown/unknown``. What has one is an image, whatever its annotations say.
        """
        spec = self.descriptor.platform
        if spec is not None and spec.os != "unknown" and (spec.os or spec.architecture):
            return ""
        annotations = dict(self.descriptor.annotations)
        return annotations.get(REFERENCE_DIGEST, "") if annotations.get(REFERENCE_TYPE) == ATTESTATION else ""


def entries_of(index: Index, data: bytes, source: str = "") -> tuple[IndexEntry, ...]:
    """Return the entries of ``index``, whose bytes are ``data``."""
    plain = decoding.from_json(data)["manifests"]
    return tuple(
        IndexEntry(descriptor, {key: value for key, value in each.items() if key not in _KNOWN}, source)
        for descriptor, each in zip(index.manifests, plain, strict=True)
    )


def spec_of(platform: Platform) -> PlatformSpec:
    """Return ``platform`` as in a descriptor."""
    return PlatformSpec(platform.architecture, platform.os, platform.variant, platform.os_version, platform.os_features)


def joined(entries: Iterable[IndexEntry], duplicate: Duplicate = "refuse") -> tuple[IndexEntry, ...]:
    """Return ``entries`` with each digest once and, unless ``duplicate`` is ``all``, each platform once.

    For one digest, the later platform is used, and annotations are merged, the later value of a key last. Entries of
    one index that list a manifest for several platforms are all kept. Raises ``UsageError``, which names the two
    manifests, for one platform.
    """
    found: list[IndexEntry] = []
    places: dict[tuple[str, Platform | None], int] = {}
    first: dict[str, int] = {}
    for each in entries:
        digest = each.descriptor.digest
        at = places.get((digest, each.platform))
        if at is None and digest in first and found[first[digest]].source != each.source:
            at = first[digest]
        if at is None:
            at = len(found)
            found.append(each)
            first.setdefault(digest, at)
        else:
            found[at] = _merged(found[at], each)
        places[digest, found[at].platform] = at
    if duplicate == "all":
        return tuple(found)
    by_platform: dict[Platform, int] = {}
    dropped: set[int] = set()
    for at, each in enumerate(found):
        platform = each.platform
        if platform is None:
            continue
        other = by_platform.setdefault(platform, at)
        if other == at:
            continue
        if duplicate == "refuse":
            raise _doubled(platform, found[other], each)
        dropped.add(at if duplicate == "first" else other)
        if duplicate == "last":
            by_platform[platform] = at
    return without(found, dropped)


def filtered(entries: Sequence[IndexEntry], platforms: Sequence[Platform]) -> tuple[IndexEntry, ...]:
    """Return the entries for ``platforms`` with their attestations, and the entries without a platform.

    Without ``platforms``, all entries. Raises ``PlatformMissing`` for a platform without an entry.
    """
    if not platforms:
        return tuple(entries)
    kept: set[int] = set()
    for wanted in platforms:
        fitting = for_platform(entries, wanted)
        if not fitting:
            there = ", ".join(dict.fromkeys(str(each.platform) for each in entries if each.platform))
            raise PlatformMissing(
                f"there is no manifest for {wanted}",
                why=f"there are {there}" if there else "no manifest says its platform",
                remedy="choose among those, or leave --platform out",
            )
        kept.update(fitting)
    return without(entries, {at for at, each in enumerate(entries) if each.platform} - kept)


def for_platform(entries: Sequence[IndexEntry], wanted: Platform) -> list[int]:
    """Return the indices of the entries that match ``wanted``.

    An entry without a variant matches only if no entry has that variant.
    """
    fitting = {at: each.platform for at, each in enumerate(entries) if each.platform}
    fitting = {at: platform for at, platform in fitting.items() if satisfies(wanted, platform)}
    variant = normalise(wanted).variant
    return [at for at, platform in fitting.items() if platform.variant == variant] or list(fitting)


def without(entries: Sequence[IndexEntry], gone: Set[int]) -> tuple[IndexEntry, ...]:
    """Return ``entries`` without the indices ``gone``, and without attestations whose manifest has no entry left."""
    left = [each for at, each in enumerate(entries) if at not in gone]
    digests = {entries[at].descriptor.digest for at in gone} - {each.descriptor.digest for each in left}
    return tuple(each for each in left if each.subject not in digests)


def ordered(entries: Sequence[IndexEntry], platforms: Sequence[Platform]) -> tuple[IndexEntry, ...]:
    """Return ``entries`` in the order of ``platforms``, as in a build: images, then their attestations."""
    last = len(platforms)
    places: dict[str, int] = {}
    for at, wanted in enumerate(platforms):
        for fitting in for_platform(entries, wanted):
            places.setdefault(entries[fitting].descriptor.digest, at)
    return tuple(sorted(entries, key=lambda each: (bool(each.subject), _place(each, places, last))))


def _place(entry: IndexEntry, places: Mapping[str, int], last: int) -> int:
    return places.get(entry.subject or entry.descriptor.digest, last)


def chosen(entries: Sequence[IndexEntry], words: Iterable[str], parse: Callable[[str], Platform]) -> frozenset[int]:
    """The places of the entries that ``words`` name: by digest, or by platform, which ``parse`` reads.

    Raises ``UsageError`` for a word that no entry answers to.
    """
    found: set[int] = set()
    for word in words:
        if ":" in word:
            digest = word.rpartition("@")[2]
            fitting = [at for at, each in enumerate(entries) if each.descriptor.digest == digest]
        else:
            fitting = for_platform(entries, parse(word))
        if not fitting:
            there = ", ".join(f"{each.platform or 'no platform'} {each.descriptor.digest}" for each in entries[:20])
            raise UsageError(f"the index has no entry {word!r}", why=f"it has {there}")
        found.update(fitting)
    return frozenset(found)


def encoded(
    entries: Sequence[IndexEntry],
    annotations: Sequence[tuple[str, str]] = (),
    media_type: str = "",
) -> tuple[Descriptor, bytes]:
    """Return the descriptor and the bytes of the index of ``entries``; ``media_type`` "" is derived from them.

    Raises ``UsageError`` for annotations in a Docker manifest list, which has no field for them, and for no entries.
    """
    if not entries:
        raise UsageError("an index has to list something", why="nothing is left of it")
    annotated = bool(annotations) or any(each.descriptor.annotations for each in entries)
    docker = all(each.descriptor.media_type in _DOCKER for each in entries) and not annotated
    kind = media_type or (mediatypes.DOCKER_INDEX if docker else mediatypes.OCI_INDEX)
    if kind == mediatypes.DOCKER_INDEX and annotations:
        raise UsageError(
            "Docker's manifest list has no place for annotations of an index",
            remedy="leave out what asks for Docker's media types",
        )
    data = encode(Index(kind, tuple(each.descriptor for each in entries), tuple(annotations)))
    if any(each.rest for each in entries):
        document = decoding.from_json(data)
        for line, each in zip(document["manifests"], entries, strict=True):
            line.update(each.rest)
        data = msgspec.json.encode(document)
    return Descriptor(kind, sha256(data), len(data)), data


_DOCKER: Final = frozenset({mediatypes.DOCKER_INDEX, mediatypes.DOCKER_MANIFEST})


def _merged(known: IndexEntry, again: IndexEntry) -> IndexEntry:
    descriptor = replace(
        known.descriptor,
        platform=again.descriptor.platform or known.descriptor.platform,
        annotations=tuple(sorted((dict(known.descriptor.annotations) | dict(again.descriptor.annotations)).items())),
    )
    return replace(known, descriptor=descriptor)


def _doubled(platform: Platform, one: IndexEntry, other: IndexEntry) -> UsageError:
    names = [f"{each.descriptor.digest}{f' of {each.source}' if each.source else ''}" for each in (one, other)]
    return UsageError(
        f"there are two manifests for {platform}",
        why=" and ".join(names),
        remedy="say which one counts: --duplicate first, last or all; or leave one out",
    )
