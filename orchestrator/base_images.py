"""Reading what build checks need of base images: variables, shell, and platforms.

Only manifests and configs are read, never layers: from the store if a build has fetched them, else from the registry.
An image that cannot be read is unknown, and the rules that need it are skipped, so that checks work offline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from executor import protocol
from executor.dockerfile import Dockerfile, Stage
from executor.dockerfile.checks import BaseImage
from executor.image import config as image
from executor.image import mediatypes, selection
from executor.image.manifest import MANIFEST_LIMIT, Descriptor, Index, Manifest, parse
from executor.registry import reference
from executor.registry.reference import Reference
from executor.solver import graph
from executor.solver.named import Named
from executor.store import blobs
from executor.store.store import Store
from orchestrator.registries import Registry
from platforms.errors import KanifoldError
from platforms.platform import Platform

_AT_ONCE: Final = 8
_Look = Callable[[tuple[str, Platform]], BaseImage | None]


def read(
    dockerfile: Dockerfile,
    stages: Iterable[Stage],
    scope: Mapping[str, str],
    target: Platform,
    named: Named,
    pins: Iterable[protocol.Pin],
    registry: Registry,
    store: Store | None,
) -> dict[int, BaseImage]:
    """Return what is known of the base images of ``stages``, by stage number. ``pins`` map tags to digests.

    To be called in a thread without an event loop.
    """
    digests = {pin.name: pin.digest for pin in pins}
    needed: dict[int, tuple[str, Platform]] = {}
    for stage in stages:
        origin = graph.base_of(dockerfile, stage, scope, named)
        if isinstance(origin, graph.FromImage):
            needed[stage.index] = (origin.name, graph.platform_of(dockerfile, stage, scope, target))

    def look(what: tuple[str, Platform]) -> BaseImage | None:
        name, platform = what
        wanted = reference.parse(name).completed()
        if name in digests:
            wanted = wanted.with_digest(digests[name])
        try:
            return _base(wanted, name, platform, registry, store)
        except KanifoldError:
            return None

    different = tuple(dict.fromkeys(needed.values()))
    if not different:
        return {}
    found = dict(zip(different, asyncio.run(_all(look, different)), strict=True))
    return {index: known for index, what in needed.items() if (known := found[what]) is not None}


async def _all(look: _Look, wanted: Sequence[tuple[str, Platform]]) -> list[BaseImage | None]:
    from asyncio_pool import AioPool

    pool = AioPool(size=_AT_ONCE)
    return list(await asyncio.gather(*[pool.spawn_n(asyncio.to_thread(look, each)) for each in wanted]))


def _base(wanted: Reference, name: str, platform: Platform, registry: Registry, store: Store | None) -> BaseImage:
    document = parse(_root(wanted, registry, store))
    single = isinstance(document, Manifest)
    if isinstance(document, Index):
        _, document = selection.find(name, document, platform, lambda each: _read(each, wanted, registry, store))
    config = image.parse(_read(document.config, wanted, registry, store))
    said = str(config.platform) if config.platform.architecture else ""
    return BaseImage(dict(config.env), bool(config.shell), said, said if single else "")


def _root(wanted: Reference, registry: Registry, store: Store | None) -> bytes:
    if store is not None and wanted.digest and blobs.has(store, wanted.digest):
        return blobs.read(store, wanted.digest, limit=MANIFEST_LIMIT)
    return registry.manifest(wanted)[1]


def _read(descriptor: Descriptor, image_name: Reference, registry: Registry, store: Store | None) -> bytes:
    """Return a manifest, an index or a config of the image."""
    if descriptor.media_type in mediatypes.INDEXES | mediatypes.MANIFESTS:
        return _root(image_name.with_digest(descriptor.digest), registry, store)
    if store is not None and blobs.has(store, descriptor.digest):
        return blobs.read(store, descriptor.digest, limit=image.CONFIG_LIMIT)
    return registry.read_blob(image_name, descriptor, limit=image.CONFIG_LIMIT)
