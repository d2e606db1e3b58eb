"""Where images are read from: registries and OCI layouts, behind one face. What they say is checked before it is used.

A document has the size, the digest and the media type that the descriptor says which led to it; a blob its size and its
digest. Everything else about it is left to whoever asked for it.
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
"""Opens a blob for reading, which can be sought in; more than once when a connection breaks."""


class Document(msgspec.Struct, frozen=True):
    """A manifest or an index, verified. ``descriptor`` says nothing but its type, digest and size."""

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
        """What a list of referrers says of this one: its ``artifactType``, else the media type of its config."""
        stated = decoding.from_json(self.data).get("artifactType")
        if isinstance(stated, str) and stated:
            return stated
        return self.content.config.media_type if isinstance(self.content, Manifest) else ""


class ImageSource(Protocol):
    """A repository, or a layout. Safe for use by many threads."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        ...

    @property
    def repository(self) -> Reference | None:
        """The repository that it is; None for a layout."""
        ...

    def root(self) -> Document:
        """The image that was named."""
        ...

    def document(self, descriptor: Descriptor) -> Document:
        """The manifest or index of ``descriptor``."""
        ...

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        """The whole blob of ``descriptor``, which may have ``limit`` bytes."""
        ...

    def stream(self, descriptor: Descriptor) -> Iterator[bytes]:
        """The blob of ``descriptor`` in chunks; that they were right is known at the end."""
        ...

    def blob_opener(self, descriptor: Descriptor) -> AbstractContextManager[Opener]:
        """The blob of ``descriptor``, read and verified when first opened, and there for as long as this lasts."""
        ...

    def referrers(self, digest: str) -> tuple[Descriptor, ...]:
        """The manifests that name ``digest`` as their subject, as they are listed: not yet looked at."""
        ...


def open_source(name: ImageName, client: Client) -> ImageSource:
    """The image ``name`` for reading. Raises ``ArchiveError`` for a layout that is none."""
    if isinstance(name, RegistryName):
        return RegistrySource(client, name.reference)
    return LayoutSource(read_archive(name.path) if name.archive else read_layout(name.path), name)


def named_root(name: ImageName) -> ImageName:
    """``name``; one of a layout without tag and digest with the tag of the only image that is there."""
    if not isinstance(name, LayoutName) or name.tag or name.digest or not os.path.lexists(name.path):
        return name
    source = LayoutSource(read_archive(name.path) if name.archive else read_layout(name.path), name)
    return replace(name, tag=source.tag())


def checked(document: Document, descriptor: Descriptor, source: str) -> Document:
    """``document``, which ``descriptor`` led to. Raises ``ArchiveError`` unless it is what that says."""
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
    """A repository of a registry. Documents and blobs may come from its mirrors, lists of referrers do not."""

    def __init__(self, client: Client, reference: Reference) -> None:
        self._client = client
        self._reference = reference
        self._has_api: bool | None = None
        """Whether the registry can list referrers, once it is known."""

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
    """A blob of a registry in a file without a name, from when it is first opened: no end of this process leaves it."""

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
    """A file that others read too, with a place of its own in it. Closing it leaves the file open."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to ``offset``, counted from the beginning, the place or the end."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._fd).st_size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer`` from the place on; 0 at the end."""
        view = memoryview(buffer)
        data = os.pread(self._fd, len(view), self._at)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Rewritten:
    """A file that a download is written to, from its beginning again if need be."""

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

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        return self._layout.read(descriptor, limit)

    def stream(self, descriptor: Descriptor) -> Iterator[bytes]:
        return self._layout.chunks(descriptor)

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """The file of the blob of ``descriptor``, not verified."""
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
        """As registries have them, and as ORAS keeps them in a layout: roots without a name that have a subject."""
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
        """The name that ``index.json`` has for the image that was named; "" for none."""
        digest = self.root().descriptor.digest
        named = (dict(each.annotations).get(REF_NAME, "") for each in self._layout.roots if each.digest == digest)
        return next(named, "")

    def is_at(self, path: str) -> bool:
        """Whether this is the layout at ``path``."""
        return os.path.realpath(path) == os.path.realpath(self._name.path)

    def has_others(self) -> bool:
        """Whether there are images in this layout that are not the one that was named, and do not refer to one."""
        own = self.root().descriptor.digest
        return any(each.digest != own and not self._refers(each) for each in self._layout.roots)

    def _refers(self, root: Descriptor) -> str:
        """The subject of ``root``; "" for anything that has none or cannot be read."""
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
