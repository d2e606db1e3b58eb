"""Exports the image of a job: writes config and manifest, and pushes blobs and the manifest."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Final

import msgspec
from msgspec.structs import replace

from executor import protocol
from executor.image import config as image
from executor.image import mediatypes
from executor.image.config import History, ImageConfig
from executor.image.digest import sha256
from executor.image.manifest import Descriptor, Manifest, describe
from executor.registry import reference
from executor.registry.reference import Reference
from executor.solver.caching import CachedStep
from executor.solver.layer import Layer
from executor.solver.lazy import Lazy
from executor.solver.lifetime import Cancellation, together
from executor.solver.services import Services
from executor.solver.state import State
from executor.store import blobs, locks, metadata_cache
from executor.store.store import Store
from platforms.decoding import decode
from platforms.errors import RegistryError
from platforms.platform import Platform, extended

if TYPE_CHECKING:
    from executor.registry.client import Client

# Made here, by one thread: two that make the decoder of one type at the same moment crash msgspec.
_SENT: Final[msgspec.json.Decoder[tuple[str, tuple[str, ...]]]] = msgspec.json.Decoder(tuple[str, tuple[str, ...]])
"""The digest of the manifest that was pushed to a repository, and those of its layers."""
_SMALL: Final = 16 << 10
"""Bytes up to which a new layer or config is sent without asking whether the registry has it."""


class Pushes(msgspec.Struct, frozen=True):
    """The pushes of blobs to the job's repositories, in the background."""

    store: Store
    registry: Lazy[Client]
    background: ThreadPoolExecutor
    cancellation: Cancellation
    build: str
    """``protocol.Job.build``."""
    targets: tuple[Reference, ...]
    waiting: dict[tuple[Reference, Layer], Future[None]] = msgspec.field(default_factory=dict)

    def layer(self, layer: Layer) -> None:
        """Start packing and pushing ``layer``."""
        self.background.submit(layer.blob)
        for target in self.targets:
            self.waiting[target, layer] = self.background.submit(self._send_new, target, layer)

    def finish(self, target: Reference, layers: Sequence[Layer], there: Collection[str]) -> None:
        """Wait until all ``layers`` are in the repository ``target``, which has those with the digests ``there``."""
        for layer in layers:
            if (target, layer) not in self.waiting and layer.blob().descriptor.digest not in there:
                self.waiting[target, layer] = self.background.submit(self._send, target, layer)
        for each in list(self.waiting.values()):
            each.result()

    def _send_new(self, target: Reference, layer: Layer) -> None:
        self.cancellation.check()
        descriptor = layer.blob().descriptor
        if descriptor.size > _SMALL:
            self._send(target, layer)
            return
        with self._once(target, descriptor.digest) as needed:
            if needed:
                self.registry().send(target, descriptor, partial(self._content, layer))

    def _send(self, target: Reference, layer: Layer) -> None:
        self.cancellation.check()
        origin = layer.origin
        sources = (origin.repository,) if origin is not None and origin.registry == target.registry else ()
        descriptor = layer.blob().descriptor
        with self._once(target, descriptor.digest) as needed:
            if needed:
                self.registry().push(target, descriptor, partial(self._content, layer), mount_from=sources)

    @contextmanager
    def _once(self, target: Reference, digest: str) -> Iterator[bool]:
        """Yield whether the blob has to be pushed: False if another job of this build has pushed it.

        A second push can do harm: Docker's registry rewrites the link file of the blob in place, and may read it at the
        same time for the manifest of the first.
        """
        store, build = self.store, self.build
        name = f"{target.registry}/{target.repository} {digest}"
        with locks.lock(store, f"push {name}", cancel=self.cancellation.future):
            needed = not build or metadata_cache.get(store, "pushed", f"{name} {build}") is None
            yield needed
            if needed and build:
                metadata_cache.put(store, "pushed", f"{name} {build}", b"")

    def _content(self, layer: Layer) -> BinaryIO:
        layer.content()
        return blobs.open(self.store, layer.blob().descriptor.digest)


def pushes(job: protocol.Job, services: Services) -> Pushes:
    """Return the pushes of ``job``. Starts none."""
    targets = tuple(reference.parse(each) for each in job.push)
    return Pushes(services.store, services.registry, services.background, services.cancellation, job.build, targets)


class Exporter(msgspec.Struct, frozen=True):
    """Exports the image of one job."""

    job: protocol.Job
    platform: Platform
    """The target platform."""
    services: Services
    pushes: Pushes

    def export(self, state: State, made: Sequence[CachedStep]) -> tuple[Manifest, Descriptor]:
        """Write ``state`` as an image; returns its manifest, and the manifest's descriptor."""
        job, store = self.job, self.services.store
        layers = state.layers
        if job.options.compression.force:
            together(self.services.background, [layer.blob for layer in layers])
        found = [layer.blob() for layer in layers]
        config = image.encode(finished_config(job, self.platform, state, tuple(each.diff_id for each in found)))
        if any(isinstance(each.to, protocol.CacheInImage) for each in job.options.cache_to):
            from executor.solver import sharing

            config = sharing.inline(config, job, made)
        config_type = mediatypes.OCI_CONFIG if job.oci else mediatypes.DOCKER_CONFIG
        translate = mediatypes.to_oci if job.oci else mediatypes.to_docker
        manifest = Manifest(
            mediatypes.OCI_MANIFEST if job.oci else mediatypes.DOCKER_MANIFEST,
            Descriptor(config_type, sha256(config), len(config)),
            tuple(replace(each.descriptor, media_type=translate(each.descriptor.media_type)) for each in found),
            job.annotations,
        )
        descriptor, data = describe(manifest)
        _keep(store, config, manifest.config.digest)
        _keep(store, data, descriptor.digest)
        if job.local:
            for layer in layers:
                layer.content()
        new = bool(self.pushes.waiting)  # a new layer: no repository has the image
        for target in self.pushes.targets:
            name = target.repository_only().with_digest(descriptor.digest)
            # The orchestrator has a connection already; to open one here takes longer than to ask.
            if not new and self.services.conversation.ask(protocol.AskManifest(str(name))) is not None:
                continue  # a registry that has a manifest has its blobs
            self._push(target, layers, manifest, data)
            self._note_sent(target, descriptor.digest, manifest)
        return manifest, descriptor

    def _push(self, target: Reference, layers: Sequence[Layer], manifest: Manifest, data: bytes) -> None:
        """Push ``manifest``, encoded as ``data``, and its blobs to ``target``."""
        client, config = self.services.registry(), manifest.config
        send = client.send if config.size <= _SMALL else client.push
        content = partial(blobs.open, self.services.store, config.digest)
        sent = self.services.background.submit(send, target, config, content)
        there = self._there(target, [each.blob().descriptor.digest for each in layers])
        self.pushes.finish(target, layers, there)
        sent.result()
        name = target.repository_only().with_digest(sha256(data))
        try:
            client.put_manifest(name, data, manifest.media_type)
        except RegistryError:
            if not there:
                raise
            self.pushes.finish(target, layers, ())
            client.put_manifest(name, data, manifest.media_type)

    def _there(self, target: Reference, wanted: Sequence[str]) -> Collection[str]:
        """Return which of the blobs ``wanted`` are in ``target`` because the manifest of the previous push is.

        A registry that has a manifest has its blobs, so one request by the orchestrator, which has a connection,
        replaces one for each layer.
        """
        data = metadata_cache.get(self.services.store, "sent", self._fact(target))
        if data is None:
            return ()
        before, digests = decode(_SENT, data)
        known = set(digests).intersection(wanted)
        question = protocol.AskManifest(str(target.repository_only().with_digest(before)))
        return known if len(known) > 1 and self.services.conversation.ask(question) is not None else ()

    def _note_sent(self, target: Reference, digest: str, manifest: Manifest) -> None:
        sent = (digest, tuple(each.digest for each in manifest.layers))
        metadata_cache.put(self.services.store, "sent", self._fact(target), msgspec.json.encode(sent))

    def _fact(self, target: Reference) -> str:
        return f"{self.platform} {target.registry}/{target.repository}"


def _keep(store: Store, data: bytes, digest: str) -> None:
    """Add ``data`` to the store unless it is there."""
    if not blobs.has(store, digest):
        with blobs.ingest(store, digest) as ingest:
            ingest.write(data)
            ingest.commit()


def finished_config(job: protocol.Job, target: Platform, state: State, diff_ids: tuple[str, ...]) -> ImageConfig:
    """Return the image's config, with the requested platform, the labels of the command line, and dated history."""
    config = state.config
    labels = dict(config.labels) | dict(job.options.labels)
    history = dated(config.history, state.base_history, job.epoch)
    created = next((each.created for each in reversed(history) if each.created), "")
    return replace(
        config,
        platform=state.platform if job.options.implicit_platform else extended(target, config.platform),
        labels=tuple(sorted(labels.items())),
        history=history,
        created=created or _rfc3339(job.epoch) or _rfc3339(0),
        diff_ids=diff_ids,
    )


def dated(history: tuple[History, ...], base: int, epoch: int | None) -> tuple[History, ...]:
    """Return ``history`` with a time for each entry; times of new entries are at most ``epoch`` (seconds).

    A step without a layer gets the time of the first new layer, and after that of the layer before it (BuildKit,
    exporter/containerimage/writer.go): its own time would make the image of a cached build a new one.
    """
    limit = _rfc3339(epoch)
    created = ""
    missing = False
    for entry in history:
        if entry.created:
            created = entry.created
            if missing:
                break
        else:
            missing = True
    out: list[History] = []
    missing = False
    for position, entry in enumerate(history):
        if entry.created:
            if missing:
                created = entry.created
        else:
            missing = True
        when = entry.created or created
        if limit and position >= base and (not when or when > limit):
            when = limit
        out.append(replace(entry, created=when))
    return tuple(out)


def _rfc3339(epoch: int | None) -> str:
    return "" if epoch is None else datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
