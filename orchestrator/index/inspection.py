"""``kanifold index inspect``: the content of an image as a table, or as a JSON document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from executor.image import config as image
from executor.image import manifest as documents
from executor.image.manifest import Descriptor, Index, Manifest
from executor.image.selection import platform_of
from orchestrator.index import entries, manifest_graph
from orchestrator.index.entries import IndexEntry
from orchestrator.index.image_sources import Document, ImageSource
from orchestrator.index.manifest_graph import ImageContents, SourcedDocument
from orchestrator.view.units import size as shown
from platforms import decoding
from platforms.errors import ArchiveError, RegistryError
from platforms.platform import Platform

SCHEMA: Final = 1
"""Version of the JSON document: raised when a key is removed or changes its meaning."""
STATEMENT_LIMIT: Final = 64 << 20
"""Maximum size of an attestation's statement in bytes: an SBOM may be long."""
PREDICATE_TYPE: Final = "in-toto.io/predicate-type"
_IN_TOTO: Final = "application/vnd.in-toto+json"
_KINDS: Final = (
    ("https://slsa.dev/provenance/", "provenance"),
    ("https://spdx.dev/", "sbom"),
    ("https://cyclonedx.org/", "sbom"),
)


class Attestation(msgspec.Struct, frozen=True):
    """An attestation manifest, and the predicates of its statements."""

    digest: str
    statements: tuple[Descriptor, ...]

    @property
    def predicates(self) -> tuple[str, ...]:
        """The types of predicates, each once."""
        found = (dict(each.annotations).get(PREDICATE_TYPE, each.media_type) for each in self.statements)
        return tuple(dict.fromkeys(found))


class Listed(msgspec.Struct, frozen=True):
    """An entry of an index, or the only manifest, with its content."""

    descriptor: Descriptor
    platform: Platform | None
    document: Document
    attestations: tuple[Attestation, ...] = ()

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        """The layers of a manifest; none of an index."""
        content = self.document.content
        return content.layers if isinstance(content, Manifest) else ()

    @property
    def size(self) -> int:
        """Compressed size in bytes of all content of it."""
        content = self.document.content
        config = content.config.size if isinstance(content, Manifest) else 0
        return self.descriptor.size + config + sum({each.digest: each.size for each in self.layers}.values())


class Inspection(msgspec.Struct, frozen=True):
    """An inspected image."""

    name: str
    root: Document
    source: ImageSource
    listed: tuple[Listed, ...]
    """In the order of the index; attestations are with their manifests."""
    referrers: tuple[SourcedDocument, ...]
    missing: tuple[IndexEntry, ...] = ()
    """Entries of the index whose manifest is not there: of a sparse index."""

    @property
    def platforms(self) -> tuple[Platform | None, ...]:
        """The platform of each entry, attestations aside; of those that are missing, too."""
        return (*(each.platform for each in self.listed), *(each.platform for each in self.missing))

    def configs(self) -> dict[str, Any]:
        """Return the configs of the images by platform, as in the registry."""
        return {str(each.platform): self._config(each) for each in self.listed if each.platform is not None}

    def statements(self, kind: str) -> dict[str, list[Any]]:
        """Return the predicates of the attestations of a ``kind`` (``provenance`` or ``sbom``) by platform."""
        found: dict[str, list[Any]] = {}
        for each in self.listed:
            wanted = [
                statement
                for attestation in each.attestations
                for statement in attestation.statements
                if _kind(dict(statement.annotations).get(PREDICATE_TYPE, "")) == kind
            ]
            if wanted:
                found[str(each.platform)] = [self._predicate(statement) for statement in wanted]
        return found

    def _config(self, listed: Listed) -> Any:
        content = listed.document.content
        if not isinstance(content, Manifest):
            return None
        return _json(self.source.read(content.config, image.CONFIG_LIMIT), content.config.digest)

    def _predicate(self, statement: Descriptor) -> Any:
        if statement.media_type != _IN_TOTO:
            raise ArchiveError(
                f"the attestation {statement.digest} cannot be read", why=f"its media type is {statement.media_type}"
            )
        document = _json(self.source.read(statement, STATEMENT_LIMIT), statement.digest)
        return document.get("predicate") if isinstance(document, dict) else None


def inspect(name: str, source: ImageSource, *, referrers: bool = True) -> Inspection:
    """Inspect the image of ``source``. All manifests are read, no layers.

    Manifests that an index lists and that are not there are listed as missing: copies of some platforms are made so
    (``skopeo copy --multi-arch index-only`` and the sparse indexes of containers/image), and some registries take them.
    """
    root = source.root()
    try:
        contents = manifest_graph.collect(SourcedDocument(root, source), {}, referrers=referrers, nondistributable=True)
    except (ArchiveError, RegistryError):
        there, missing = _divided(root, source)
        if not missing:
            raise
        contents = manifest_graph.collect(
            SourcedDocument(there, source), {}, referrers=referrers, nondistributable=True
        )
        return Inspection(name, root, source, tuple(_listed(there, contents, source)), contents.referrers, missing)
    return Inspection(name, root, source, tuple(_listed(root, contents, source)), contents.referrers)


def _divided(root: Document, source: ImageSource) -> tuple[Document, tuple[IndexEntry, ...]]:
    """Return the index ``root`` with those entries alone whose manifest ``source`` has, and the other entries."""
    if not isinstance(root.content, Index):
        return root, ()
    manifest_graph.GraphLimits(source.name).announce(len(root.content.manifests))
    with ThreadPoolExecutor(manifest_graph.AT_ONCE, "missing") as pool:
        found = list(pool.map(source.has, root.content.manifests))
    listed = entries.entries_of(root.content, root.data)
    missing = tuple(each for each, there in zip(listed, found, strict=True) if not there)
    kept = [each.descriptor for each, there in zip(listed, found, strict=True) if there]
    content = replace(root.content, manifests=tuple(kept))
    return Document(root.descriptor, documents.encode(content), content), missing


def _listed(root: Document, contents: ImageContents, source: ImageSource) -> Iterator[Listed]:
    known = {each.document.descriptor.digest: each.document for each in (*contents.documents, *contents.referrers)}
    if isinstance(root.content, Manifest):
        platform = _stated(root.content, source)
        attestations = _attached(root.descriptor.digest, (), contents.referrers, known)
        yield Listed(root.descriptor, platform, root, attestations)
        return
    own = entries.entries_of(root.content, root.data)
    images = {each.descriptor.digest for each in own if not each.subject}
    for each in own:
        digest = each.descriptor.digest
        if each.subject in images and _statements(known[digest]):
            continue
        attestations = _attached(digest, own, contents.referrers, known)
        yield Listed(each.descriptor, each.platform, known[digest], attestations)


def _stated(manifest: Manifest, source: ImageSource) -> Platform | None:
    if manifest.config.media_type not in manifest_graph.CONFIGS:
        return None
    return image.parse(source.read(manifest.config, image.CONFIG_LIMIT)).platform


def _attached(
    digest: str, own: Iterable[IndexEntry], referrers: Iterable[SourcedDocument], known: Mapping[str, Document]
) -> tuple[Attestation, ...]:
    """Return the attestations of ``digest``: entries of the index, as BuildKit stores them, or referrers."""
    found = [each.descriptor.digest for each in own if each.subject == digest]
    found += [each.document.descriptor.digest for each in referrers if each.document.subject == digest]
    attestations = []
    for each in dict.fromkeys(found):
        statements = _statements(known[each])
        if statements:
            attestations.append(Attestation(each, statements))
    return tuple(attestations)


def _statements(document: Document) -> tuple[Descriptor, ...]:
    """Return the statements in an attestation manifest; () for any other."""
    layers = document.content.layers if isinstance(document.content, Manifest) else ()
    return tuple(layer for layer in layers if layer.media_type.startswith("application/vnd.in-toto"))


def _kind(predicate: str) -> str:
    return next((kind for beginning, kind in _KINDS if predicate.startswith(beginning)), "")


def _json(data: bytes, digest: str) -> Any:
    try:
        return decoding.from_json(data)
    except msgspec.DecodeError as error:
        raise ArchiveError(f"{digest} cannot be read", why=str(error)) from error


# -- for people


def table(found: Inspection, *, layers: bool = False) -> list[str]:
    """Return the table of the image: its name, and a line for each platform with size, layers and digest.

    With ``layers``, also a line for each layer.
    """
    descriptor = found.root.descriptor
    lines = [f"Name:       {found.name}", f"MediaType:  {descriptor.media_type}", f"Digest:     {descriptor.digest}"]
    lines += _annotations(found.root.content.annotations, "")
    rows = [("PLATFORM", "SIZE", "LAYERS", "DIGEST")]
    rows += [(_title(each), shown(each.size), str(len(each.layers)), each.descriptor.digest) for each in found.listed]
    rows += [(_title_of_missing(each), "-", "missing", each.descriptor.digest) for each in found.missing]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    texts = [f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}" for row in rows]
    lines += ["", texts[0]]
    for each, text in zip(found.listed, texts[1:], strict=False):
        lines.append(text)
        lines += [f"  {shown(layer.size):>10}  {layer.digest}  {layer.media_type}" for layer in each.layers if layers]
        lines += _annotations(each.descriptor.annotations, "  ")
        lines += [f"  attestation: {_said(predicate)}" for one in each.attestations for predicate in one.predicates]
    lines += texts[1 + len(found.listed) :]
    own = {one.digest for each in found.listed for one in each.attestations}
    others = [each.document for each in found.referrers if each.document.descriptor.digest not in own]
    if others:
        lines += ["", "Referrers:"]
    lines += [f"  {each.descriptor.digest}  {each.artifact_type}  of {each.subject}" for each in others]
    return lines


def _title(listed: Listed) -> str:
    if listed.platform is not None:
        return str(listed.platform)
    if isinstance(listed.document.content, Index):
        return f"index of {len(listed.document.content.manifests)}"
    return "attestation" if dict(listed.descriptor.annotations).get(entries.REFERENCE_TYPE) else "no platform"


def _title_of_missing(entry: IndexEntry) -> str:
    return str(entry.platform or ("attestation" if entry.subject else "no platform"))


def _annotations(pairs: Iterable[tuple[str, str]], indent: str) -> list[str]:
    return [f"{indent}annotation: {key}={value}" for key, value in pairs]


def _said(predicate: str) -> str:
    kind = _kind(predicate)
    return f"{kind} ({predicate})" if kind else predicate


# -- for programs


def document(found: Inspection) -> dict[str, Any]:
    """Return the document of ``--format json`` (docs/indexes.md)."""
    return {
        "schemaVersion": SCHEMA,
        "name": found.name,
        **plain(found.root.descriptor),
        "annotations": dict(found.root.content.annotations),
        "manifests": [_entry(each) for each in found.listed],
        "missing": [
            {**plain(each.descriptor), "platform": str(each.platform) if each.platform is not None else None}
            for each in found.missing
        ],
        "referrers": [
            {
                **plain(each.document.descriptor),
                "artifactType": each.document.artifact_type,
                "subject": each.document.subject,
                "annotations": dict(each.document.content.annotations),
            }
            for each in found.referrers
        ],
    }


def plain(descriptor: Descriptor) -> dict[str, Any]:
    """Return the three fields that every descriptor has."""
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


def _entry(listed: Listed) -> dict[str, Any]:
    content = listed.document.content
    found: dict[str, Any] = {
        **plain(listed.descriptor),
        "platform": str(listed.platform) if listed.platform is not None else None,
        "totalSize": listed.size,
        "annotations": dict(listed.descriptor.annotations),
        "attestations": [
            {
                "digest": each.digest,
                "statements": [
                    {**plain(layer), "predicateType": dict(layer.annotations).get(PREDICATE_TYPE, "")}
                    for layer in each.statements
                ],
            }
            for each in listed.attestations
        ],
    }
    if isinstance(content, Manifest):
        found["config"] = plain(content.config)
        found["layers"] = [{**plain(each), "annotations": dict(each.annotations)} for each in content.layers]
    else:
        found["manifests"] = [
            {**plain(each), "platform": str(platform_of(each.platform)) if each.platform else None}
            for each in content.manifests
        ]
    return found
