"""Looks steps up in the build cache, imports them from remote caches, or makes and records them.

A step that is not found is made under a lock on its key: of several builds that need the same step, one makes it and
the others use its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import msgspec
from msgspec.structs import replace

from executor import protocol
from executor.rootfs.entry import Entry
from executor.solver import cache, keys, treename
from executor.solver.cache import CacheEntry
from executor.solver.layer import Layer
from executor.solver.lazy import Lazy
from executor.solver.services import Memory, Services
from executor.solver.step import Made, Step
from executor.solver.treename import Observed
from executor.store import locks
from platforms import debug
from platforms.errors import ContextError

if TYPE_CHECKING:
    from executor.solver.cache_miss import CacheMiss


class ImageLayers(Protocol):
    """Receives new layers of the image, to pack and push them in the background."""

    def layer(self, layer: Layer) -> None:
        """Start packing ``layer``. Does not block."""
        ...


class StepKey(msgspec.Struct, frozen=True):
    """The cache key of a step."""

    local: str
    remote: str
    sources: tuple[str, ...]
    """The remote caches on whose entries the step's inputs rest."""


def step_key(observed: Observed, job: protocol.Job) -> StepKey:
    """Return the key of a step of ``job`` with these inputs."""
    sources = treename.sources(observed)
    times = (job.epoch, job.latest)
    key = keys.key("step", treename.local(observed), *times)
    return StepKey(key, keys.key("step", treename.remote(observed), *times) if sources else key, sources)


class SolvedStep(msgspec.Struct, frozen=True):
    """A step with its result."""

    keys: tuple[StepKey, ...]
    """The keys under which it is recorded, the step's own first."""
    entry: CacheEntry
    made: Layer | None = None
    """The layer if the step was made now; None if it was found."""
    missed: str = ""
    """Why it was made."""


class CachedStep(msgspec.Struct, frozen=True):
    """A step with its layer, as it is exported to remote caches."""

    key: str
    outcome: CacheEntry
    layer: Layer
    in_image: bool
    deferred: bool
    """Whether the layer is not on this machine."""


class _RecomputedEntries(msgspec.Struct, frozen=True):
    """The entries of the step with ``result``, computed again when they are iterated."""

    made: Lazy[Made]
    result: str

    def __iter__(self) -> Iterator[Entry]:
        made = self.made()
        if made.entries is None or made.result != self.result:
            raise ContextError("what is copied changed during the build", remedy="build again")
        return iter(made.entries)


ShareSteps = Callable[[list[CachedStep]], object]
"""Receives a step that was just made, under each of its keys."""


class StepCache:
    """The build cache as the steps of one job use it. Thread-safe."""

    def __init__(
        self, job: protocol.Job, services: Services, memory: Memory, image: ImageLayers, share: ShareSteps
    ) -> None:
        self._job = job
        self._share = share
        self._services = services
        self._inputs = memory.inputs
        self._store = services.store
        self._image = image
        self.steps: list[CachedStep] = []
        """All steps with a layer, in the order of their completion."""

    def find_or_make(self, step: Step, *, fresh: bool, in_image: bool) -> SolvedStep:
        """Return ``step`` with its result, from a cache or made now.

        A ``fresh`` step is not taken from a cache, unless another job of this build has made it. The layer of a step
        that is ``in_image`` is packed as soon as it is made.
        """
        seen = step.key(self._inputs.add("step"))
        key = step_key(seen, self._job)
        # 1. The key, in the store.
        entry = self._look_up(step, key, fresh=fresh)
        if entry is not None:
            return SolvedStep((key,), entry)
        with locks.lock(self._store, f"step {key.local}", cancel=self._services.cancellation.future):
            # 2. Once more, as another build may have made the step meanwhile; then in the remote caches.
            entry = self._look_up(step, key, fresh=fresh)
            if entry is None:
                entry = self._import(step, key, fresh=fresh)
            if entry is not None:
                return SolvedStep((key,), entry)
            # 3. The key by content, which reads files, in the store and in the remote caches.
            observed = step.content_key()
            if observed is None:
                return self._make(step, (key,), self._miss(step, seen, fresh=fresh), in_image=in_image)
            content_key = step_key(observed, self._job)
            entry = self._look_up(step, content_key, fresh=fresh)
            if entry is None:
                entry = self._import(step, content_key, fresh=fresh)
            if entry is None:
                return self._make(step, (key, content_key), self._miss(step, seen, fresh=fresh), in_image=in_image)
            if not entry.imported:
                cache.put_entry(self._store, key.local, entry, step.text)
            return SolvedStep((key, content_key), entry)

    def layer(self, step: Step, found: SolvedStep, *, in_image: bool) -> Layer:
        """Return the layer of ``found`` and add it to ``steps``."""
        entry, layer = found.entry, found.made
        self._inputs.found(found.keys[0].local, entry)
        held = layer is not None or cache.is_available(self._store, entry.layer)
        again = not held and step.by_content and self._is_ours(entry)
        if layer is None:
            # Another job of this build has the result, but may not have packed it yet, and may fail before it does.
            entries = _RecomputedEntries(Lazy(step.make), entry.result) if again else None
            layer = self._services.layers.from_result(
                entry.layer, entry.created, entries, _below(step), step.state.form
            )
            if in_image and self._is_ours(entry):
                self._image.layer(layer)
        deferred = not held and not again
        steps = [CachedStep(each.remote, entry, layer, in_image, deferred) for each in found.keys]
        self.steps += steps
        if found.made is not None:
            self._share(steps)
        return layer

    def _look_up(self, step: Step, key: StepKey, *, fresh: bool) -> CacheEntry | None:
        """Return the store's entry for ``key`` if it is usable: its layer is available or can be computed again."""
        asked = [each.name for each in self._job.options.cache_from]
        found = cache.get_entry(self._store, key.local) or cache.get_imported_entry(self._store, key.remote, asked)
        if found is None:
            return None
        ours = self._is_ours(found)
        if ours and step.by_content:
            return found
        return found if (ours or not fresh) and cache.is_usable(self._store, found.layer) else None

    def _import(self, step: Step, key: StepKey, *, fresh: bool) -> CacheEntry | None:
        """Look ``key`` up in the remote caches, and record the entry for builds that use the same cache."""
        store = self._store
        if not self._job.options.cache_from:
            return None
        found = self._services.remote_caches().find(key.remote, str(step.state.platform), fresh=fresh)
        debug.log("remote cache look-up", key=key.remote, found="no" if found is None else found[1].name)
        if found is None:
            return None
        entry, source = found
        name = entry.name
        outcome = CacheEntry(entry.result, entry.created, imported=name, source=source.name)
        known = cache.get_layer_info(store, name)
        if entry.blob is None:
            cache.put_layer_info(store, name, replace(known, deferred=True))
        else:
            blobs = (*(each for each in known.blobs if each.kind != entry.blob.kind), entry.blob)
            caches = tuple(dict.fromkeys((*known.caches, source.location)))
            cache.put_layer_info(store, name, cache.LayerInfo(entry.diff_id, blobs, entry.machines, caches))
        cache.put_imported_entry(store, key.remote, source.name, outcome, step.text)
        return outcome

    def _miss(self, step: Step, seen: Observed, *, fresh: bool) -> CacheMiss:
        """Return what is known of why ``step``, which observes ``seen``, has to be made."""
        from executor.solver import cache_miss  # a build that is cached whole does without

        times = (self._job.epoch, self._job.latest)
        return cache_miss.compare(self._store, step, treename.local(seen), times, fresh=fresh)

    def _make(self, step: Step, known: tuple[StepKey, ...], miss: CacheMiss, *, in_image: bool) -> SolvedStep:
        """Make ``step`` and record it under the keys ``known``."""
        made = step.make()
        entry = CacheEntry(made.result, self._services.now(), self._job.build)
        layer = self._services.layers.from_result(
            made.result, entry.created, made.entries, _below(step), step.state.form
        )
        # Before the step is recorded, so that this job, which has the entries, packs the layer.
        if in_image:
            self._image.layer(layer)
        else:
            # Now, while the files of the context are those of the key.
            self._services.background.submit(layer.snapshot)
        for each in known:
            cache.put_entry(self._store, each.local, entry, step.text)
        miss.record(self._store)
        return SolvedStep(known, entry, layer, miss.reason)

    def _is_ours(self, found: CacheEntry) -> bool:
        """Whether a job of this build has made the step."""
        return bool(found.build) and found.build == self._job.build


def _below(step: Step) -> tuple[Layer, ...]:
    """Return the layers that the result is a diff against; none if it is the same on all."""
    return () if step.by_content else step.state.layers
