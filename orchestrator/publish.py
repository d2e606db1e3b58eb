"""The end of a build: what the executors made is checked, joined and given its names. All of it, or nothing.

(1) Every image is read back and must say the platform that was asked for. (2) Its new layers must hold no foreign
programs, or the user is told. (3) The index is pushed by digest beside the manifests, which are there already. (4) Only
then do tags move, and local outputs appear.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import BinaryIO

import msgspec
from msgspec.structs import replace

from executor.image import config as image
from executor.image import manifest as documents
from executor.image import mediatypes
from executor.image.digest import sha256
from executor.image.manifest import Descriptor, Index, Manifest, PlatformSpec, describe
from executor.registry.reference import Reference
from executor.store import blobs
from executor.store.store import Store
from orchestrator.fanout import Emit, PlatformResult
from orchestrator.registries import Registry
from orchestrator.request import Request
from orchestrator.view import events
from platforms import Platform, satisfies
from platforms.errors import KanifoldError, ProtocolError


class Image(msgspec.Struct, frozen=True):
    """One platform's image, verified, and where its blobs can be read."""

    platform: Platform
    manifest: Manifest
    descriptor: Descriptor
    """With the platform, as the index will hold it."""
    data: bytes
    content: Callable[[str], BinaryIO]


class BuildResult(msgspec.Struct, frozen=True):
    """What a build comes to: its root document, and the images below it."""

    root: Descriptor
    data: bytes
    images: tuple[Image, ...]


async def check_push(repositories: Sequence[Reference], registry: Registry) -> None:
    """Raise ``RegistryError`` when one of ``repositories`` will not take what is built; to be asked at once."""
    await asyncio.gather(*(asyncio.to_thread(registry.check_push, each) for each in repositories))


async def fetch(built: PlatformResult, image: Image, store: Store) -> None:
    """Bring the blobs of ``image``, made on a node that does not share our disk, into ``store``."""
    for descriptor in (*image.manifest.layers, image.manifest.config):
        if not blobs.has(store, descriptor.digest):
            with blobs.ingest(store, descriptor.digest) as ingest:
                await built.executor.blob(descriptor.digest, descriptor.size, ingest.write)
                ingest.commit()


async def verify(
    built: PlatformResult, registry: Registry | None, repository: Reference | None, store: Store | None
) -> Image:
    """Read back what an executor says it made: digests must be true, and the config must say the platform.

    Raises ``ProtocolError`` for an executor that lied.
    """
    platform, result = built.placement.platform, built.result

    async def read(descriptor: Descriptor) -> bytes:
        if store is not None and (here := await asyncio.to_thread(_from_store, store, descriptor.digest)):
            return here
        if registry is not None and repository is not None and descriptor.media_type in mediatypes.MANIFESTS:
            return (await asyncio.to_thread(registry.manifest, repository.with_digest(descriptor.digest)))[1]
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


def join(request: Request, images: Sequence[Image]) -> BuildResult:
    """The index over ``images``; a single image stands for itself unless it has annotations for an index.

    Annotations of a descriptor that no document holds are the root's own: for a layout's ``index.json``.
    """
    oci = all(each.manifest.media_type == mediatypes.OCI_MANIFEST for each in images)
    described = [
        replace(each.descriptor, annotations=request.annotated("manifest-descriptor", str(each.platform)))
        for each in images
    ]
    annotations, of_root = request.annotated("index"), request.annotated("index-descriptor")
    if len(images) == 1 and not (annotations or of_root):
        return BuildResult(replace(described[0], platform=None), images[0].data, tuple(images))
    index = Index(mediatypes.OCI_INDEX if oci else mediatypes.DOCKER_INDEX, tuple(described), annotations)
    root, data = describe(index)
    return BuildResult(replace(root, annotations=of_root), data, tuple(images))


async def push(product: BuildResult, repositories: Sequence[Reference], registry: Registry, emit: Emit) -> None:
    """Put the root document under its digest into every repository; the images are there already."""
    for done, repository in enumerate(repositories):
        emit(events.Publishing(what="index", done=done, total=len(repositories)))
        target = repository.repository_only().with_digest(product.root.digest)
        await asyncio.to_thread(registry.put_manifest, target, product.data, product.root.media_type)
    if repositories:
        emit(events.Publishing(what="index", done=len(repositories), total=len(repositories)))


async def standing(tags: Sequence[Reference], registry: Registry) -> tuple[str, ...]:
    """The digest that each of ``tags`` means now; "" where there is no such tag, or nobody says."""

    def look(reference: Reference) -> str:
        with contextlib.suppress(KanifoldError):
            found = registry.has_manifest(reference)
            return found.digest if found is not None else ""
        return ""

    return tuple(await asyncio.gather(*(asyncio.to_thread(look, each) for each in tags)))


async def tag(
    product: BuildResult, tags: Sequence[Reference], digests: Sequence[str], registry: Registry, emit: Emit
) -> None:
    """Move the tags, of which each means one of ``digests`` now. This is the last thing a build does to a registry.

    A tag that means the product already is left alone: one that cannot be moved (an immutable one) may be the first of
    several, of which a build before could not put the others.
    """
    for done, (reference, digest) in enumerate(zip(tags, digests, strict=True)):
        emit(events.Publishing(what="tags", done=done, total=len(tags)))
        if digest != product.root.digest:
            await asyncio.to_thread(registry.put_manifest, reference, product.data, product.root.media_type)
        emit(events.Published(ref=str(reference), digest=product.root.digest))
    if tags:
        emit(events.Publishing(what="tags", done=len(tags), total=len(tags)))
