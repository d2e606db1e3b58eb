"""FROM: base images, from a registry or an OCI layout, selected for a platform. Layers are unpacked on first use.

Manifests and configs are kept in the store by digest, so an image that is pinned and known costs no request.
"""

from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

import msgspec
from msgspec.structs import replace

from executor.conversation import Conversation
from executor.image import config as image
from executor.image import mediatypes, selection
from executor.image.config import ImageConfig
from executor.image.digest import chain_id
from executor.image.manifest import MANIFEST_LIMIT, Descriptor, Index, Manifest, parse
from executor.protocol import Action, AskLayout, BuildWarning, Job, Tell, Transfer
from executor.registry import reference
from executor.registry.reference import Reference
from executor.rootfs import compress
from executor.rootfs.compress import Decompressed
from executor.rootfs.streams import Readable
from executor.snapshotter import unpack
from executor.snapshotter.unpack import Unpacked
from executor.solver.cache import LayerRecord
from executor.solver.inflight import InFlightBlob, RetryRead, fetch_blob
from executor.solver.inputs import Input
from executor.solver.layer import Layer, LayerBlob, LayerForm, form_of, kind_of, media_type, opened
from executor.solver.lazy import Lazy, ready
from executor.solver.lifetime import Cancellation, ScratchSpace
from executor.store import blobs, faults, locks, metadata_cache, snapshots
from executor.store.snapshots import Snapshot
from executor.store.store import Store
from platforms import Platform, decoding, extended, satisfies
from platforms.errors import ArchiveError, KanifoldError, Problem
from platforms.paths import below

if TYPE_CHECKING:
    from executor.registry.client import Client
    from executor.registry.layout import Layout
    from executor.registry.transfer import BlobWriter
    from executor.snapshotter.snapshotter import Snapshotter


_SAID_SECONDS: Final = 0.2
"""Minimum seconds between progress messages of a layer."""

# Created at import: two threads that create a decoder of the same type at once crash msgspec.
_PACKED: Final[msgspec.json.Decoder[LayerRecord]] = msgspec.json.Decoder(LayerRecord)


class Base(msgspec.Struct, frozen=True):
    """A base image."""

    name: str
    config: ImageConfig
    layers: tuple[Layer, ...]

    @property
    def tree(self) -> str:
        """The name of its file system, for cache keys."""
        return chain_id(self.config.diff_ids) or "scratch"


class BaseSource(Protocol):
    """Reads the documents and blobs of one image."""

    @property
    def origin(self) -> Reference | None:
        """The repository that has the blobs, or None."""
        ...

    def document(self, wanted: Descriptor | None) -> bytes:
        """Return the manifest or index ``wanted``; None stands for the one that the source was opened for."""
        ...

    def fetch(self, descriptor: Descriptor, writer: BlobWriter) -> None:
        """Write the blob of ``descriptor`` to ``writer``, verified."""
        ...


class RegistryBaseSource(msgspec.Struct, frozen=True):
    """An image in a registry."""

    registry: Lazy[Client]
    reference: Reference

    @property
    def origin(self) -> Reference:
        return self.reference

    def document(self, wanted: Descriptor | None) -> bytes:
        name = self.reference if wanted is None else self.reference.with_digest(wanted.digest)
        return self.registry().manifest(name)[1]

    def fetch(self, descriptor: Descriptor, writer: BlobWriter) -> None:
        self.registry().fetch(self.reference, descriptor, writer)


class LayoutBaseSource(msgspec.Struct, frozen=True):
    """An image in an OCI layout on this machine."""

    layout: Layout
    root: Descriptor

    @property
    def origin(self) -> None:
        return None

    def document(self, wanted: Descriptor | None) -> bytes:
        return self.layout.read(wanted or self.root)

    def fetch(self, descriptor: Descriptor, writer: BlobWriter) -> None:
        for block in self.layout.chunks(descriptor):
            writer.write(block)


class Bases(msgspec.Struct, frozen=True):
    """Resolves the base images of one job. Thread-safe."""

    job: Job
    store: Store
    conversation: Conversation
    cancellation: Cancellation
    scratch: ScratchSpace
    snapshotter: Snapshotter
    registry: Lazy[Client]

    def from_registry(self, input_: Input, name: str, platform: Platform) -> Base:
        """Return the image ``name`` for ``platform``, at its pinned digest, which accounts for ``input_``."""
        wanted = reference.parse(name).completed()
        pinned = next((pin.digest for pin in self.job.pins if pin.name == name), "")
        if pinned:
            wanted = wanted.with_digest(pinned)
        input_.mark_pinned(wanted.digest)
        return self._base(name, RegistryBaseSource(self.registry, wanted), wanted.digest, platform)

    def from_layout(self, name: str, location: str, platform: Platform) -> Base:
        """Return the image in the OCI layout ``location`` (``PATH[:TAG|@DIGEST]``) for ``platform``."""
        from executor.registry import layout, oci_archive

        path, wanted = layout.split_location(location)
        opened = oci_archive.read_archive(path) if os.path.isfile(path) else layout.read_layout(path)
        root = opened.find(wanted)
        return self._base(name, LayoutBaseSource(opened, root), root.digest, platform)

    def from_sent_layout(self, name: str, wanted: str, platform: Platform) -> Base:
        """Return the image ``wanted`` (a tag or digest; "" as for a layout) of the context ``name``, whose layout is on
        the orchestrator's disk. The files that are needed are requested one by one."""
        from executor.registry import layout

        opened = layout.open_layout(f"the layout of the context {name}", partial(self._sent_file, name))
        root = opened.find(wanted)
        return self._base(name, LayoutBaseSource(opened, root), root.digest, platform)

    def _sent_file(self, name: str, file: str) -> tuple[BinaryIO, int]:
        """Return ``file`` of the layout that is the context ``name``, and its size. Raises ``OSError`` if there is
        none."""
        path = below(self.scratch.new(), "file")
        with open(path, "w+b") as out:
            os.unlink(path)
            if not self.conversation.ask_into(out.write, AskLayout(name, file)):
                raise FileNotFoundError(errno.ENOENT, "the orchestrator does not have it", file)
            size = out.tell()
            out.seek(0)
            return os.fdopen(os.dup(out.fileno()), "rb"), size

    def _base(self, name: str, source: BaseSource, digest: str, platform: Platform) -> Base:
        document = parse(self._document(source, digest, None))
        if isinstance(document, Index):
            _, document = selection.find(name, document, platform, partial(self._read, source))
        config = image.parse(self._small_blob(source, document.config))
        if len(config.diff_ids) != len(document.layers):
            raise ArchiveError(
                f"{name} is malformed",
                why=f"{len(document.layers)} layers, but {len(config.diff_ids)} diff ids",
            )
        if config.platform.architecture and not satisfies(platform, config.platform):
            problem = Problem(
                "InvalidBaseImagePlatform",
                f"Base image {name} was pulled with platform {config.platform}, expected {platform}",
                remedy="use an image that has the platform, or say FROM --platform= what you mean",
            )
            self.conversation.send(BuildWarning(problem, problem.kind))
        return Base(
            name, replace(config, platform=extended(platform, config.platform)), self._layers(source, document, config)
        )

    def _layers(self, source: BaseSource, manifest: Manifest, config: ImageConfig) -> tuple[Layer, ...]:
        """Return the layers of ``manifest``, bottom first. Downloads nothing."""
        layers: list[Layer] = []
        created = [each.created for each in config.history if not each.empty_layer]
        form = form_of(config.platform)
        wanted = mediatypes.to_oci(media_type(self.job))
        for position, (descriptor, diff_id) in enumerate(zip(manifest.layers, config.diff_ids, strict=True)):
            download = _LayerDownload(self, source, descriptor, InFlightBlob())
            content = Lazy(download.path)
            chain = chain_id(config.diff_ids[: position + 1])
            part = _BaseLayer(self, descriptor, diff_id, chain, tuple(layers), content, download.arrival, form)
            layer = Layer(
                snapshot=Lazy(part.snapshot),
                blob=ready(LayerBlob(diff_id, replace(descriptor, annotations=(), platform=None))),
                content=content,
                origin=source.origin,
                created=created[position] if position < len(created) else "",
                unpacked=part.is_unpacked,
            )
            if self.job.options.compression.force and mediatypes.to_oci(descriptor.media_type) != wanted:
                made = _Recompressed(self, layer, descriptor)
                blob = Lazy(made.blob)
                layer = replace(layer, blob=blob, content=Lazy(partial(made.path, blob)), origin=None)
            layers.append(layer)
        return tuple(layers)

    def _document(self, source: BaseSource, digest: str, wanted: Descriptor | None) -> bytes:
        if digest and blobs.has(self.store, digest):
            return blobs.read(self.store, digest, limit=MANIFEST_LIMIT)
        data = source.document(wanted)
        with blobs.ingest(self.store, digest or None) as ingest:
            ingest.write(data)
            ingest.commit()
        return data

    def _read(self, source: BaseSource, descriptor: Descriptor) -> bytes:
        """Return a manifest, an index or a config of ``source``."""
        if descriptor.media_type in mediatypes.INDEXES | mediatypes.MANIFESTS:
            return self._document(source, descriptor.digest, descriptor)
        return self._small_blob(source, descriptor)

    def _small_blob(self, source: BaseSource, descriptor: Descriptor) -> bytes:
        if descriptor.size > image.CONFIG_LIMIT:
            raise ArchiveError("image config too large", why=f"{descriptor.size} bytes")
        _LayerDownload(self, source, descriptor, InFlightBlob()).path()
        return blobs.read(self.store, descriptor.digest, limit=image.CONFIG_LIMIT)


class _LayerDownload(msgspec.Struct, frozen=True):
    """Downloads one blob of ``source`` into the store, once for all processes that need it."""

    bases: Bases
    source: BaseSource
    descriptor: Descriptor
    arrival: InFlightBlob

    def path(self) -> str:
        """Download the blob unless the store has it, and return its path."""
        store, digest = self.bases.store, self.descriptor.digest
        try:
            if not blobs.has(store, digest):
                with locks.lock(store, f"blob {digest}", cancel=self.bases.cancellation.future):
                    if not blobs.has(store, digest):
                        self.bases.cancellation.check()
                        fetch_blob(store, self.descriptor, self.source.fetch, self.arrival)
        finally:
            self.arrival.end()  # also if another process has downloaded it
        return blobs.path(store, digest)


class _Recompressed(msgspec.Struct, frozen=True):
    """``layer``, whose blob has ``descriptor``, recompressed with the compression of the job."""

    bases: Bases
    layer: Layer
    descriptor: Descriptor

    def blob(self) -> LayerBlob:
        """Return the new blob, which is made once for all processes that need it."""
        store, diff_id = self.bases.store, self.layer.blob().diff_id
        with locks.lock(store, f"recompress {self._name}", cancel=self.bases.cancellation.future):
            packed = self._find() or self._make(diff_id)
        return LayerBlob(diff_id, Descriptor(media_type(self.bases.job), packed.digest, packed.size))

    def path(self, blob: Lazy[LayerBlob]) -> str:
        """Return the path of ``blob`` in the store."""
        return blobs.path(self.bases.store, blob().descriptor.digest)

    @property
    def _name(self) -> str:
        return f"{self.descriptor.digest} {kind_of(self.bases.job.options.compression)}"

    def _find(self) -> LayerRecord | None:
        found = metadata_cache.get(self.bases.store, "recompressed", self._name)
        packed = None if found is None else decoding.decode(_PACKED, found)
        return packed if packed is not None and blobs.has(self.bases.store, packed.digest) else None

    def _make(self, diff_id: str) -> LayerRecord:
        store, wanted, digest = self.bases.store, self.bases.job.options.compression, self.descriptor.digest
        self.layer.content()
        self.bases.conversation.send(Transfer(Action.COMPRESS, digest, 0))
        temporary = store.session.temporary()
        try:
            with faults.translated(store.root, "cannot compress a layer"), blobs.open(store, digest) as file:
                made = compress.recompress(opened(file), temporary, wanted.kind, wanted.level)
            if made.diff_id != diff_id:
                raise _wrong_diff_id(digest, made.diff_id, diff_id)
            blobs.adopt(store, temporary, made.digest, made.size)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
        packed = LayerRecord(kind_of(wanted), made.digest, made.size)
        metadata_cache.put(store, "recompressed", self._name, msgspec.json.encode(packed))
        self.bases.conversation.send(Transfer(Action.COMPRESS, digest, made.size, made.size))
        return packed


class _BaseLayer(msgspec.Struct, frozen=True):
    """Unpacks one layer of a base image into a snapshot."""

    bases: Bases
    descriptor: Descriptor
    diff_id: str
    chain: str
    """The chain id of the layers from the bottom up to this one."""
    below: tuple[Layer, ...]
    content: Lazy[str]
    arrival: InFlightBlob
    """The download of ``content``."""
    form: LayerForm

    def is_unpacked(self) -> bool:
        """Whether the store has the snapshot."""
        return self._find() is not None

    def snapshot(self) -> Snapshot:
        """Return the snapshot of the layer. A layer that needs its parents is unpacked on top of them, once per
        chain."""
        bases, descriptor = self.bases, self.descriptor
        found = self._find()
        if found is not None:
            return found
        bases.conversation.send(Transfer(Action.UNPACK, descriptor.digest, 0, descriptor.size))
        with locks.lock(bases.store, f"directory {self.chain}", cancel=bases.cancellation.future):
            found = self._find()
            if found is None:
                bases.cancellation.check()
                found = self._unpack()
        bases.conversation.send(Transfer(Action.UNPACK, descriptor.digest, descriptor.size, descriptor.size))
        return found

    def _find(self) -> Snapshot | None:
        store = self.bases.store
        return snapshots.find(store, self.form.key(self.diff_id)) or snapshots.find(store, self.form.key(self.chain))

    def _unpack(self) -> Snapshot:
        store, digest, meant = self.bases.store, self.descriptor.digest, self.form.meant
        draft = snapshots.prepare(store)
        try:
            here = blobs.has(store, digest)
            unpacked = None if here else self._unpack_arriving(draft.fs)
            if unpacked is None or (unpacked.diff_id != self.diff_id and self.arrival.void):
                snapshots.discard(store, draft)
                draft = snapshots.prepare(store)
                self.content()
                with blobs.open_unverified(store, digest) as file:  # the diff id verifies it
                    unpacked = unpack.unpack(self._read(file), draft.fs, limits=unpack.UnpackLimits(), meant=meant)
            if unpacked.needs_parents and self.below:
                snapshots.discard(store, draft)
                return self._apply()
            self._check(unpacked)
            return snapshots.commit(
                store, draft, diff_id=self.diff_id, size=unpacked.occupied, keys=(self.form.key(self.diff_id),)
            )
        except BaseException as error:
            if os.path.isdir(draft.fs):
                snapshots.discard(store, draft)
            if isinstance(error, ArchiveError) and blobs.has(store, digest):
                blobs.verify(store, digest)  # the image may be well, and our copy damaged
            raise

    def _apply(self) -> Snapshot:
        """Return the snapshot of a layer that has to be unpacked on top of its parents."""
        snapshotter = self.bases.snapshotter
        active = snapshotter.prepare(tuple(each.snapshot() for each in self.below))
        try:
            with blobs.open_unverified(self.bases.store, self.descriptor.digest) as file:
                self._check(snapshotter.apply(active, self._read(file), unpack.UnpackLimits(), self.form.meant))
            return snapshotter.commit(active, keys=(self.form.key(self.chain),))
        except BaseException:
            snapshotter.remove(active)
            raise

    def _check(self, unpacked: Unpacked) -> None:
        """Raise ``ArchiveError`` unless ``unpacked`` is the layer that the image names."""
        if unpacked.diff_id != self.diff_id:
            raise _wrong_diff_id(self.descriptor.digest, unpacked.diff_id, self.diff_id)

    def _read(self, stream: Readable) -> Decompressed:
        """Return the decompressed archive in ``stream``, with progress messages while it is read."""
        return opened(_Shown(stream, self.descriptor, self.bases.conversation.send))

    def _unpack_arriving(self, directory: str) -> Unpacked | None:
        """Unpack the layer while it is being downloaded. The bytes are verified when the download ends.

        Returns None when another process has downloaded the layer, or when bytes had to be downloaded again; it is then
        in the store. Raises the errors of the download before those of the unpacking, which they cause.
        """
        content, arrival = self.content, self.arrival
        with ThreadPoolExecutor(1, "download") as beside:
            coming = beside.submit(content)
            following = arrival.follow()
            if following is None:
                coming.result()
                return None
            with following:
                try:
                    unpacked = unpack.unpack(
                        self._read(following), directory, limits=unpack.UnpackLimits(), meant=self.form.meant
                    )
                except (KanifoldError, RetryRead):
                    coming.result()
                    if arrival.void:
                        return None
                    raise
            coming.result()
            return unpacked


def _wrong_diff_id(digest: str, found: str, wanted: str) -> ArchiveError:
    return ArchiveError(f"layer {digest} is not what its image says", why=f"its diff id is {found}, not {wanted}")


class _Shown:
    """A stream that sends progress messages while it is read."""

    def __init__(self, stream: Readable, whole: Descriptor, tell: Tell) -> None:
        self._stream = stream
        self._whole = whole
        self._tell = tell
        self._done = 0
        self._said = time.monotonic()

    def read(self, size: int, /) -> bytes:
        """Return the next bytes."""
        data = self._stream.read(size)
        self._done += len(data)
        now = time.monotonic()
        if now - self._said >= _SAID_SECONDS:
            self._said = now
            whole = self._whole
            # Never the total: that is sent when the directory is complete.
            self._tell(Transfer(Action.UNPACK, whole.digest, min(self._done, whole.size - 1), whole.size))
        return data
