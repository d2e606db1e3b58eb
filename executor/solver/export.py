"""The end of a job: config and manifest are written, blobs pushed, and the result told."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import BinaryIO, Final

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
from executor.solver.state import State
from executor.solver.workshop import Workshop, together
from executor.store import blobs, locks, metadata_cache
from platforms.decoding import decode
from platforms.errors import RegistryError

# Made here, by one thread: two that make the decoder of one type at the same moment crash msgspec.
_SENT: Final[msgspec.json.Decoder[tuple[str, tuple[str, ...]]]] = msgspec.json.Decoder(tuple[str, tuple[str, ...]])
"""A manifest that was sent to a repository, and its layers."""
_SMALL: Final = 16 << 10
"""Bytes of a new layer or config that are sent sooner than the registry is asked whether it happens to have them."""


class Pushes(msgspec.Struct, frozen=True):
    """What is on its way to the job's repositories."""

    workshop: Workshop
    targets: tuple[Reference, ...]
    waiting: dict[tuple[str, int], Future[None]]

    def layer(self, layer: Layer) -> None:
        """Pack ``layer``, and send it, in the background."""
        self.workshop.later(layer.blob)
        for target in self.targets:
            self.waiting[str(target), id(layer)] = self.workshop.later(partial(self._send_new, target, layer))

    def finish(self, target: Reference, layers: Sequence[Layer], there: Collection[str]) -> None:
        """Return when all ``layers`` are in the repository ``target``, where those with digests ``there`` are."""
        for layer in layers:
            if (str(target), id(layer)) not in self.waiting and layer.blob().descriptor.digest not in there:
                self.waiting[str(target), id(layer)] = self.workshop.later(partial(self._send, target, layer))
        for each in list(self.waiting.values()):
            each.result()

    def _send_new(self, target: Reference, layer: Layer) -> None:
        self.workshop.check()
        descriptor = layer.blob().descriptor
        if descriptor.size > _SMALL:
            self._send(target, layer)
            return
        with self._once(target, descriptor.digest) as needed:
            if needed:
                self.workshop.registry().send(target, descriptor, partial(self._content, layer))

    def _send(self, target: Reference, layer: Layer) -> None:
        self.workshop.check()
        origin = layer.origin
        sources = (origin.repository,) if origin is not None and origin.registry == target.registry else ()
        descriptor = layer.blob().descriptor
        with self._once(target, descriptor.digest) as needed:
            if needed:
                self.workshop.registry().push(target, descriptor, partial(self._content, layer), mount_from=sources)

    @contextmanager
    def _once(self, target: Reference, digest: str) -> Iterator[bool]:
        """Whether the blob is still to be sent: no other job of this build has done so, or is about to.

        To send it again would not only be in vain: Docker's registry writes the file by which a repository knows a blob
        anew, in place, and may be reading it at that moment for the manifest of the first.
        """
        store, build = self.workshop.store, self.workshop.job.build
        name = f"{target.registry}/{target.repository} {digest}"
        with locks.lock(store, f"push {name}", cancel=self.workshop.cancelled):
            needed = not build or metadata_cache.get(store, "pushed", f"{name} {build}") is None
            yield needed
            if needed and build:
                metadata_cache.put(store, "pushed", f"{name} {build}", b"")

    def _content(self, layer: Layer) -> BinaryIO:
        layer.content()
        return blobs.open(self.workshop.store, layer.blob().descriptor.digest)


def pushes(workshop: Workshop) -> Pushes:
    """The pushes of a job, none of them begun."""
    return Pushes(workshop, tuple(reference.parse(each) for each in workshop.job.push), {})


def export(
    workshop: Workshop, state: State, sending: Pushes, made: Sequence[CachedStep]
) -> tuple[Manifest, Descriptor]:
    """Write ``state`` as an image to where the job wants it; its manifest, and the descriptor of that."""
    job, store = workshop.job, workshop.store
    layers = state.layers
    if job.options.compression.force:
        together(workshop, [layer.blob for layer in layers])
    found = [layer.blob() for layer in layers]
    config = finished_config(job, workshop, state, tuple(each.diff_id for each in found))
    config_data = image.encode(config)
    if any(isinstance(each.to, protocol.CacheInImage) for each in job.options.cache_to):
        from executor.solver import sharing

        config_data = sharing.inline(config_data, workshop, made)
    config_type = mediatypes.OCI_CONFIG if job.oci else mediatypes.DOCKER_CONFIG
    config_descriptor = Descriptor(config_type, sha256(config_data), len(config_data))
    translate = mediatypes.to_oci if job.oci else mediatypes.to_docker
    manifest = Manifest(
        mediatypes.OCI_MANIFEST if job.oci else mediatypes.DOCKER_MANIFEST,
        config_descriptor,
        tuple(replace(each.descriptor, media_type=translate(each.descriptor.media_type)) for each in found),
        job.annotations,
    )
    descriptor, manifest_data = describe(manifest)
    for data, digest in ((config_data, config_descriptor.digest), (manifest_data, descriptor.digest)):
        if not blobs.has(store, digest):
            with blobs.ingest(store, digest) as ingest:
                ingest.write(data)
                ingest.commit()
    if job.local:
        for layer in layers:
            layer.content()
    unheard_of = bool(sending.waiting)  # with a new layer
    for target in sending.targets:
        name = target.repository_only().with_digest(descriptor.digest)
        # The orchestrator has a connection: one of our own takes longer than this question.
        if not unheard_of and workshop.conversation.ask(protocol.AskManifest(str(name))) is not None:
            continue  # a registry has no manifest without what it names
        client = workshop.registry()
        send = client.send if config_descriptor.size <= _SMALL else client.push
        sent = workshop.later(
            partial(send, target, config_descriptor, partial(blobs.open, store, config_descriptor.digest))
        )
        there = _vouched_for(workshop, target, [each.descriptor.digest for each in found])
        sending.finish(target, layers, there)
        sent.result()
        try:
            client.put_manifest(name, manifest_data, manifest.media_type)
        except RegistryError:
            if not there:
                raise
            sending.finish(target, layers, ())
            client.put_manifest(name, manifest_data, manifest.media_type)
        _note_sent(workshop, target, descriptor.digest, manifest)
    return manifest, descriptor


def _vouched_for(workshop: Workshop, target: Reference, wanted: Sequence[str]) -> Collection[str]:
    """Which of the blobs ``wanted`` are in the repository because the manifest is that we sent there the last time.

    A registry has no manifest without what it names. So one question, which the orchestrator has a connection for,
    stands for one a layer.
    """
    data = metadata_cache.get(workshop.store, "sent", _place(workshop, target))
    if data is None:
        return ()
    before, digests = decode(_SENT, data)
    known = set(digests).intersection(wanted)
    name = str(target.repository_only().with_digest(before))
    return known if len(known) > 1 and workshop.conversation.ask(protocol.AskManifest(name)) is not None else ()


def _note_sent(workshop: Workshop, target: Reference, digest: str, manifest: Manifest) -> None:
    sent = (digest, tuple(each.digest for each in manifest.layers))
    metadata_cache.put(workshop.store, "sent", _place(workshop, target), msgspec.json.encode(sent))


def _place(workshop: Workshop, target: Reference) -> str:
    return f"{workshop.platform} {target.registry}/{target.repository}"


def finished_config(job: protocol.Job, workshop: Workshop, state: State, diff_ids: tuple[str, ...]) -> ImageConfig:
    """The image's config: the platform that was asked for, labels of the command line, and times for all history."""
    config = state.config
    labels = dict(config.labels) | dict(job.options.labels)
    history = dated(config.history, state.base_history, job.epoch)
    created = next((each.created for each in reversed(history) if each.created), "")
    platform = workshop.platform if not job.options.implicit_platform else state.platform
    return replace(
        config,
        platform=platform,
        labels=tuple(sorted(labels.items())),
        history=history,
        created=created or _stamp(job.epoch) or _stamp(0),
        diff_ids=diff_ids,
    )


def dated(history: tuple[History, ...], base: int, epoch: int | None) -> tuple[History, ...]:
    """``history`` with a time for every entry, and none of the new ones after ``epoch`` (seconds).

    A step without a layer gets the time of the first new layer, and after that of the layer before it (BuildKit,
    exporter/containerimage/writer.go): its own time would make the image of a cached build a new one.
    """
    limit = _stamp(epoch)
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


def _stamp(epoch: int | None) -> str:
    return "" if epoch is None else datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
