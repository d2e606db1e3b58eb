"""Verifying and joining the results of executors, and publishing them in two phases.

(1) ``verify``: every manifest and config is read, and the config must have the requested platform. (2) ``join``: an
index of all images. (3) ``push``: the index is pushed by digest to the registries, which have the manifests already.
What is to be tagged then is a ``PreparedImage``. (4) ``commit``: the tags are set. To publish several builds, prepare
all of them before committing the first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial

import msgspec
from msgspec.structs import replace

from executor.image import config as image
from executor.image import manifest as documents
from executor.image import mediatypes
from executor.image.digest import sha256
from executor.image.manifest import Descriptor, Index, Manifest, PlatformSpec, describe
from executor.registry.reference import Reference, parse
from executor.store import blobs
from executor.store.store import Store
from orchestrator import jobs
from orchestrator.outputs import Push
from orchestrator.registries import Registry
from orchestrator.request import BuildRequest
from orchestrator.results import BuildResult, Image, PlatformResult
from orchestrator.view import events
from orchestrator.view.events import Emit
from platforms import extended, satisfies
from platforms.errors import KanifoldError, ProtocolError


class Tag(msgspec.Struct, frozen=True):
    """A tag to set, and its present digest; "" if it is new or unknown."""

    reference: Reference
    digest: str


class PreparedImage(msgspec.Struct, frozen=True):
    """A build that is in its registries by digest, and the tags to set."""

    result: BuildResult
    tags: tuple[Tag, ...]


async def check_push(repositories: Sequence[Reference], registry: Registry) -> None:
    """Raise ``RegistryError`` if one of ``repositories`` rejects pushes."""
    await asyncio.gather(*(asyncio.to_thread(registry.check_push, each) for each in repositories))


async def collect(built: PlatformResult, request: BuildRequest, registry: Registry, store: Store) -> PlatformResult:
    """Return ``built``, the result of a node with another disk, with its verified image. Blobs that this machine
    keeps are fetched into ``store``.

    Raises ``ProtocolError`` for what is the executor's fault.
    """
    image = await verify(built, registry, next(iter(request.repositories), None), store)
    if jobs.needs_blobs(request) and jobs.keeps_blobs(request):
        await _fetch(built, image, store)
    return replace(built, image=image)


async def _fetch(built: PlatformResult, image: Image, store: Store) -> None:
    """Fetch the blobs of ``image``, built on a node with another disk, into ``store``."""
    for descriptor in (*image.manifest.layers, image.manifest.config):
        if not blobs.has(store, descriptor.digest):
            with blobs.ingest(store, descriptor.digest) as ingest:
                await built.executor.blob(descriptor.digest, descriptor.size, ingest.write)
                ingest.commit()


async def verify(built: PlatformResult, registry: Registry, repository: Reference | None, store: Store) -> Image:
    """Read the documents of an executor's result: digests must match, and the config must have the platform.

    Raises ``ProtocolError`` if they do not.
    """
    platform, result = built.placement.platform, built.result
    data = await _read(built, result.manifest, registry, repository, store)
    if sha256(data) != result.manifest.digest:
        raise ProtocolError(f"the executor for {platform} sent another manifest than it announced")
    document = documents.parse(data, result.manifest.media_type)
    if not isinstance(document, Manifest):
        raise ProtocolError(f"the executor for {platform} made an index instead of an image")
    if (document.config, document.layers) != (result.config, result.layers):
        raise ProtocolError(f"the executor for {platform} announced another config or other layers than it made")
    config_data = await _read(built, document.config, registry, None, store)
    if sha256(config_data) != document.config.digest:
        raise ProtocolError(f"the executor for {platform} sent another config than it announced")
    config = image.parse(config_data)
    if not satisfies(platform, config.platform):
        raise ProtocolError(
            f"the image for {platform} says that it is for {config.platform}",
            why="its config does not match the platform that was asked for",
        )
    own = extended(platform, config.platform)
    spec = PlatformSpec(own.architecture, own.os, own.variant, own.os_version, own.os_features)
    descriptor = Descriptor(document.media_type, result.manifest.digest, len(data), spec)
    return Image(platform, document, descriptor, data, partial(blobs.open, store))


async def _read(
    built: PlatformResult, descriptor: Descriptor, registry: Registry, repository: Reference | None, store: Store
) -> bytes:
    """Return a document of an image: from ``store``, from ``repository`` if it was pushed there, or from its
    executor."""
    if here := await asyncio.to_thread(_from_store, store, descriptor.digest):
        return here
    if repository is not None and descriptor.media_type in mediatypes.MANIFESTS:
        return (await asyncio.to_thread(registry.manifest, repository.with_digest(descriptor.digest)))[1]
    if descriptor.size > image.CONFIG_LIMIT:
        raise ProtocolError(
            f"the executor for {built.placement.platform} announces {descriptor.size} bytes of metadata"
        )
    parts: list[bytes] = []
    await built.executor.blob(descriptor.digest, descriptor.size, parts.append)
    data = b"".join(parts)
    if sha256(data) == descriptor.digest:
        await asyncio.to_thread(_keep, store, data, descriptor.digest)  # the next build does not wait for it
    return data


def _keep(store: Store, data: bytes, digest: str) -> None:
    """Add the document ``data`` to ``store``."""
    with blobs.ingest(store, digest) as ingest:
        ingest.write(data)
        ingest.commit()


def _from_store(store: Store, digest: str) -> bytes:
    """Return the document ``digest``; b"" if the store does not have it."""
    return blobs.read(store, digest, image.CONFIG_LIMIT) if blobs.has(store, digest) else b""


def join(request: BuildRequest, images: Sequence[Image]) -> BuildResult:
    """Return the index of ``images``; a single image is the result itself unless there are annotations for an index.

    Annotations of a descriptor that is in no document are the root's: for ``index.json`` of a layout.
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


def tags_of(request: BuildRequest) -> tuple[Reference, ...]:
    """Return the tags that a successful build sets."""
    pushes = [each for each in request.outputs if isinstance(each, Push)]
    if not pushes or any(each.by_digest for each in pushes):
        return ()
    named = (parse(name).completed() for each in pushes for name in each.image.names)
    return tuple({str(each): each for each in (*request.tags, *named)}.values())


async def push(
    result: BuildResult, repositories: Sequence[Reference], tags: Sequence[Reference], registry: Registry, emit: Emit
) -> None:
    """Push the root document by digest to every repository.

    The images are there already.
    """
    for done, repository in enumerate(repositories):
        emit(events.Publishing(what="index", done=done, total=len(repositories)))
        target = repository.repository_only().with_digest(result.root.digest)
        await asyncio.to_thread(registry.put_manifest, target, result.data, result.root.media_type)
    if repositories:
        emit(events.Publishing(what="index", done=len(repositories), total=len(repositories)))


async def push_untagged(
    result: BuildResult, repositories: Sequence[Reference], tags: Sequence[Reference], registry: Registry, emit: Emit
) -> None:
    """As ``push``, for a build whose tags are set immediately: a single tag is pushed with its document, which saves a
    request."""
    if len(tags) != 1 or len(repositories) > 1:
        await push(result, repositories, tags, registry, emit)


def is_there(registry: Registry, wanted: Reference) -> bool:
    """Whether ``registry`` has the manifest ``wanted``. False on an error, which a later request will report."""
    with contextlib.suppress(KanifoldError):
        return registry.has_manifest(wanted) is not None
    return False


async def look_up(tags: Sequence[Reference], registry: Registry) -> tuple[Tag, ...]:
    """Return ``tags`` with their present digests."""
    return tuple(await asyncio.gather(*(asyncio.to_thread(_tag, each, registry) for each in tags)))


def _tag(reference: Reference, registry: Registry) -> Tag:
    with contextlib.suppress(KanifoldError):
        found = registry.has_manifest(reference)
        return Tag(reference, found.digest if found is not None else "")
    return Tag(reference, "")


async def commit(prepared: PreparedImage, registry: Registry, emit: Emit) -> None:
    """Set the tags of ``prepared``. This is the last change of a build to a registry.

    A tag that has the digest already is not pushed: it may be immutable, and set by an interrupted build that did not
    set the others.
    """
    root = prepared.result.root
    for done, tag in enumerate(prepared.tags):
        emit(events.Publishing(what="tags", done=done, total=len(prepared.tags)))
        if tag.digest != root.digest:
            await asyncio.to_thread(registry.put_manifest, tag.reference, prepared.result.data, root.media_type)
        emit(events.Published(ref=str(tag.reference), digest=root.digest))
    if prepared.tags:
        emit(events.Publishing(what="tags", done=len(prepared.tags), total=len(prepared.tags)))
