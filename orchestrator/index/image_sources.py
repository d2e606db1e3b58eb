"""Sources of images: registries and OCI layouts, with one interface. Content is verified before it is used.

A document is checked against the size, digest and media type of its descriptor, a blob against size and digest. Its
meaning is checked by the caller.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, Final, Protocol

import msgspec
from msgspec.structs import replace

from executor.image import mediatypes
from executor.image.digest import check_digest
from executor.image.manifest import MANIFEST_LIMIT, Descriptor, Index, Manifest, parse
from executor.registry.client import Client
from executor.registry.layout import REF_NAME, Layout, blob_path, read_layout
from executor.registry.oci_archive import read_archive
from executor.registry.reference import Reference
from executor.registry.referrers import fallback_tag
from orchestrator.index.names import ImageName, LayoutName, RegistryName
from platforms import decoding
from platforms.errors import ArchiveError, StoreError

DOCUMENT_TYPES: Final = mediatypes.INDEXES | mediatypes.MANIFESTS
"""Media types of what can be read as a document."""

Opener = Callable[[], BinaryIO]
"""Opens a blob as a seekable file; called again when a connection breaks."""


class Document(msgspec.Struct, frozen=True):
    """A manifest or an index, verified. ``descriptor`` has only media type, digest and size."""

    descriptor: Descriptor
    data: bytes
    content: Manifest | Index

    @property
    def subject(self) -> str:
        """The digest of the manifest that this one refers to (image-spec manifest.md, ``subject``); "" for none."""
        subject = decoding.from_json(self.data).get("subject")
        return str(subject.get("digest", "")) if isinstance(subject, dict) else ""

    @property
    def artifact_type(self) -> str:
        """The artifact type in a list of referrers: its ``artifactType``, else the media type of its config."""
        stated = decoding.from_json(self.data).get("artifactType")
        if isinstance(stated, str) and stated:
            return stated
        return self.content.config.media_type if isinstance(self.content, Manifest) else ""


class ImageSource(Protocol):
    """A repository, or a layout. Thread-safe."""

    @property
    def name(self) -> str:
        """Its name as the user wrote it."""
        ...

    @property
    def repository(self) -> Reference | None:
        """The repository; None for a layout."""
        ...

    def root(self) -> Document:
        """Return the image that was named."""
        ...

    def document(self, descriptor: Descriptor) -> Document:
        """Return the manifest or index of ``descriptor``."""
        ...

    def has(self, descriptor: Descriptor) -> bool:
        """Return whether there is a manifest or index with the digest of ``descriptor``, whatever is in it."""
        ...

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        """Return the whole blob of ``descriptor``, at most ``limit`` bytes."""
        ...

    def stream(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield the blob of ``descriptor`` in chunks; the digest is verified after the last."""
        ...

    def blob_opener(self, descriptor: Descriptor) -> AbstractContextManager[Opener]:
        """Yield an opener for the blob of ``descriptor``, which is read and verified when first opened."""
        ...

    def referrers(self, digest: str) -> tuple[Descriptor, ...]:
        """Return the descriptors of manifests whose subject is ``digest``, as listed: not verified."""
        ...


def open_source(name: ImageName, client: Client) -> ImageSource:
    """Open the image ``name`` for reading. Raises ``ArchiveError`` for an invalid layout."""
    if isinstance(name, RegistryName):
        return RegistrySource(client, name.reference)
    return LayoutSource(read_archive(name.path) if name.archive else read_layout(name.path), name)


def named_root(name: ImageName) -> ImageName:
    """Return ``name``; for a layout without tag and digest, with the tag of its only image."""
    if not isinstance(name, LayoutName) or name.tag or name.digest or not os.path.lexists(name.path):
        return name
    source = LayoutSource(read_archive(name.path) if name.archive else read_layout(name.path), name)
    return replace(name, tag=source.tag())


def checked(document: Document, descriptor: Descriptor, source: str) -> Document:
    """Return ``document``. Raises ``ArchiveError`` if it contradicts ``descriptor``."""
    found = document.descriptor
    if found.media_type != descriptor.media_type:
        why = f"it is said to be {descriptor.media_type}, and is {found.media_type}"
    elif found.digest != descriptor.digest:
        why = f"its digest is {found.digest}"
    elif found.size != descriptor.size:
        why = f"{descriptor.size} bytes were announced, and it has {found.size}"
    else:
        return document
    raise ArchiveError(f"{descriptor.digest} of {source} is not what it is said to be", why=why)


class RegistrySource:
    """A repository of a registry. Documents and blobs may be read from mirrors, lists of referrers are not."""

    def __init__(self, client: Client, reference: Reference) -> None:
        self._client = client
        self._reference = reference
        self._has_api: bool | None = None
        """Whether the registry has the referrers API; None until it is known."""

    @property
    def name(self) -> str:
        return self._reference.familiar()

    @property
    def repository(self) -> Reference | None:
        return self._reference.repository_only()

    def root(self) -> Document:
        content, data, descriptor = self._client.manifest(self._reference)
        return Document(descriptor, data, content)

    def document(self, descriptor: Descriptor) -> Document:
        if descriptor.media_type not in DOCUMENT_TYPES:
            raise _no_document(descriptor, self.name)
        reference = self._reference.repository_only().with_digest(descriptor.digest)
        content, data, found = self._client.manifest(reference)
        return checked(Document(found, data, content), descriptor, self.name)

    def has(self, descriptor: Descriptor) -> bool:
        return self._client.find(self._reference.repository_only().with_digest(descriptor.digest)) is not None

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        return self._client.read_blob(self._reference, descriptor, limit)

    def stream(self, descriptor: Descriptor) -> Iterator[bytes]:
        return self._client.open_stream(self._reference, descriptor)

    @contextmanager
    def blob_opener(self, descriptor: Descriptor) -> Iterator[Opener]:
        spooled = _Spooled(self._client, self._reference, descriptor)
        try:
            yield spooled.open
        finally:
            spooled.remove()

    def referrers(self, digest: str) -> tuple[Descriptor, ...]:
        if self._has_api is not False:
            found = self._client.referrers(self._reference.repository_only().with_digest(digest))
            if found is not None:
                self._has_api = True
                return found
            if self._has_api:
                return ()
            self._has_api = False
        tagged = self._client.find(self._reference.with_tag(fallback_tag(digest)))
        return tagged[0].manifests if tagged is not None and isinstance(tagged[0], Index) else ()


class _Spooled:
    """A blob of a registry, downloaded when first opened to an unnamed file, which ends with the process."""

    def __init__(self, client: Client, reference: Reference, descriptor: Descriptor) -> None:
        self._client = client
        self._reference = reference
        self._descriptor = descriptor
        self._file: BinaryIO | None = None

    def open(self) -> BinaryIO:
        try:
            if self._file is None:
                self._file = self._fetched()
            return io.BufferedReader(_Reading(self._file.fileno()))
        except OSError as error:
            raise StoreError(
                f"cannot keep {self._descriptor.digest} while it is copied",
                why=error.strerror or str(error),
                remedy=f"it needs {self._descriptor.size} bytes in {tempfile.gettempdir()}; TMPDIR names another place",
            ) from error

    def _fetched(self) -> BinaryIO:
        file: BinaryIO = tempfile.TemporaryFile(prefix="kanifold-blob-")  # noqa: SIM115 - closed by remove
        try:
            self._client.fetch(self._reference, self._descriptor, _Rewritten(file))
            file.flush()
        except BaseException:
            file.close()
            raise
        return file

    def remove(self) -> None:
        if self._file is not None:
            self._file.close()


class _Reading(io.RawIOBase):
    """A view of a shared file with a position of its own. Closing it leaves the file open."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Set the position to ``offset`` from the start, the position or the end."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._fd).st_size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Read into ``buffer`` from the position; return the number of bytes, 0 at the end."""
        view = memoryview(buffer)
        data = os.pread(self._fd, len(view), self._at)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Rewritten:
    """The target file of a download, which can be restarted."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes, /) -> object:
        return self._file.write(data)

    def reset(self) -> object:
        self._file.seek(0)
        return self._file.truncate()


class LayoutSource:
    """A layout in a directory or an archive."""

    def __init__(self, layout: Layout, name: LayoutName) -> None:
        self._layout = layout
        self._name = name

    @property
    def name(self) -> str:
        return str(self._name)

    @property
    def repository(self) -> Reference | None:
        return None

    def root(self) -> Document:
        if self._name.digest:
            return self._by_digest(self._name.digest)
        if self._name.tag:
            return self.document(self._layout.find(self._name.tag))
        roots = {each.digest: each for each in self._layout.roots}
        if len(roots) > 1 and not any(dict(each.annotations).get(REF_NAME) == "latest" for each in roots.values()):
            own = {digest: each for digest, each in roots.items() if not self._refers(each)}
            roots = own if len(own) == 1 else roots
        return self.document(next(iter(roots.values())) if len(roots) == 1 else self._layout.find())

    def document(self, descriptor: Descriptor) -> Document:
        if descriptor.media_type not in DOCUMENT_TYPES:
            raise _no_document(descriptor, self.name)
        data = self._layout.read(descriptor)
        content = parse(data, descriptor.media_type)
        found = Descriptor(content.media_type, descriptor.digest, len(data))
        return checked(Document(found, data, content), descriptor, self.name)

    def has(self, descriptor: Descriptor) -> bool:
        try:
            self._layout.open_file(blob_path(descriptor.digest))[0].close()
        except OSError:
            return False
        return True

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        return self._layout.read(descriptor, limit)

    def stream(self, descriptor: Descriptor) -> Iterator[bytes]:
        return self._layout.chunks(descriptor)

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """Open the file of the blob of ``descriptor``, not verified."""
        try:
            return self._layout.open_file(blob_path(descriptor.digest))[0]
        except OSError as error:
            raise ArchiveError(
                f"{descriptor.digest} is missing in {self.name}", why=error.strerror or str(error)
            ) from error

    @contextmanager
    def blob_opener(self, descriptor: Descriptor) -> Iterator[Opener]:
        yield _VerifiedFile(self, descriptor).open

    def referrers(self, digest: str) -> tuple[Descriptor, ...]:
        """Return referrers by the tag schema, and, as ORAS stores them, unnamed roots with a subject."""
        tag = fallback_tag(digest)
        found: dict[str, Descriptor] = {}
        for root in self._layout.roots:
            if root.media_type not in DOCUMENT_TYPES:
                continue
            if dict(root.annotations).get(REF_NAME) == tag:
                content = self.document(_bare(root)).content
                found |= {each.digest: each for each in content.manifests} if isinstance(content, Index) else {}
            elif self._refers(root) == digest:
                found[root.digest] = root
        return tuple(found.values())

    def tag(self) -> str:
        """Return the name in ``index.json`` of the image that was named; "" for none."""
        digest = self.root().descriptor.digest
        named = (dict(each.annotations).get(REF_NAME, "") for each in self._layout.roots if each.digest == digest)
        return next(named, "")

    def is_at(self, path: str) -> bool:
        """Whether this is the layout at ``path``."""
        return os.path.realpath(path) == os.path.realpath(self._name.path)

    def has_others(self) -> bool:
        """Whether the layout has images besides the one that was named and referrers."""
        own = self.root().descriptor.digest
        return any(each.digest != own and not self._refers(each) for each in self._layout.roots)

    def _refers(self, root: Descriptor) -> str:
        """Return the subject of ``root``; "" if it has none or cannot be read."""
        if root.media_type not in DOCUMENT_TYPES or dict(root.annotations).get(REF_NAME):
            return ""
        return self.document(_bare(root)).subject

    def _by_digest(self, digest: str) -> Document:
        for root in self._layout.roots:
            if root.digest == digest:
                return self.document(_bare(root))
        missing = f"{digest} is missing in {self.name}"
        try:
            file, size = self._layout.open_file(blob_path(digest))
        except OSError as error:
            raise ArchiveError(missing, why=error.strerror or str(error)) from error
        file.close()
        if size > MANIFEST_LIMIT:
            raise ArchiveError(f"{digest} of {self.name} is no image", why=f"it has {size} bytes")
        data = self._layout.read(Descriptor("", check_digest(digest), size))
        try:
            content = parse(data)
        except ArchiveError as error:
            raise ArchiveError(f"{digest} of {self.name} is no image", why=str(error)) from error
        return Document(Descriptor(content.media_type, digest, size), data, content)


class _VerifiedFile:
    """A blob of a layout, read as a whole before it is first opened."""

    def __init__(self, source: LayoutSource, descriptor: Descriptor) -> None:
        self._source = source
        self._descriptor = descriptor
        self._verified = False

    def open(self) -> BinaryIO:
        if not self._verified:
            for _ in self._source.stream(self._descriptor):
                pass
            self._verified = True
        return self._source.open(self._descriptor)


def _bare(descriptor: Descriptor) -> Descriptor:
    return replace(descriptor, platform=None, annotations=(), artifact_type="")


def _no_document(descriptor: Descriptor, source: str) -> ArchiveError:
    return ArchiveError(
        f"{descriptor.digest} of {source} is neither a manifest nor an index",
        why=f"its media type is {descriptor.media_type}",
    )
