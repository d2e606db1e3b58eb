"""The end of a build: what the executors made is checked, joined and given its names. All of it, or nothing.

(1) Every image is read back and must say the platform that was asked for. (2) Its new layers must hold no foreign
programs, or the user is told. (3) The index is pushed by digest beside the manifests, which are there already. (4) Only
then do tags move, and local outputs appear.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import BinaryIO, cast

import msgspec
from msgspec.structs import replace

from executor.image import config as image
from executor.image import manifest as documents
from executor.image import mediatypes
from executor.image.digest import sha256
from executor.image.manifest import Descriptor, Index, Manifest, PlatformSpec, describe
from executor.registry import archive, layout
from executor.registry.client import Client
from executor.registry.layout import REF_NAME, BlobSource
from executor.registry.reference import Reference
from executor.store import blobs
from executor.store.store import Store
from orchestrator.fanout import Built, Emit
from orchestrator.outputs import Output
from orchestrator.request import Request
from orchestrator.view import events
from platforms import Platform, satisfies
from platforms.errors import Interrupted, ProtocolError, UsageError


class Image(msgspec.Struct, frozen=True):
    """One platform's image, verified, and where its blobs can be read."""

    platform: Platform
    manifest: Manifest
    descriptor: Descriptor
    """With the platform, as the index will hold it."""
    data: bytes
    content: Callable[[str], BinaryIO]


class Product(msgspec.Struct, frozen=True):
    """What a build comes to: its root document, and the images below it."""

    root: Descriptor
    data: bytes
    images: tuple[Image, ...]


async def check_push(repositories: Sequence[Reference], client: Client) -> None:
    """Raise ``RegistryError`` when one of ``repositories`` will not take what is built; to be asked at once."""
    await asyncio.gather(*(asyncio.to_thread(client.check_push, each) for each in repositories))


async def fetch(built: Built, image: Image, store: Store) -> None:
    """Bring the blobs of ``image``, made on a node that does not share our disk, into ``store``."""
    for descriptor in (*image.manifest.layers, image.manifest.config):
        if not blobs.has(store, descriptor.digest):
            with blobs.ingest(store, descriptor.digest) as ingest:
                await built.executor.blob(descriptor.digest, descriptor.size, ingest.write)
                ingest.commit()


async def verify(built: Built, client: Client | None, repository: Reference | None, store: Store | None) -> Image:
    """Read back what an executor says it made: digests must be true, and the config must say the platform.

    Raises ``ProtocolError`` for an executor that lied.
    """
    platform, result = built.placement.platform, built.result

    async def read(descriptor: Descriptor) -> bytes:
        if store is not None and (here := await asyncio.to_thread(_from_store, store, descriptor.digest)):
            return here
        if client is not None and repository is not None and descriptor.media_type in mediatypes.MANIFESTS:
            return (await asyncio.to_thread(client.manifest, repository.with_digest(descriptor.digest)))[1]
        if descriptor.size > image.CONFIG_LIMIT:
            raise ProtocolError(f"the executor for {platform} announces {descriptor.size} bytes of metadata")
        parts: list[bytes] = []
        await built.executor.blob(descriptor.digest, descriptor.size, parts.append)
        return b"".join(parts)

    data = await read(result.manifest)
    if sha256(data) != result.manifest.digest:
        raise ProtocolError(f"the executor for {platform} sent another manifest than it announced")
    document = documents.parse(data, result.manifest.media_type)
    if not isinstance(document, Manifest):
        raise ProtocolError(f"the executor for {platform} made an index instead of an image")
    if (document.config, document.layers) != (result.config, result.layers):
        raise ProtocolError(f"the executor for {platform} announced another config or other layers than it made")
    config_data = await read(document.config)
    if sha256(config_data) != document.config.digest:
        raise ProtocolError(f"the executor for {platform} sent another config than it announced")
    config = image.parse(config_data)
    if not satisfies(platform, config.platform):
        raise ProtocolError(
            f"the image for {platform} says that it is for {config.platform}",
            why="its config does not match the platform that was asked for",
        )
    spec = PlatformSpec(platform.architecture, platform.os, platform.variant, platform.os_version, platform.os_features)
    descriptor = Descriptor(document.media_type, result.manifest.digest, len(data), spec)

    def content(digest: str) -> BinaryIO:
        assert store is not None
        return blobs.open(store, digest)

    return Image(platform, document, descriptor, data, content)


def _from_store(store: Store, digest: str) -> bytes:
    """The document ``digest``; b"" when the store does not have it."""
    return blobs.read(store, digest, image.CONFIG_LIMIT) if blobs.has(store, digest) else b""


def join(request: Request, images: Sequence[Image]) -> Product:
    """The index over ``images``; a single image stands for itself unless it has annotations for an index."""
    oci = all(each.manifest.media_type == mediatypes.OCI_MANIFEST for each in images)
    annotations = tuple((each.key, each.value) for each in request.annotations if each.level == "index")
    if len(images) == 1 and not annotations:
        only = images[0]
        return Product(replace(only.descriptor, platform=None), only.data, tuple(images))
    index = Index(
        mediatypes.OCI_INDEX if oci else mediatypes.DOCKER_INDEX,
        tuple(each.descriptor for each in images),
        annotations,
    )
    root, data = describe(index)
    return Product(root, data, tuple(images))


async def push(product: Product, repositories: Sequence[Reference], client: Client) -> None:
    """Put the root document under its digest into every repository; the images are there already."""
    for repository in repositories:
        target = repository.repository_only().with_digest(product.root.digest)
        await asyncio.to_thread(client.put_manifest, target, product.data, product.root.media_type)


async def tag(product: Product, tags: Sequence[Reference], client: Client, emit: Emit) -> None:
    """Move the tags. This is the last thing a build does to a registry."""
    for done, reference in enumerate(tags):
        emit(events.Publishing(what="tags", done=done, total=len(tags)))
        await asyncio.to_thread(client.put_manifest, reference, product.data, product.root.media_type)
        emit(events.Published(ref=str(reference), digest=product.root.digest))


async def write(output: Output, product: Product, request: Request, emit: Emit) -> None:
    """Write a local output of images. Cancelling leaves nothing of it."""
    cancelled = threading.Event()
    writing = asyncio.create_task(asyncio.to_thread(_write, output, product, request, cancelled))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.gather(writing, return_exceptions=True)
        raise
    emit(events.Published(ref=output.dest or "stdout", digest=product.root.digest))


def _write(output: Output, product: Product, request: Request, cancelled: threading.Event) -> None:
    names = [*output.names, *(str(each) for each in request.tags)]
    roots = [
        replace(product.root, annotations=((layout.CONTAINERD_NAME, name), (REF_NAME, _tag_of(name)))) for name in names
    ] or [product.root]
    sources = _sources(product, cancelled)
    match output.kind:
        case "oci" if not output.archive:
            layout.write_layout(output.dest or "oci-layout", roots, sources)
        case "oci":
            with opened(output.dest) as file:
                archive.write_archive(file, roots, sources)
        case _:
            if len(product.images) != 1:
                raise UsageError(
                    "--output type=docker holds one platform",
                    why=f"this build has {len(product.images)}",
                    remedy="use type=oci, which docker load reads where its image store is containerd's",
                )
            with opened(output.dest) as file:
                archive.write_docker_archive(file, names, product.images[0].manifest, roots, sources)


class _Cancellable(io.RawIOBase):
    """A file that cannot be read any more once ``cancelled`` is set."""

    def __init__(self, file: BinaryIO, cancelled: threading.Event) -> None:
        self._file = file
        self._cancelled = cancelled

    def read(self, size: int = -1) -> bytes:
        if self._cancelled.is_set():
            raise Interrupted("the build was cancelled")
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()
        super().close()


def _opened(image: Image, digest: str, cancelled: threading.Event) -> BinaryIO:
    return cast(BinaryIO, _Cancellable(image.content(digest), cancelled))


def _sources(product: Product, cancelled: threading.Event) -> list[BlobSource]:
    """Every blob of ``product`` once, the root last."""
    found: dict[str, BlobSource] = {}
    for each in product.images:
        for descriptor in (*each.manifest.layers, each.manifest.config):
            found[descriptor.digest] = BlobSource(
                descriptor.digest,
                descriptor.size,
                partial(_opened, each, descriptor.digest, cancelled),
            )
        found[each.descriptor.digest] = _inline(each.descriptor.digest, each.data)
    found[product.root.digest] = _inline(product.root.digest, product.data)
    return list(found.values())


def _inline(digest: str, data: bytes) -> BlobSource:
    return BlobSource(digest, len(data), lambda: io.BytesIO(data))


def _tag_of(name: str) -> str:
    return name.rpartition("/")[2].partition("@")[0].partition(":")[2] or "latest"


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """The file ``path``, which is there once all has been written; ``-`` or "" is stdout."""
    if path in ("", "-"):
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with archive.archive_file(path) as file:
        yield file
