"""FROM: an image by reference or from an OCI layout, chosen for a platform, its layers unpacked when somebody looks.

Manifests and configs are kept in the store by digest, so an image that is pinned and known costs no request.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

import msgspec
from msgspec.structs import replace

from executor.image import config as image
from executor.image import mediatypes, selection
from executor.image.config import ImageConfig
from executor.image.digest import chain_id
from executor.image.manifest import MANIFEST_LIMIT, Descriptor, Index, Manifest, parse
from executor.protocol import Action, AskLayout, BuildWarning, Transfer
from executor.registry import reference
from executor.registry.reference import Reference
from executor.rootfs import compress
from executor.rootfs.streams import Readable
from executor.snapshotter import unpack
from executor.snapshotter.unpack import Unpacked
from executor.solver.cache import LayerRecord
from executor.solver.inflight import InFlightBlob, RetryRead, fetch_blob
from executor.solver.inputs import Input
from executor.solver.layer import Layer, LayerBlob, kind_of, media_type, opened
from executor.solver.once import Once, known
from executor.solver.workshop import Workshop
from executor.store import blobs, faults, locks, metadata_cache, snapshots
from executor.store.snapshots import Snapshot
from platforms import Platform, decoding, satisfies
from platforms.errors import ArchiveError, KanifoldError, Problem
from platforms.paths import below

if TYPE_CHECKING:
    from executor.registry.layout import Layout
    from executor.registry.transfer import BlobWriter


_SAID_SECONDS: Final = 0.2
"""Between two words on how far an unpacking is."""

# Made here, by one thread: two that make the decoder of one type at the same moment crash msgspec.
_PACKED: Final[msgspec.json.Decoder[LayerRecord]] = msgspec.json.Decoder(LayerRecord)


class Base(msgspec.Struct, frozen=True):
    """An image to build on."""

    name: str
    config: ImageConfig
    layers: tuple[Layer, ...]

    @property
    def tree(self) -> str:
        """The name of its file system, for cache keys."""
        return chain_id(self.config.diff_ids) or "scratch"


class BaseSource(Protocol):
    """Where an image's documents and blobs are read from."""

    @property
    def origin(self) -> Reference | None:
        """The repository, when it is one."""
        ...

    def document(self, wanted: Descriptor | None) -> bytes:
        """A manifest or index of the source; None for the one that the source was opened for."""
        ...

    def fetch(self, descriptor: Descriptor, writer: BlobWriter) -> None:
        """Write the blob of ``descriptor`` to ``writer``, verified."""
        ...


class RegistryBaseSource(msgspec.Struct, frozen=True):
    """An image in a registry."""

    workshop: Workshop
    reference: Reference

    @property
    def origin(self) -> Reference:
        return self.reference

    def document(self, wanted: Descriptor | None) -> bytes:
        name = self.reference if wanted is None else self.reference.with_digest(wanted.digest)
        return self.workshop.registry().manifest(name)[1]

    def fetch(self, descriptor: Descriptor, writer: BlobWriter) -> None:
        self.workshop.registry().fetch(self.reference, descriptor, writer)


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


def from_registry(workshop: Workshop, taken: Input, name: str, platform: Platform) -> Base:
    """The image ``name`` for ``platform``, at the digest that the orchestrator pinned it to; as an input, ``taken``."""
    wanted = reference.parse(name).completed()
    pinned = next((pin.digest for pin in workshop.job.pins if pin.name == name), "")
    if pinned:
        wanted = wanted.with_digest(pinned)
    taken.pinned(wanted.digest)
    return _base(workshop, name, RegistryBaseSource(workshop, wanted), wanted.digest, platform)


def from_layout(workshop: Workshop, name: str, location: str, platform: Platform) -> Base:
    """The image in the OCI layout ``location`` (``PATH[:TAG|@DIGEST]``) for ``platform``."""
    from executor.registry import archive, layout

    path, wanted = layout.split_location(location)
    opened = archive.read_archive(path) if os.path.isfile(path) else layout.read_layout(path)
    root = opened.find(wanted)
    return _base(workshop, name, LayoutBaseSource(opened, root), root.digest, platform)


def from_sent_layout(workshop: Workshop, name: str, wanted: str, platform: Platform) -> Base:
    """The image ``wanted`` (a tag or digest; "" as for a layout) of the context ``name``, whose layout the orchestrator
    has: the files of it that are needed are asked for one by one."""
    from executor.registry import layout

    opened = layout.open_layout(f"the layout of the context {name}", partial(_sent_file, workshop, name))
    root = opened.find(wanted)
    return _base(workshop, name, LayoutBaseSource(opened, root), root.digest, platform)


def _sent_file(workshop: Workshop, name: str, file: str) -> tuple[BinaryIO, int]:
    """The ``file`` of the layout that is the context ``name``, and its size. Raises ``OSError`` if there is none."""
    path = below(workshop.scratch(), "file")
    with open(path, "w+b") as out:
        os.unlink(path)
        if not workshop.conversation.ask_into(out.write, AskLayout(name, file)):
            raise FileNotFoundError(errno.ENOENT, "the orchestrator does not have it", file)
        size = out.tell()
        out.seek(0)
        return os.fdopen(os.dup(out.fileno()), "rb"), size


def _base(workshop: Workshop, name: str, source: BaseSource, digest: str, platform: Platform) -> Base:
    document = parse(_document(workshop, source, digest, None))
    if isinstance(document, Index):
        _, document = selection.find(name, document, platform, partial(_read, workshop, source))
    config = image.parse(_small_blob(workshop, source, document.config))
    if len(config.diff_ids) != len(document.layers):
        raise ArchiveError(
            f"{name} is malformed",
            why=f"{len(document.layers)} layers, but {len(config.diff_ids)} diff ids",
        )
    if config.platform.architecture and not satisfies(platform, config.platform):
        workshop.tell(
            BuildWarning(
                Problem(
                    "InvalidBaseImagePlatform",
                    f"Base image {name} was pulled with platform {config.platform}, expected {platform}",
                    remedy="use an image that has the platform, or say FROM --platform= what you mean",
                ),
                "InvalidBaseImagePlatform",
            )
        )
    return Base(name, replace(config, platform=platform), base_layers(workshop, source, document, config))


def base_layers(workshop: Workshop, source: BaseSource, manifest: Manifest, config: ImageConfig) -> tuple[Layer, ...]:
    """The layers of ``manifest``, bottom first; nothing is downloaded yet."""
    layers: list[Layer] = []
    created = [each.created for each in config.history if not each.empty_layer]
    for position, (descriptor, diff_id) in enumerate(zip(manifest.layers, config.diff_ids, strict=True)):
        below = tuple(layers)
        arrival = InFlightBlob()
        content = Once(_content(workshop, source, descriptor, arrival))
        chain = chain_id(config.diff_ids[: position + 1])
        part = _Part(workshop, descriptor, diff_id, chain, below, content, arrival)
        layer = Layer(
            snapshot=Once(_snapshot(part)),
            blob=known(LayerBlob(diff_id, replace(descriptor, annotations=(), platform=None))),
            content=content,
            origin=source.origin,
            created=created[position] if position < len(created) else "",
            unpacked=partial(_is_unpacked, part),
        )
        wanted = mediatypes.to_oci(media_type(workshop.job))
        if workshop.job.options.compression.force and mediatypes.to_oci(descriptor.media_type) != wanted:
            layer = _recompressed(workshop, layer, descriptor)
        layers.append(layer)
    return tuple(layers)


def _recompressed(workshop: Workshop, layer: Layer, descriptor: Descriptor) -> Layer:
    """``layer``, whose blob has ``descriptor``, with the compression of the job: the same files, another blob."""
    store, wanted = workshop.store, workshop.job.options.compression
    name = f"{descriptor.digest} {kind_of(wanted)}"

    def look() -> LayerRecord | None:
        found = metadata_cache.get(store, "recompressed", name)
        packed = None if found is None else decoding.decode(_PACKED, found)
        return packed if packed is not None and blobs.has(store, packed.digest) else None

    def pack() -> LayerBlob:
        diff_id = layer.blob().diff_id
        with locks.lock(store, f"recompress {name}", cancel=workshop.cancelled):
            packed = look()
            if packed is None:
                layer.content()
                workshop.tell(Transfer(Action.COMPRESS, descriptor.digest, 0))
                temporary = store.session.temporary()
                try:
                    with (
                        faults.translated(store.root, "cannot compress a layer"),
                        blobs.open(store, descriptor.digest) as file,
                    ):
                        made = compress.recompress(opened(file), temporary, wanted.kind, wanted.level)
                    if made.diff_id != diff_id:
                        raise ArchiveError(
                            f"layer {descriptor.digest} is not what its image says",
                            why=f"its diff id is {made.diff_id}, not {diff_id}",
                        )
                    blobs.adopt(store, temporary, made.digest, made.size)
                finally:
                    if os.path.exists(temporary):
                        os.unlink(temporary)
                packed = LayerRecord(kind_of(wanted), made.digest, made.size)
                metadata_cache.put(store, "recompressed", name, msgspec.json.encode(packed))
                workshop.tell(Transfer(Action.COMPRESS, descriptor.digest, made.size, made.size))
        return LayerBlob(diff_id, Descriptor(media_type(workshop.job), packed.digest, packed.size))

    blob = Once(pack)
    return replace(layer, blob=blob, content=Once(lambda: blobs.path(store, blob().descriptor.digest)), origin=None)


def _document(workshop: Workshop, source: BaseSource, digest: str, wanted: Descriptor | None) -> bytes:
    if digest and blobs.has(workshop.store, digest):
        return blobs.read(workshop.store, digest, limit=MANIFEST_LIMIT)
    data = source.document(wanted)
    with blobs.ingest(workshop.store, digest or None) as ingest:
        ingest.write(data)
        ingest.commit()
    return data


def _read(workshop: Workshop, source: BaseSource, descriptor: Descriptor) -> bytes:
    """A document or a config of ``source``."""
    if descriptor.media_type in mediatypes.INDEXES | mediatypes.MANIFESTS:
        return _document(workshop, source, descriptor.digest, descriptor)
    return _small_blob(workshop, source, descriptor)


def _small_blob(workshop: Workshop, source: BaseSource, descriptor: Descriptor) -> bytes:
    if descriptor.size > image.CONFIG_LIMIT:
        raise ArchiveError("image config too large", why=f"{descriptor.size} bytes")
    _content(workshop, source, descriptor, InFlightBlob())()
    return blobs.read(workshop.store, descriptor.digest, limit=image.CONFIG_LIMIT)


def _content(
    workshop: Workshop, source: BaseSource, descriptor: Descriptor, arrival: InFlightBlob
) -> Callable[[], str]:
    def download() -> str:
        store, digest = workshop.store, descriptor.digest
        try:
            if not blobs.has(store, digest):
                with locks.lock(store, f"blob {digest}", cancel=workshop.cancelled):
                    if not blobs.has(store, digest):
                        workshop.check()
                        fetch_blob(store, descriptor, source.fetch, arrival)
        finally:
            arrival.end()  # also when somebody else has brought it
        return blobs.path(store, digest)

    return download


class _Part(msgspec.Struct, frozen=True):
    """A layer of a base that is to become a directory."""

    workshop: Workshop
    descriptor: Descriptor
    diff_id: str
    chain: str
    """The chain id of the layers from the bottom up to this one."""
    below: Sequence[Layer]
    content: Once[str]
    arrival: InFlightBlob
    """Of what ``content`` downloads."""


def _is_unpacked(part: _Part) -> bool:
    """Whether the store has the layer's directory."""
    store = part.workshop.store
    return (snapshots.find(store, part.diff_id) or snapshots.find(store, part.chain)) is not None


def _snapshot(part: _Part) -> Callable[[], Snapshot]:
    """Unpack a layer for itself; a layer that relies on those below it is unpacked on top of them, once per chain."""

    def make() -> Snapshot:
        workshop, descriptor, diff_id, chain = part.workshop, part.descriptor, part.diff_id, part.chain
        store = workshop.store
        found = snapshots.find(store, diff_id) or snapshots.find(store, chain)
        if found is not None:
            return found
        workshop.tell(Transfer(Action.UNPACK, descriptor.digest, 0, descriptor.size))
        with locks.lock(store, f"directory {chain}", cancel=workshop.cancelled):
            found = snapshots.find(store, diff_id) or snapshots.find(store, chain)
            if found is None:
                workshop.check()
                found = _unpack(part)
        workshop.tell(Transfer(Action.UNPACK, descriptor.digest, descriptor.size, descriptor.size))
        return found

    return make


def _unpack(part: _Part) -> Snapshot:
    workshop, descriptor, diff_id, arrival = part.workshop, part.descriptor, part.diff_id, part.arrival
    store = workshop.store
    draft = snapshots.prepare(store)
    try:
        here = blobs.has(store, descriptor.digest)
        unpacked = None if here else _unpack_arriving(part, draft.fs)
        if unpacked is None or (unpacked.diff_id != diff_id and arrival.void):
            snapshots.discard(store, draft)
            draft = snapshots.prepare(store)
            part.content()
            with blobs.open_unverified(store, descriptor.digest) as file:  # the diff id verifies it
                unpacked = unpack.unpack(opened(_Shown(file, part)), draft.fs, limits=unpack.UnpackLimits())
        if unpacked.needs_parents and part.below:
            snapshots.discard(store, draft)
            return _apply(part)
        _check(part, unpacked)
        return snapshots.commit(
            store,
            draft,
            diff_id=diff_id,
            size=unpacked.occupied,
            keys=(diff_id,),
        )
    except BaseException as error:
        if os.path.isdir(draft.fs):
            snapshots.discard(store, draft)
        if isinstance(error, ArchiveError) and blobs.has(store, descriptor.digest):
            blobs.verify(store, descriptor.digest)  # the image may be well, and our copy damaged
        raise


def _apply(part: _Part) -> Snapshot:
    """The snapshot of a layer that is only right on top of those below it."""
    workshop = part.workshop
    active = workshop.snapshotter.prepare(tuple(each.snapshot() for each in part.below))
    try:
        with blobs.open_unverified(workshop.store, part.descriptor.digest) as file:
            _check(part, workshop.snapshotter.apply(active, opened(_Shown(file, part)), unpack.UnpackLimits()))
        return workshop.snapshotter.commit(active, keys=(part.chain,))
    except BaseException:
        workshop.snapshotter.remove(active)
        raise


def _check(part: _Part, unpacked: Unpacked) -> None:
    """Raise ``ArchiveError`` unless ``unpacked`` is the layer that the image names."""
    if unpacked.diff_id != part.diff_id:
        raise ArchiveError(
            f"layer {part.descriptor.digest} is not what its image says",
            why=f"its diff id is {unpacked.diff_id}, not {part.diff_id}",
        )


class _Shown:
    """A layer's blob that says, now and then, how much of it was read."""

    def __init__(self, stream: Readable, part: _Part) -> None:
        self._stream = stream
        self._part = part
        self._done = 0
        self._said = time.monotonic()

    def read(self, size: int, /) -> bytes:
        """The next bytes of the blob."""
        data = self._stream.read(size)
        self._done += len(data)
        now = time.monotonic()
        if now - self._said >= _SAID_SECONDS:
            self._said = now
            whole = self._part.descriptor
            # Never all of it: that is said when the directory is there.
            self._part.workshop.tell(Transfer(Action.UNPACK, whole.digest, min(self._done, whole.size - 1), whole.size))
        return data


def _unpack_arriving(part: _Part, directory: str) -> Unpacked | None:
    """Unpack the layer while its content is downloaded: what came of bytes that were verified only afterwards.

    None when it was not downloaded by this job, or came wrong at first; it is then in the store. Raises what
    the download does, whose error is the cause of any other.
    """
    content, arrival = part.content, part.arrival
    with ThreadPoolExecutor(1, "download") as beside:
        coming = beside.submit(content)
        following = arrival.follow()
        if following is None:
            coming.result()
            return None
        with following:
            try:
                unpacked = unpack.unpack(opened(_Shown(following, part)), directory, limits=unpack.UnpackLimits())
            except (KanifoldError, RetryRead):
                coming.result()
                if arrival.void:
                    return None
                raise
        coming.result()
        return unpacked
