"""The result cache: builds of which nothing has changed get their cached results, without an executor.

A result is stored with what it rests on (``executor.protocol.DependencyRecord``). It is returned for the same job if
the images are pinned to the same digests, everything in its dependency record is unchanged, and the registry still has
the manifests: an executor would then find every step in its cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

import executor
from executor import __version__, protocol
from executor.registry import reference
from executor.registry.registry_settings import RegistrySettings
from executor.solver import inputs
from executor.store import blobs, metadata_cache
from executor.store.store import Store
from orchestrator import publish
from orchestrator.nodes.placement import Placement
from orchestrator.outputs import Push
from orchestrator.registries import Registry
from orchestrator.request import BuildRequest
from orchestrator.results import NullExecutor, PlatformResult, StepEvent
from orchestrator.view import events
from orchestrator.view.events import Emit
from platforms import decoding, host
from platforms.errors import Interrupted, KanifoldError, StoreError

Jobs = Sequence[tuple[Placement, protocol.Job]]


class CachedResult(msgspec.Struct, frozen=True):
    """The result of a job, with the digests of its images."""

    pins: tuple[protocol.Pin, ...]
    dependencies: protocol.DependencyRecord
    events: tuple[StepEvent, ...]
    result: protocol.Result


PACKAGES: Final = (os.path.dirname(str(executor.__file__)), os.path.dirname(str(host.__file__)))
"""The packages that determine the result of a job. In a checkout, their modules change without the version."""
_CACHED_RESULT: Final[msgspec.json.Decoder[CachedResult]] = msgspec.json.Decoder(CachedResult)


def is_cacheable(request: BuildRequest, placements: Sequence[Placement]) -> bool:
    """Whether results of this build can be cached: it is on this machine, whose files can be checked.

    Other outputs than a registry, images that other builds of the session use, and remote caches need an executor.
    """
    remote = request.options.cache_from or request.options.cache_to
    forced = request.options.no_cache or request.options.no_cache_stages or request.staged
    here = all(each.shares_disk for each in placements)
    return here and not (remote or forced) and all(isinstance(each, Push) for each in request.outputs)


def find(jobs: Jobs, store: Store) -> tuple[CachedResult, ...]:
    """Return the cached results of ``jobs`` (whose pins may be unknown); none unless there is one for each."""
    found = [metadata_cache.get(store, "cached result", _key(job)) for _, job in jobs]
    if None in found:
        return ()
    try:
        return tuple(decoding.decode(_CACHED_RESULT, each) for each in found if each is not None)
    except msgspec.DecodeError:  # written by another version
        return ()


async def are_valid(
    cached: Sequence[CachedResult], jobs: Jobs, store: Store, stop: threading.Event, otherwise: Callable[[], None]
) -> bool:
    """Whether there are ``cached`` results and all their dependencies are unchanged. If not, ``otherwise`` is called.

    False when ``stop`` is set, or this is cancelled.
    """
    try:
        holding = await asyncio.to_thread(_check_valid, cached, jobs, store, stop)
    except asyncio.CancelledError:
        stop.set()
        raise
    if not holding:
        otherwise()
    return holding


def _check_valid(cached: Sequence[CachedResult], jobs: Jobs, store: Store, stop: threading.Event) -> bool:
    """As ``are_valid``, in a thread; ``stop`` ends the check."""

    def check() -> None:
        if stop.is_set():
            raise Interrupted("the check was cancelled")

    if not cached:
        return False
    rest = [(one.dependencies, job) for one, (_, job) in zip(cached, jobs, strict=True)]
    try:
        for each in (each for one in cached for each in (one.result.manifest, one.result.config)):
            blobs.read(store, each.digest, each.size)
        return inputs.unchanged(rest, store, check)
    except KanifoldError:  # executors will meet it too, and report it
        return False


async def are_published(cached: Sequence[CachedResult], jobs: Jobs, registry: Registry) -> bool:
    """Whether the registry has what the ``jobs`` would push."""
    wanted = [
        reference.parse(name).with_digest(one.result.manifest.digest)
        for one, (_, job) in zip(cached, jobs, strict=True)
        for name in job.push
    ]
    found = await asyncio.gather(*(asyncio.to_thread(publish.is_there, registry, each) for each in wanted))
    return all(found)


def replay(cached: Sequence[CachedResult], jobs: Jobs, emit: Emit) -> tuple[PlatformResult, ...]:
    """Emit the events of the cached results, and return them."""
    built: list[PlatformResult] = []
    for one, (placement, _) in zip(cached, jobs, strict=True):
        name = str(placement.platform)
        emit(events.PlatformStarted(platform=name, node=placement.node.name, how=placement.how))
        for message in (*one.events, one.result):
            emit(events.FromExecutor(platform=name, message=message))
        emit(events.PlatformEnded(platform=name, outcome="built"))
        built.append(PlatformResult(placement, one.result, NullExecutor()))
    return tuple(built)


def store_results(built: Sequence[PlatformResult], jobs: Jobs, store: Store) -> None:
    """Store the results of ``jobs`` that are cacheable: not those of jobs that have moved to a node with another disk,
    whose executor could claim any dependencies."""
    with contextlib.suppress(StoreError):  # the build has succeeded even if this fails
        for each, (_, job) in zip(built, jobs, strict=True):
            if not each.placement.shares_disk:
                continue
            if each.events and (dependencies := each.result.dependencies) is not None:
                steps = each.result.cached + each.result.ran
                result = replace(each.result, dependencies=None, cached=steps, ran=0, seconds=0.0)
                one = CachedResult(job.pins, dependencies, tuple(_replayed_events(each.events)), result)
                metadata_cache.put(store, "cached result", _key(job), msgspec.json.encode(one))


def _replayed_events(kept: Sequence[StepEvent]) -> Iterator[StepEvent]:
    """Yield the stored events as they would be if every step was cached."""
    bases: set[int] = set()
    for message in kept:
        if isinstance(message, protocol.Planned):
            bases.update(step.id for step in message.steps if step.name[:4].upper() == "FROM")
        yield (
            replace(message, seconds=0.0, cached=message.step not in bases)
            if isinstance(message, protocol.Finished)
            else message
        )


def _key(job: protocol.Job) -> str:
    """Return the key of ``job``: everything that its result depends on, except the pins; and the version of kanifold.

    The settings of registries are not part of it: content from registries is verified by the digests of the pins. Nor
    is how steps are emulated, isolated, and given their files.
    """
    options = replace(
        job.options, root="", registries=RegistrySettings(), emulator_image="", isolation="", snapshotter="auto"
    )
    same = replace(job, build="", push=(), pins=(), emulation=None, options=options)
    asked = msgspec.json.encode((__version__, newest_mtime(PACKAGES), str(host.default_platform()), same))
    return hashlib.sha256(asked).hexdigest()


@functools.cache
def newest_mtime(packages: tuple[str, ...]) -> int:
    """Return the mtime in ns of the newest module in the directories ``packages`` and below."""
    newest, places = 0, list(packages)
    while places:
        with os.scandir(places.pop()) as entries:
            for each in entries:
                if each.name.endswith(".py"):
                    newest = max(newest, each.stat().st_mtime_ns)
                elif "." not in each.name and each.name != "__pycache__":
                    places.append(each.path)
    return newest
