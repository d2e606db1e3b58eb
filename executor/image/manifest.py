"""Descriptors, manifests and indexes: strict parsing and canonical encoding.

Documents from registries are untrusted: one that could be read as two kinds (``manifests`` beside ``layers``), that has
duplicate keys, or whose own ``mediaType`` contradicts that of the response is rejected (CVE-2021-41190).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from executor.image import mediatypes
from executor.image.digest import check_digest, sha256
from platforms import decoding
from platforms.errors import ArchiveError

MANIFEST_LIMIT: Final = 4 << 20
"""Maximum size of a manifest in bytes: the size that registries have to accept (distribution-spec)."""
_KEYS: Final = frozenset(
    {"schemaVersion", "mediaType", "config", "layers", "manifests", "annotations", "artifactType", "subject"}
)
_DESCRIPTOR_KEYS: Final = frozenset(
    {"mediaType", "digest", "size", "platform", "annotations", "artifactType", "urls", "data"}
)
_PLATFORM_KEYS: Final = frozenset({"architecture", "os", "variant", "os.version", "os.features"})


class PlatformSpec(msgspec.Struct, frozen=True):
    """The ``platform`` object of a descriptor (image-spec image-index.md)."""

    architecture: str
    os: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()


class Descriptor(msgspec.Struct, frozen=True):
    """A descriptor (image-spec descriptor.md). ``size`` in bytes."""

    media_type: str
    digest: str
    size: decoding.Int64
    platform: PlatformSpec | None = None
    annotations: tuple[tuple[str, str], ...] = ()
    artifact_type: str = ""


class Manifest(msgspec.Struct, frozen=True):
    """An image manifest: the descriptors of a config and of layers, bottom first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: tuple[tuple[str, str], ...] = ()


class Index(msgspec.Struct, frozen=True):
    """An image index: the descriptors of manifests by platform."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: tuple[tuple[str, str], ...] = ()


def parse(data: bytes, media_type: str = "") -> Manifest | Index:
    """Parse a manifest or index; ``media_type`` is that of the response ("" if there was none).

    Raises ``ArchiveError`` for anything ambiguous, malformed or of another kind (schema 1, the type of an artefact).
    """
    document = _strict_object(data)
    if "manifests" in document and ("layers" in document or "config" in document):
        raise ArchiveError("ambiguous manifest", why="it holds both 'manifests' and 'layers'")
    said = document.get("mediaType", "")
    if not isinstance(said, str):
        raise ArchiveError("malformed manifest", why="'mediaType' is not a string")
    if said and media_type and said != media_type:
        raise ArchiveError("ambiguous manifest", why=f"served as {media_type}, but calls itself {said}")
    if document.get("schemaVersion") != 2:
        raise ArchiveError("unsupported manifest", why=f"schemaVersion is {document.get('schemaVersion')!r}, not 2")
    kind = said or media_type
    is_index = "manifests" in document
    if not kind:
        kind = mediatypes.OCI_INDEX if is_index else mediatypes.OCI_MANIFEST
    if kind not in (mediatypes.INDEXES if is_index else mediatypes.MANIFESTS):
        raise ArchiveError("unsupported manifest", why=f"its media type is {kind}")
    annotations = _strings(document.get("annotations"))
    if is_index:
        return Index(kind, _descriptors(document["manifests"]), annotations)
    return Manifest(kind, _descriptor(document.get("config")), _descriptors(document.get("layers")), annotations)


def encode(document: Manifest | Index) -> bytes:
    """Return ``document`` as canonical JSON: the bytes that its digest is computed of."""
    out: dict[str, Any] = {"schemaVersion": 2, "mediaType": document.media_type}
    if isinstance(document, Index):
        out["manifests"] = [_plain(each) for each in document.manifests]
    else:
        out["config"] = _plain(document.config)
        out["layers"] = [_plain(each) for each in document.layers]
    if document.annotations:
        out["annotations"] = dict(sorted(document.annotations))
    return msgspec.json.encode(out)


def describe(document: Manifest | Index, platform: PlatformSpec | None = None) -> tuple[Descriptor, bytes]:
    """Return the descriptor of ``document``, and its encoding."""
    data = encode(document)
    return Descriptor(document.media_type, sha256(data), len(data), platform), data


def _strict_object(data: bytes) -> dict[str, Any]:

    if len(data) > MANIFEST_LIMIT:
        raise ArchiveError("manifest too large", why=f"{len(data)} bytes; the limit is {MANIFEST_LIMIT}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = {key.casefold() for key, _ in pairs}
        if len(seen) != len(pairs):
            raise ArchiveError("ambiguous manifest", why="a key is there twice")
        return dict(pairs)

    try:
        document = decoding.from_json(data, pairs=unique)
    except msgspec.DecodeError as error:
        raise ArchiveError("malformed manifest", why=str(error)) from error
    if not isinstance(document, dict):
        raise ArchiveError("malformed manifest", why="not a JSON object")
    _check_keys(document, _KEYS)
    return document


def _check_keys(document: dict[str, Any], known: frozenset[str]) -> None:
    """Reject a key that is one of ``known`` in other letters: Go's decoder, which ignores case, would know it."""
    if document.keys() <= known:
        return
    folded = {each.casefold() for each in known}
    for key in document:
        if key not in known and key.casefold() in folded:
            raise ArchiveError("ambiguous manifest", why=f"the key {key[:100]!r} is a known one in other letters")


def _descriptors(value: Any) -> tuple[Descriptor, ...]:
    if not isinstance(value, list):
        raise ArchiveError("malformed manifest", why="a list of descriptors is missing")
    return tuple(_descriptor(each) for each in value)


def _descriptor(value: Any) -> Descriptor:
    if not isinstance(value, dict):
        raise ArchiveError("malformed manifest", why="a descriptor is missing")
    _check_keys(value, _DESCRIPTOR_KEYS)
    media_type, size = value.get("mediaType"), value.get("size")
    if not isinstance(media_type, str) or not media_type:
        raise ArchiveError("malformed manifest", why="a descriptor has no mediaType")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63:
        raise ArchiveError("malformed manifest", why=f"a descriptor's size is {size!r}")
    artifact_type = value.get("artifactType", "")
    return Descriptor(
        media_type,
        check_digest(value.get("digest")),
        size,
        _platform(value.get("platform")),
        _strings(value.get("annotations")),
        artifact_type if isinstance(artifact_type, str) else "",
    )


def _platform(value: Any) -> PlatformSpec | None:
    if not isinstance(value, dict):
        return None
    _check_keys(value, _PLATFORM_KEYS)

    def text(key: str) -> str:
        found = value.get(key, "")
        return found if isinstance(found, str) else ""

    features = value.get("os.features")
    return PlatformSpec(
        text("architecture"),
        text("os"),
        text("variant"),
        text("os.version"),
        tuple(each for each in features if isinstance(each, str)) if isinstance(features, list) else (),
    )


def _strings(value: Any) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise ArchiveError("malformed manifest", why="'annotations' is not an object of strings")
    return tuple(sorted(value.items()))


def _plain(descriptor: Descriptor) -> dict[str, Any]:
    out: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if descriptor.annotations:
        out["annotations"] = dict(sorted(descriptor.annotations))
    platform = descriptor.platform
    if platform is not None:
        spec: dict[str, Any] = {"architecture": platform.architecture, "os": platform.os}
        if platform.variant:
            spec["variant"] = platform.variant
        if platform.os_version:
            spec["os.version"] = platform.os_version
        if platform.os_features:
            spec["os.features"] = list(platform.os_features)
        out["platform"] = spec
    if descriptor.artifact_type:
        out["artifactType"] = descriptor.artifact_type
    return out
