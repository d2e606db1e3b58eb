"""A layer of an image: its snapshot, its blob and its digest, each of which is made on first use.

A stage that is only copied from never compresses its layers; an image that is only copied into never unpacks its base.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final, assert_never

import msgspec

from executor import protocol
from executor.image import mediatypes
from executor.image.manifest import Descriptor
from executor.registry.reference import Reference
from executor.registry.reference import parse as parse_reference
from executor.rootfs import compress, elf_audit, tarwriter
from executor.rootfs.compress import Decompressed
from executor.rootfs.entry import Entry, Kind
from executor.rootfs.streams import Readable
from executor.snapshotter import materialise, unpack
from executor.solver import cache, content
from executor.solver.cache import ElfFiles, LayerInfo, LayerRecord
from executor.solver.lazy import Lazy
from executor.solver.lifetime import Cancellation
from executor.store import blobs, faults, locks, removal, snapshots
from executor.store.snapshots import Snapshot
from executor.store.store import Store
from platforms import Platform
from platforms.errors import Interrupted, KanifoldError, StoreError

if TYPE_CHECKING:
    from executor.registry.client import Client
    from executor.snapshotter.snapshotter import Snapshotter
    from executor.solver.remote_cache import RemoteCaches

_PATHS_KEPT: Final = 2000
"""Paths of ELF files that are recorded for a layer and architecture."""


class LayerForm(msgspec.Struct, frozen=True):
    """How a layer is written to an archive, and read from one."""

    name: str
    """For cache keys; "" for the usual form."""
    arranged: Callable[[Iterable[Entry]], Iterable[Entry]]
    """Returns the entries of the archive for those of a file system."""
    header: Callable[[Entry], bytes]
    """Returns the header of an entry of the archive."""
    meant: Callable[[Entry], Entry | None]
    """Returns the entry of a file system for one of the archive; None for one that is not part of it."""

    @property
    def key_parts(self) -> tuple[str, ...]:
        """What a cache key contains of it: nothing for the usual form."""
        return (self.name,) if self.name else ()

    def key(self, name: str) -> str:
        """Return the key in the store of what is called ``name`` in the usual form."""
        return f"{self.name} {name}" if self.name else name


def _unchanged(entries: Iterable[Entry]) -> Iterable[Entry]:
    return entries


USUAL: Final = LayerForm("", _unchanged, tarwriter.header, unpack.layer_entry)
"""The form of layers for Linux, and for every other system but Windows."""


def form_of(platform: Platform) -> LayerForm:
    """Return the form of the layers of a base image for ``platform``, and of the layers upon them."""
    if platform.os.lower() != "windows":
        return USUAL
    from executor.snapshotter import windows_layer as windows  # late: few builds are for Windows

    return LayerForm("windows", windows.arranged, windows.header, windows.meant)


class LayerBlob(msgspec.Struct, frozen=True):
    """A layer as an image names it."""

    diff_id: str
    descriptor: Descriptor


class Layer(msgspec.Struct, frozen=True, eq=False):
    """One layer. Its parts are made on the first call, which may block."""

    snapshot: Lazy[Snapshot]
    """The files."""
    blob: Lazy[LayerBlob]
    content: Lazy[str]
    """The path of the blob in the store. The blob of a base image is downloaded on the first call."""
    origin: Reference | None = None
    """The repository that has the blob, when it came from one."""
    created: str = ""
    """RFC 3339."""
    machines: Lazy[tuple[ElfFiles, ...]] | None = None
    """The ELF files in it, by architecture; None for a layer of a base image, which is not audited."""
    unpacked: Callable[[], bool] = lambda: True
    """Whether the store has the snapshot of a base image's layer, so that no step has to wait for it."""


class LayerLost(StoreError):
    """A layer that is recorded in the cache is not available: its step has to be made again."""


class Layers(msgspec.Struct, frozen=True):
    """Creates the layers of one job's steps. Thread-safe."""

    job: protocol.Job
    store: Store
    tell: protocol.Tell
    cancellation: Cancellation
    snapshotter: Snapshotter
    registry: Lazy[Client]
    remote_caches: Lazy[RemoteCaches]

    def from_result(
        self, result: str, created: str, entries: Iterable[Entry] | None, below: tuple[Layer, ...], form: LayerForm
    ) -> Layer:
        """Return the layer of a step's ``result``: of its ``entries``, or if these are None, of what the store has. In
        the store and in the image, its blob has the form ``form``.

        ``entries`` may be iterated several times, also by several threads. A snapshot is a diff against the layers
        ``below``, of which there are none for a result that is named by its content.
        """
        made = _ResultLayer(self, result, entries, below, form)
        blob = Lazy(made.blob)
        origin = next(
            (
                parse_reference(each.name).repository_only()
                for each in cache.get_layer_info(self.store, result).caches
                if isinstance(each, protocol.CacheInRegistry)
            ),
            None,
        )
        content, machines = Lazy(partial(made.content, blob)), Lazy(partial(made.machines, blob))
        return Layer(Lazy(made.snapshot), blob, content, origin, created, machines)


class _ResultLayer(msgspec.Struct, frozen=True):
    """Makes the parts of the layer of a ``result``."""

    layers: Layers
    result: str
    entries: Iterable[Entry] | None
    below: tuple[Layer, ...]
    form: LayerForm

    def snapshot(self) -> Snapshot:
        """Return the snapshot: found, unpacked from the blob, or written from the entries."""
        layers, result = self.layers, self.result
        found = snapshots.find(layers.store, cache.snapshot_key(result))
        if found is None:
            layers.tell(protocol.Transfer(protocol.Action.WRITE, result, 0))
            with locks.lock(layers.store, f"directory {result}", cancel=layers.cancellation.future):
                found = snapshots.find(layers.store, cache.snapshot_key(result)) or self._write()
            layers.tell(protocol.Transfer(protocol.Action.WRITE, result, found.size, found.size))
        return found

    def blob(self) -> LayerBlob:
        """Return the blob with this job's compression, which is made once for all processes that need it."""
        known, packed = self._packed()
        return LayerBlob(known.diff_id, Descriptor(media_type(self.layers.job), packed.digest, packed.size))

    def content(self, blob: Lazy[LayerBlob]) -> str:
        """Return the path of ``blob`` in the store."""
        digest = blob().descriptor.digest
        self._fetch(digest)
        return blobs.path(self.layers.store, digest)

    def machines(self, blob: Lazy[LayerBlob]) -> tuple[ElfFiles, ...]:
        """Return the ELF files in the layer, which are recorded when its ``blob`` is made."""
        blob()
        return cache.get_layer_info(self.layers.store, self.result).machines

    def _write(self) -> Snapshot:
        store = self.layers.store
        known = cache.get_layer_info(store, self.result)
        diff_id = known.diff_id or None
        packed = next((each for each in known.blobs if known.caches or blobs.has(store, each.digest)), None)
        keys = (cache.snapshot_key(self.result),)
        if packed is None:
            if self.entries is None:
                raise self._lost("a cached layer has vanished")
            return materialise.write(store, content.unchanged(self.entries), keys=keys, diff_id=diff_id)
        self._fetch(packed.digest)
        draft = snapshots.prepare(store)
        try:
            with blobs.open(store, packed.digest) as file:
                unpacked = unpack.unpack(opened(file), draft.fs, limits=unpack.UnpackLimits(), meant=self.form.meant)
            if known.diff_id and unpacked.diff_id != known.diff_id:
                raise self._lost("a cached layer is not what its record says")
            if unpacked.needs_parents:
                diff_id = None  # a base with this layer unpacks it on top of those below it
            return snapshots.commit(store, draft, diff_id=diff_id, size=removal.disk_usage(draft.fs), keys=keys)
        except BaseException:
            snapshots.discard(store, draft)
            raise

    def _fetch(self, digest: str) -> None:
        """Fetch the blob ``digest`` from a remote cache unless the store has it. Raises ``LayerLost`` if none has
        it."""
        layers, store = self.layers, self.layers.store
        if blobs.has(store, digest):
            return
        with locks.lock(store, f"blob {digest}", cancel=layers.cancellation.future):
            known = cache.get_layer_info(store, self.result)
            size = next((each.size for each in known.blobs if each.digest == digest), 0)
            for location in known.caches:
                if blobs.has(store, digest):
                    return
                try:
                    layers.remote_caches().fetch_blob(location, Descriptor("", digest, size), store)
                except Interrupted:
                    raise
                except (KanifoldError, OSError) as error:
                    layers.remote_caches().lost(location.name, error)
            if not blobs.has(store, digest):
                raise self._lost("a cached layer has vanished")

    def _lost(self, what: str) -> LayerLost:
        """Forget the records of the layer, which is not available, and return the error to raise."""
        self.layers.remote_caches().forget(self.result)
        cache.put_layer_info(self.layers.store, self.result, LayerInfo())
        return LayerLost(what, remedy="build again")

    def _packed(self) -> tuple[LayerInfo, LayerRecord]:
        layers, result = self.layers, self.result
        known, packed = self._find_packed()
        if packed is not None:
            return known, packed
        layers.tell(protocol.Transfer(protocol.Action.COMPRESS, result, 0))
        with locks.lock(layers.store, f"pack {result}", cancel=layers.cancellation.future):
            known, packed = self._find_packed()
            if packed is None:
                layers.cancellation.check()
                known, packed = self._pack(known)
            layers.tell(protocol.Transfer(protocol.Action.COMPRESS, result, packed.size, packed.size))
        return known, packed

    def _find_packed(self) -> tuple[LayerInfo, LayerRecord | None]:
        """Return the records of the layer, and of its blob with this job's compression if that is available."""
        store, wanted = self.layers.store, kind_of(self.layers.job.options.compression)
        known = cache.get_layer_info(store, self.result)
        packed = next((each for each in known.blobs if each.kind == wanted), None)
        if packed is not None and not known.caches and not blobs.has(store, packed.digest):
            packed = None
        return known, packed

    def _pack(self, known: LayerInfo) -> tuple[LayerInfo, LayerRecord]:
        """Pack the layer and add the blob to its records ``known``."""
        if self.entries is None:
            made, machines = self._compress(self._diff())
        else:
            try:
                made, machines = self._compress(self.entries)
            except Interrupted:
                raise
            except KanifoldError:
                # The files may have been edited since; what steps have seen of them has not.
                if snapshots.find(self.layers.store, cache.snapshot_key(self.result)) is None:
                    raise
                made, machines = self._compress(self._diff())
        packed = LayerRecord(kind_of(self.layers.job.options.compression), made.digest, made.size)
        others = (each for each in known.blobs if each.kind != packed.kind)
        known = LayerInfo(made.diff_id, (*others, packed), known.machines or machines, known.caches)
        cache.put_layer_info(self.layers.store, self.result, known)
        return known, packed

    def _diff(self) -> Iterator[Entry]:
        """Yield the entries of the layer, compared from its snapshot."""
        found = snapshots.find(self.layers.store, cache.snapshot_key(self.result))
        if found is None:
            raise self._lost("a cached layer has vanished")
        return self.layers.snapshotter.diff(found, tuple(each.snapshot() for each in self.below))

    def _compress(self, changes: Iterable[Entry]) -> tuple[compress.CompressedLayer, tuple[ElfFiles, ...]]:
        """Write ``changes``, which are iterated once, to a blob; returns that and the ELF files among them."""
        store, wanted = self.layers.store, self.layers.job.options.compression
        machines: dict[str, _Elves] = {}
        temporary = store.session.temporary()
        try:
            with faults.translated(store.root, "cannot pack a layer"):
                entries = self.form.arranged(content.unchanged(_audited(changes, machines)))
                clamped = _clamped(entries, self.layers.job.latest)
                made = compress.pack(clamped, temporary, wanted.kind, wanted.level, self.form.header)
                blobs.adopt(store, temporary, made.digest, made.size)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
        return made, tuple(ElfFiles(name, each.count, tuple(each.paths)) for name, each in sorted(machines.items()))


def opened(file: Readable) -> Decompressed:
    """Return the decompressed archive in a layer's blob."""
    return Decompressed(file, limit=unpack.UnpackLimits().size + (4 << 30))


def kind_of(compression: protocol.Compression) -> str:
    """Return the name of ``compression`` in cache records.

    Blobs that records of earlier versions call ``gzip`` were made by another compressor: their bytes depend on the
    processor, and so they are no substitute for those of today.
    """
    name = "gzip-ng" if compression.kind is protocol.CompressionKind.GZIP else compression.kind
    return name if compression.level is None else f"{name}-{compression.level}"


def media_type(job: protocol.Job) -> str:
    """Return the media type of layers with this job's compression."""
    kind = job.options.compression.kind
    match kind:
        case protocol.CompressionKind.GZIP:
            oci = mediatypes.OCI_LAYER_GZIP
        case protocol.CompressionKind.ZSTD:
            oci = mediatypes.OCI_LAYER_ZSTD
        case protocol.CompressionKind.UNCOMPRESSED:
            oci = mediatypes.OCI_LAYER
        case _:
            assert_never(kind)
    return oci if job.oci else mediatypes.to_docker(oci)


def _clamped(entries: Iterable[Entry], latest: int | None) -> Iterable[Entry]:
    """Return ``entries`` with times of at most ``latest`` (seconds)."""
    if latest is None:
        return entries
    from msgspec.structs import replace

    limit = latest * 1_000_000_000
    return (replace(each, mtime_ns=limit) if each.mtime_ns > limit else each for each in entries)


class _Elves(msgspec.Struct):
    """ELF files of one architecture."""

    count: int = 0
    paths: list[str] = msgspec.field(default_factory=list)
    """The first ``_PATHS_KEPT`` of them."""


def _audited(entries: Iterable[Entry], found: dict[str, _Elves]) -> Iterator[Entry]:
    """Yield ``entries``, and collect their ELF files in ``found``, by architecture."""
    for entry in entries:
        if entry.kind is Kind.FILE and entry.size >= elf_audit.SMALLEST and not elf_audit.firmware(entry.path):
            name = elf_audit.machine_of_file(entry.source)
            if name is not None:
                elves = found.setdefault(name, _Elves())
                elves.count += 1
                if elves.count <= _PATHS_KEPT:
                    elves.paths.append(entry.path.decode("utf-8", "replace"))
        yield entry
