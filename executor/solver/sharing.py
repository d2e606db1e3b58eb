"""Exports the steps of a job to remote caches. Loaded only by builds with ``--cache-to``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace

from executor import protocol
from executor.image import mediatypes
from executor.solver.cache import LayerRecord
from executor.solver.caching import CachedStep
from executor.solver.layer import kind_of
from executor.solver.lifetime import together
from executor.solver.remote_cache import RemoteCaches
from executor.solver.remote_entry import RemoteCacheEntry, with_inline
from executor.solver.services import Services
from platforms.errors import KanifoldError


def inline(config: bytes, job: protocol.Job, steps: Sequence[CachedStep]) -> bytes:
    """Return the image's ``config`` with the ``steps`` whose layers are in the image."""
    return with_inline(config, [_entry(job, each, with_layer=each.in_image) for each in steps])


def share(job: protocol.Job, services: Services, steps: Sequence[CachedStep]) -> None:
    """Export ``steps`` to the remote caches; with layers if these are in the image, or if a cache takes all."""
    caches = services.remote_caches()
    works = [partial(_share, job, services, caches, each, _with_layer(job, each)) for each in steps]
    together(services.background, works)
    caches.bound()


def share_early(job: protocol.Job, services: Services, steps: Sequence[CachedStep]) -> None:
    """As ``share``, of steps that were just made, while others are running. Errors are ignored: ``share`` tries again,
    and reports them."""
    if all(isinstance(each.to, protocol.CacheInImage) for each in job.options.cache_to):
        return
    with contextlib.suppress(KanifoldError, OSError):
        for each in steps:
            if not services.cancellation.cancelled:
                _share(job, services, services.remote_caches(), each, _with_layer(job, each))


def _with_layer(job: protocol.Job, step: CachedStep) -> bool:
    return step.in_image or any(each.every_stage for each in job.options.cache_to)


def _share(job: protocol.Job, services: Services, caches: RemoteCaches, step: CachedStep, with_layer: bool) -> None:
    """Export ``step``. Its layer is fetched first if it is on another machine, unless every cache has it."""
    entry = _entry(job, step, with_layer=with_layer)
    if caches.hold(entry):
        return
    if entry.blob is not None:
        step.layer.content()
    caches.put(entry, services.store)


def _entry(job: protocol.Job, step: CachedStep, *, with_layer: bool) -> RemoteCacheEntry:
    """Return ``step`` as an entry of a remote cache."""
    entry = RemoteCacheEntry(step.key, step.outcome.result, step.outcome.created)
    if not with_layer or step.deferred:
        return entry
    blob = step.layer.blob()
    return replace(
        entry,
        diff_id=blob.diff_id,
        blob=LayerRecord(kind_of(job.options.compression), blob.descriptor.digest, blob.descriptor.size),
        media_type=mediatypes.to_oci(blob.descriptor.media_type),
        machines=step.layer.machines() if step.layer.machines is not None else (),
    )
