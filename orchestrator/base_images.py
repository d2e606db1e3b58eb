"""Reading what build checks need of base images: variables, shell, and platforms.

Only manifests and configs are read, never layers: from the store if a build has fetched them, else from the registry.
An image that cannot be read is unknown, and the rules that need it are skipped, so that checks work offline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import msgspec

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
"""Images that are read together."""

_Wanted = tuple[str, Platform]
"""An image as the Dockerfile names it, and the platform that it is wanted for."""


def needed(
    dockerfile: Dockerfile, stages: Iterable[Stage], scope: Mapping[str, str], target: Platform, named: Named
) -> dict[int, _Wanted]:
    """Return the base images of those of ``stages`` that have one, by stage number."""
    origins = ((stage, graph.base_of(dockerfile, stage, scope, named)) for stage in stages)
    return {
        stage.index: (origin.name, graph.platform_of(dockerfile, stage, scope, target))
        for stage, origin in origins
        if isinstance(origin, graph.FromImage)
    }


class BaseImages(msgspec.Struct, frozen=True):
    """Where base images are read from: their documents are in ``store`` or ``registry``."""

    pins: tuple[protocol.Pin, ...]
    """Map tags to digests."""
    registry: Registry
    store: Store | None

    def read(self, needed: Mapping[int, _Wanted]) -> dict[int, BaseImage]:
        """Return what is known of the images that are ``needed``, by stage number.

        To be called in a thread without an event loop.
        """
        different = tuple(dict.fromkeys(needed.values()))
        if not different:
            return {}
        found = dict(zip(different, asyncio.run(self._all(different)), strict=True))
        return {index: known for index, wanted in needed.items() if (known := found[wanted]) is not None}

    async def _all(self, wanted: Sequence[_Wanted]) -> list[BaseImage | None]:
        from asyncio_pool import AioPool

        pool = AioPool(size=_AT_ONCE)
        return list(await asyncio.gather(*[pool.spawn_n(asyncio.to_thread(self._known, *each)) for each in wanted]))

    def _known(self, name: str, platform: Platform) -> BaseImage | None:
        """Return what is known of the image ``name`` for ``platform``; None if it cannot be read."""
        wanted = reference.parse(name).completed()
        digest = next((pin.digest for pin in self.pins if pin.name == name), "")
        try:
            return self._base(wanted.with_digest(digest) if digest else wanted, name, platform)
        except KanifoldError:
            return None

    def _base(self, wanted: Reference, name: str, platform: Platform) -> BaseImage:
        document = parse(self._root(wanted))
        single = isinstance(document, Manifest)
        if isinstance(document, Index):
            _, document = selection.find(name, document, platform, partial(self._document, wanted))
        config = image.parse(self._document(wanted, document.config))
        said = str(config.platform) if config.platform.architecture else ""
        return BaseImage(dict(config.env), bool(config.shell), said, said if single else "")

    def _root(self, wanted: Reference) -> bytes:
        if self.store is not None and wanted.digest and blobs.has(self.store, wanted.digest):
            return blobs.read(self.store, wanted.digest, limit=MANIFEST_LIMIT)
        return self.registry.manifest(wanted)[1]

    def _document(self, wanted: Reference, descriptor: Descriptor) -> bytes:
        """Return a manifest, an index or a config of the image ``wanted``."""
        if descriptor.media_type in mediatypes.INDEXES | mediatypes.MANIFESTS:
            return self._root(wanted.with_digest(descriptor.digest))
        if self.store is not None and blobs.has(self.store, descriptor.digest):
            return blobs.read(self.store, descriptor.digest, limit=image.CONFIG_LIMIT)
        return self.registry.read_blob(wanted, descriptor, limit=image.CONFIG_LIMIT)
