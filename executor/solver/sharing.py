"""What outside caches are told of a job's steps. Loaded by builds with ``--cache-to`` alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from executor.image import mediatypes
from executor.solver.cache import LayerRecord
from executor.solver.caching import CachedStep
from executor.solver.layer import kind_of
from executor.solver.remote_cache import RemoteCacheEntry, with_inline
from executor.solver.workshop import Workshop, together


def inline(config: bytes, workshop: Workshop, steps: Sequence[CachedStep]) -> bytes:
    """``config``, of an image, with those of ``steps`` in it whose layers are the image's."""
    return with_inline(config, entries_of(workshop, steps, whole=False))


def share(workshop: Workshop, made: Sequence[CachedStep]) -> None:
    """Tell the outside caches what was done; with layers, where they are the image's own or a cache wants them all."""
    exchange = workshop.exchange()
    whole = any(each.every_stage for each in workshop.job.options.cache_to)
    together(
        workshop,
        [partial(exchange.put, entry, workshop.store) for entry in entries_of(workshop, made, whole=whole)],
    )


def entries_of(workshop: Workshop, made: Sequence[CachedStep], *, whole: bool) -> list[RemoteCacheEntry]:
    """The steps ``made`` as entries of an outside cache; the layers of those that come with one are in the store."""
    found: list[RemoteCacheEntry] = []
    for each in made:
        if each.promised or not (whole or each.in_image):
            found.append(RemoteCacheEntry(each.key, each.outcome.result, each.outcome.created))
            continue
        blob = each.layer.blob()
        each.layer.content()
        packed = LayerRecord(kind_of(workshop.job.options.compression), blob.descriptor.digest, blob.descriptor.size)
        found.append(
            RemoteCacheEntry(
                each.key,
                each.outcome.result,
                each.outcome.created,
                blob.diff_id,
                packed,
                mediatypes.to_oci(blob.descriptor.media_type),
                each.layer.machines() if each.layer.machines is not None else (),
            )
        )
    return found
