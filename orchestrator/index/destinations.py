"""Destinations of images: content is written first, without a name, then the names.

In a registry everything is pushed by digest, and tags are set last. A layout is extended, and an archive replaced,
atomically.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from typing import BinaryIO, Final, cast

import msgspec

from executor.image import mediatypes
from executor.image.manifest import Descriptor, Index, Manifest, encode
from executor.registry import layout, oci_archive
from executor.registry.client import Client
from executor.registry.layout import REF_NAME, BlobSource
from executor.registry.reference import Reference
from executor.registry.referrers import REFERRERS, fallback_tag
from orchestrator.index.image_sources import Document, ImageSource, LayoutSource
from orchestrator.index.manifest_graph import Blob, ImageContents, SourcedDocument
from orchestrator.index.names import LayoutName
from orchestrator.index.parallel import run_all
from platforms import decoding
from platforms.errors import Interrupted, KanifoldError, RegistryError

LIST_TRIES: Final = 8
"""Maximum number of attempts to write a list of referrers that others write too."""
_EMPTY_LIST: Final = encode(Index(mediatypes.OCI_INDEX, ()))
UPLOADS: Final = 4
"""Number of blobs that are pushed to one repository concurrently."""


class CompleteImage(msgspec.Struct, frozen=True):
    """The complete content of an image."""

    root: Document
    contents: ImageContents
    annotations: tuple[tuple[str, str], ...] = ()
    """Annotations of the descriptor that points to the root, in a layout's ``index.json``."""


class Pushed(msgspec.Struct, frozen=True):
    """The numbers of blobs that were present, mounted and sent, and the bytes sent."""

    present: int = 0
    mounted: int = 0
    sent: int = 0
    size: int = 0


# -- registries


class PushDestination(msgspec.Struct, frozen=True):
    """Pushes content to one repository."""

    client: Client
    repository: Reference
    stop: threading.Event
    """Set to end transfers: another part of the command has failed."""
    near: tuple[str, ...] = ()
    """Repositories of the same registry that already have all content, from which blobs can be mounted."""


def push(destination: PushDestination, complete: CompleteImage) -> Pushed:
    """Push all content of ``complete`` by digest; the only tags that are set are those that list referrers.

    Content whose source is this repository, not a mirror, is not sent. Raises ``RegistryError``, and the errors of
    reading the sources.
    """
    client, repository = destination.client, destination.repository
    own = None if client.has_mirrors(repository) else repository
    blobs = [each for each in complete.contents.blobs if own is None or each.source.repository != own]
    root = complete.root.descriptor.digest
    documents = [
        each
        for each in complete.contents.documents
        if (own is None or each.source.repository != own) and each.document.descriptor.digest != root
    ]
    referrers = [each for each in complete.contents.referrers if own is None or each.source.repository != own]
    manifests = [each.document for each in documents if isinstance(each.document.content, Manifest)]
    outcomes = run_all(partial(_push_blob, destination), blobs, UPLOADS, destination.stop)
    run_all(partial(_put, client, repository), manifests, UPLOADS, destination.stop)
    for part in documents:
        if isinstance(part.document.content, Index):
            _put(client, repository, part.document)
    _put(client, repository, complete.root)
    for part in referrers:
        _put(client, repository, part.document)
    _list_referrers(client, repository, referrers)
    sent = [blob.descriptor.size for blob, outcome in zip(blobs, outcomes, strict=True) if outcome == "uploaded"]
    return Pushed(outcomes.count("present"), outcomes.count("mounted"), len(sent), sum(sent))


def _push_blob(destination: PushDestination, blob: Blob) -> str:
    descriptor = Descriptor(blob.descriptor.media_type, blob.descriptor.digest, blob.descriptor.size)
    source = blob.source.repository
    own = (source.repository,) if source is not None and source.registry == destination.repository.registry else ()
    with blob.source.blob_opener(descriptor) as opener:
        return destination.client.push(destination.repository, descriptor, opener, mount_from=(*own, *destination.near))


def _put(client: Client, repository: Reference, document: Document) -> None:
    target = repository.with_digest(document.descriptor.digest)
    client.put_manifest(target, document.data, document.descriptor.media_type)


def _list_referrers(client: Client, repository: Reference, referrers: Sequence[SourcedDocument]) -> None:
    """If the registry has no API for referrers, add ``referrers`` to the indexes that list them."""
    by_subject: dict[str, dict[str, Descriptor]] = {}
    for each in referrers:
        by_subject.setdefault(each.document.subject, {})[each.document.descriptor.digest] = listing(each.document)
    for subject, found in by_subject.items():
        if client.referrers(repository.with_digest(subject)) is not None:
            return
        _add_to_list(client, repository.with_tag(fallback_tag(subject)), found)


def _add_to_list(client: Client, tag: Reference, found: Mapping[str, Descriptor]) -> None:
    """Add ``found`` to the index ``tag`` (distribution-spec, "Referrers Tag Schema").

    Others who add to it at the same time may replace what is written here, as no registry writes on a condition. It is
    read again until it lists all; where it is what it was before, the registry shows what is written only later.
    """
    before: bytes | None = None
    for _ in range(LIST_TRIES):
        there = client.find(tag)
        if there is not None and not isinstance(there[0], Index):
            raise RegistryError(f"cannot push {tag.familiar()}", why="there is an image where referrers are listed")
        data = there[1] if there is not None else _EMPTY_LIST
        known = {each.digest for each in there[0].manifests} if there and isinstance(there[0], Index) else set()
        if found.keys() <= known or data == before:
            return
        if len(found.keys() | known) > REFERRERS:
            raise RegistryError(f"cannot push {tag.familiar()}", why=f"it would list more than {REFERRERS} referrers")
        document = decoding.from_json(data)
        fresh = Index(mediatypes.OCI_INDEX, tuple(each for digest, each in found.items() if digest not in known))
        document["manifests"] += decoding.from_json(encode(fresh))["manifests"]
        media_type = there[2].media_type if there is not None else mediatypes.OCI_INDEX
        client.put_manifest(tag, msgspec.json.encode(document), media_type)
        before = data
    raise RegistryError(
        f"cannot push {tag.familiar()}", why="others change it all the time", remedy="run this again a moment later"
    )


def listing(document: Document) -> Descriptor:
    """Return the descriptor of ``document`` for a list of referrers (distribution-spec, "Listing Referrers")."""
    plain = document.descriptor
    return Descriptor(
        plain.media_type,
        plain.digest,
        plain.size,
        annotations=document.content.annotations,
        artifact_type=document.artifact_type,
    )


def standing(client: Client, tag: Reference) -> str:
    """Return the current digest of ``tag`` in its registry; "" if there is no such tag."""
    found = client.has_manifest(tag)
    return found.digest if found is not None else ""


def move(client: Client, tag: Reference, root: Document) -> None:
    """Set ``tag`` to ``root``, which is in the repository already."""
    client.put_manifest(tag, root.data, root.descriptor.media_type)


# -- layouts and archives


def write(name: LayoutName, complete: CompleteImage, cancelled: threading.Event) -> None:
    """Write ``complete`` to the layout or archive ``name``. Raises ``StoreError``; earlier content is then intact."""
    own = complete.root.descriptor
    named = ((REF_NAME, name.tag),) if name.tag else ()
    root = Descriptor(own.media_type, own.digest, own.size, annotations=(*complete.annotations, *named))
    # A name that a referrer's own annotations have would take the place of the image of that name.
    roots = [root, *(layout.nameless(listing(each.document)) for each in complete.contents.referrers)]
    sources = _blob_sources(complete, cancelled)
    if name.archive:
        with oci_archive.archive_file(name.path) as file:
            oci_archive.write_archive(file, roots, sources)
    else:
        layout.write_layout(name.path, roots, sources)


def standing_in(name: LayoutName) -> str:
    """Return the digest of the image ``name`` in a layout; "" if there is no such layout or name."""
    try:
        found = oci_archive.read_archive(name.path) if name.archive else layout.read_layout(name.path)
    except KanifoldError:
        if os.path.lexists(name.path) and not (os.path.isdir(name.path) and layout.is_unfinished(name.path)):
            raise
        return ""
    wanted = name.tag
    roots = [each for each in found.roots if dict(each.annotations).get(REF_NAME, "") == wanted]
    return roots[0].digest if roots else ""


def _blob_sources(complete: CompleteImage, cancelled: threading.Event) -> list[BlobSource]:
    """Yield every blob and document of ``complete`` once, the root last."""
    found: dict[str, BlobSource] = {}
    check = partial(_check, cancelled)
    for blob in complete.contents.blobs:
        found[blob.descriptor.digest] = BlobSource(
            blob.descriptor.digest, blob.descriptor.size, partial(_opened, blob, cancelled), check
        )
    documents = [each.document for each in (*complete.contents.documents, *complete.contents.referrers)]
    for document in (*documents, complete.root):
        found[document.descriptor.digest] = BlobSource(
            document.descriptor.digest, len(document.data), partial(io.BytesIO, document.data), check
        )
    return list(found.values())


def _opened(blob: Blob, cancelled: threading.Event) -> BinaryIO:
    if isinstance(blob.source, LayoutSource):
        return blob.source.open(blob.descriptor)
    return cast(BinaryIO, _Streamed(blob.source, blob.descriptor, cancelled))


def _check(cancelled: threading.Event) -> None:
    if cancelled.is_set():
        raise Interrupted("the copy was cancelled")


class _Streamed(io.RawIOBase):
    """A file object for a blob that is downloaded while it is read."""

    def __init__(self, source: ImageSource, descriptor: Descriptor, cancelled: threading.Event) -> None:
        self._chunks = source.stream(descriptor)
        self._cancelled = cancelled
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most ``size``; b"" at the end, after the digest was verified."""
        _check(self._cancelled)
        if not self._rest:
            self._rest = next(self._chunks, b"")
        end = len(self._rest) if size < 0 else size
        data, self._rest = self._rest[:end], self._rest[end:]
        return data

    def close(self) -> None:
        """Release the connection, if there is one."""
        if isinstance(self._chunks, Generator):
            self._chunks.close()
        super().close()
