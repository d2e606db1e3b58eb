"""Exports the steps of a job to remote caches. Loaded only by builds with ``--cache-to``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace

from executor import protocol
from executor.image import mediatypes
from executor.solver.cache import LayerRecord
from executor.solver.caching import CachedStep
from executor.solver.layer import kind_of
from executor.solver.lifetime import together
from executor.solver.remote_cache import RemoteCacheEntry, with_inline
from executor.solver.services import Services


def inline(config: bytes, job: protocol.Job, steps: Sequence[CachedStep]) -> bytes:
    """Return the image's ``config`` with the ``steps`` whose layers are in the image."""
    return with_inline(config, entries_of(job, steps, whole=False))


def share(job: protocol.Job, services: Services, steps: Sequence[CachedStep]) -> None:
    """Export ``steps`` to the remote caches; with layers if these are in the image, or if a cache takes all."""
    caches = services.remote_caches()
    whole = any(each.every_stage for each in job.options.cache_to)
    entries = entries_of(job, steps, whole=whole)
    together(services.background, [partial(caches.put, each, services.store) for each in entries])


def entries_of(job: protocol.Job, steps: Sequence[CachedStep], *, whole: bool) -> list[RemoteCacheEntry]:
    """Return ``steps`` as entries of a remote cache. The layers of entries that have one are in the store."""
    return [_entry(job, each, with_layer=not each.deferred and (whole or each.in_image)) for each in steps]


def _entry(job: protocol.Job, step: CachedStep, *, with_layer: bool) -> RemoteCacheEntry:
    entry = RemoteCacheEntry(step.key, step.outcome.result, step.outcome.created)
    if not with_layer:
        return entry
    blob = step.layer.blob()
    step.layer.content()
    return replace(
        entry,
        diff_id=blob.diff_id,
        blob=LayerRecord(kind_of(job.options.compression), blob.descriptor.digest, blob.descriptor.size),
        media_type=mediatypes.to_oci(blob.descriptor.media_type),
        machines=step.layer.machines() if step.layer.machines is not None else (),
    )
