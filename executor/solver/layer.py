"""A layer of an image in the making: its directory, its blob and its digest, each made when somebody first needs it.

A stage that is only copied from never compresses its layers; an image that is only copied into never unpacks its base.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec

from executor import protocol
from executor.image import mediatypes
from executor.image.manifest import Descriptor
from executor.registry.reference import Reference
from executor.registry.reference import parse as parse_reference
from executor.rootfs import compress, elf
from executor.rootfs.compress import Decompressed
from executor.rootfs.entry import Entry, Kind
from executor.rootfs.streams import Readable
from executor.snapshotter import materialise, unpack
from executor.solver import cache, content
from executor.solver.cache import ElfFiles, LayerInfo, LayerRecord
from executor.solver.once import Once
from executor.solver.workshop import Workshop
from executor.store import blobs, faults, locks, removal, snapshots
from executor.store.snapshots import Snapshot
from platforms.errors import Interrupted, KanifoldError, StoreError

_PATHS_KEPT: Final = 2000
"""Paths of foreign binaries that are remembered for a layer and architecture."""


class LayerBlob(msgspec.Struct, frozen=True):
    """A layer as an image names it."""

    diff_id: str
    descriptor: Descriptor


class Layer(msgspec.Struct, frozen=True, eq=False):
    """One layer. The calls may block: they make what they return when it is not there yet."""

    snapshot: Once[Snapshot]
    """The files."""
    blob: Once[LayerBlob]
    content: Once[str]
    """The blob's path in the store: downloaded when it is a base's."""
    origin: Reference | None = None
    """The repository that has the blob, when it came from one."""
    created: str = ""
    """RFC 3339."""
    machines: Callable[[], tuple[ElfFiles, ...]] | None = None
    """The ELF files in it, by architecture; None for a base's layer, which is not ours to judge."""
    unpacked: Callable[[], bool] = lambda: True
    """Whether the store has the directory of a base's layer, so that nobody has to wait for it."""


def from_result(
    workshop: Workshop,
    result: str,
    created: str,
    entries: Iterable[Entry] | None,
    below: Sequence[Layer],
) -> Layer:
    """The layer of a step's ``result``: from ``entries`` (the change as data), or from what the store has of it.

    ``entries`` can be gone through more than once, by several threads at the same time. A directory of the store is
    compared with the layers ``below``: none when the result is named by its content, which is then the same on any.
    """
    store = workshop.store

    def snapshot() -> Snapshot:
        name = cache.snapshot_key(result)
        found = snapshots.find(store, name)
        if found is None:
            workshop.tell(protocol.Transfer(protocol.Action.WRITE, result, 0))
            with locks.lock(store, f"directory {result}", cancel=workshop.cancelled):
                found = snapshots.find(store, name)
                if found is None:
                    found = _make_directory(workshop, result, entries)
            workshop.tell(protocol.Transfer(protocol.Action.WRITE, result, found.size, found.size))
        return found

    def pack() -> LayerBlob:
        known, packed = _packed(workshop, result, entries, below)
        return LayerBlob(known.diff_id, Descriptor(media_type(workshop.job), packed.digest, packed.size))

    def machines() -> tuple[ElfFiles, ...]:
        blob()
        return cache.known(store, result).machines

    blob = Once(pack)

    def in_store() -> str:
        digest = blob().descriptor.digest
        _bring(workshop, result, digest)
        return blobs.path(store, digest)

    origin = next(
        (
            parse_reference(each.name).repository_only()
            for each in cache.known(store, result).caches
            if isinstance(each, protocol.CacheInRegistry)
        ),
        None,
    )
    return Layer(Once(snapshot), blob, Once(in_store), origin, created, machines)


class LayerLost(StoreError):
    """A layer that the cache had promised is not to be had: its step has to be done again."""


def _bring(workshop: Workshop, result: str, digest: str) -> None:
    """See that the blob ``digest`` of ``result`` is in the store: from an outside cache, when it is not.

    Raises ``LayerLost`` when no cache can give it.
    """
    store = workshop.store
    if blobs.has(store, digest):
        return
    from executor.solver import remote_cache  # which few builds have

    with locks.lock(store, f"blob {digest}", cancel=workshop.cancelled):
        known = cache.known(store, result)
        size = next((each.size for each in known.blobs if each.digest == digest), 0)
        for location in known.caches:
            if blobs.has(store, digest):
                return
            try:
                remote_cache.at(location, workshop.registry).fetch_blob(Descriptor("", digest, size), store)
            except Interrupted:
                raise
            except (KanifoldError, OSError) as error:
                workshop.exchange().lost(location.name, error)
        if not blobs.has(store, digest):
            raise forgotten(workshop, result, "a cached layer has vanished")


def forgotten(workshop: Workshop, result: str, what: str) -> LayerLost:
    """The error to raise when the layer of ``result`` is not to be had. From now on nobody expects it."""
    workshop.exchange().forget(result)
    cache.note_known(workshop.store, result, LayerInfo())
    return LayerLost(what, remedy="build again")


def _make_directory(workshop: Workshop, result: str, entries: Iterable[Entry] | None) -> Snapshot:
    """The directory of ``result``, unpacked from its blob or written from its entries."""
    store = workshop.store
    known = cache.known(store, result)
    diff_id = known.diff_id or None
    packed = next((each for each in known.blobs if known.caches or blobs.has(store, each.digest)), None)
    keys = (cache.snapshot_key(result),)
    if packed is None:
        if entries is None:
            raise forgotten(workshop, result, "a cached layer has vanished")
        return materialise.write(store, content.unchanged(entries), keys=keys, diff_id=diff_id)
    _bring(workshop, result, packed.digest)
    draft = snapshots.prepare(store)
    try:
        with blobs.open(store, packed.digest) as file:
            unpacked = unpack.unpack(opened(file), draft.fs, limits=unpack.UnpackLimits())
        if known.diff_id and unpacked.diff_id != known.diff_id:
            raise forgotten(workshop, result, "a cached layer is not what its record says")
        if unpacked.needs_parents:
            diff_id = None  # a base with this layer unpacks it on top of those below it
        return snapshots.commit(
            store,
            draft,
            diff_id=diff_id,
            size=removal.disk_usage(draft.fs),
            keys=keys,
        )
    except BaseException:
        snapshots.discard(store, draft)
        raise


def opened(file: Readable) -> Decompressed:
    """The archive in a layer's blob, whatever its compression."""
    return Decompressed(file, limit=unpack.UnpackLimits().size + (4 << 30))


def kind_of(compression: protocol.Compression) -> str:
    """The name under which a blob of this compression is remembered."""
    return compression.kind if compression.level is None else f"{compression.kind}-{compression.level}"


def media_type(job: protocol.Job) -> str:
    """What layers with this job's compression are."""
    oci = {
        "gzip": mediatypes.OCI_LAYER_GZIP,
        "zstd": mediatypes.OCI_LAYER_ZSTD,
        "uncompressed": mediatypes.OCI_LAYER,
    }[job.options.compression.kind]
    return oci if job.oci else mediatypes.to_docker(oci)


def _packed(
    workshop: Workshop, result: str, entries: Iterable[Entry] | None, below: Sequence[Layer]
) -> tuple[LayerInfo, LayerRecord]:
    """``result`` as a blob with this job's compression, made by one process for all that wait for it."""
    store, wanted = workshop.store, kind_of(workshop.job.options.compression)

    def look() -> tuple[LayerInfo, LayerRecord | None]:
        known = cache.known(store, result)
        return known, next(
            (each for each in known.blobs if each.kind == wanted and (known.caches or blobs.has(store, each.digest))),
            None,
        )

    known, packed = look()
    if packed is not None:
        return known, packed
    workshop.tell(protocol.Transfer(protocol.Action.COMPRESS, result, 0))
    with locks.lock(store, f"pack {result}", cancel=workshop.cancelled):
        known, packed = look()
        if packed is not None:
            workshop.tell(protocol.Transfer(protocol.Action.COMPRESS, result, packed.size, packed.size))
            return known, packed
        workshop.check()
        if entries is None:
            made, machines = _pack(workshop, _scanned(workshop, result, below))
        else:
            try:
                made, machines = _pack(workshop, entries)
            except Interrupted:
                raise
            except KanifoldError:
                # The files may have been edited since; what steps have seen of them has not.
                if snapshots.find(store, cache.snapshot_key(result)) is None:
                    raise
                made, machines = _pack(workshop, _scanned(workshop, result, below))
        workshop.tell(protocol.Transfer(protocol.Action.COMPRESS, result, made.size, made.size))
        packed = LayerRecord(wanted, made.digest, made.size)
        known = LayerInfo(
            made.diff_id,
            (*(each for each in known.blobs if each.kind != wanted), packed),
            known.machines or machines,
            known.caches,
        )
        cache.note_known(store, result, known)
        return known, packed


def _scanned(workshop: Workshop, result: str, below: Sequence[Layer]) -> Iterator[Entry]:
    """The change of ``result``, read back from its directory."""
    found = snapshots.find(workshop.store, cache.snapshot_key(result))
    if found is None:
        raise forgotten(workshop, result, "a cached layer has vanished")
    return workshop.snapshotter.diff(found, tuple(each.snapshot() for each in below))


def _pack(workshop: Workshop, changes: Iterable[Entry]) -> tuple[compress.CompressedLayer, tuple[ElfFiles, ...]]:
    """``changes`` as a blob in the store, and the ELF files among them; they are gone through once."""
    store, wanted = workshop.store, workshop.job.options.compression
    machines: dict[str, _Elves] = {}
    temporary = store.session.temporary()
    try:
        with faults.translated(store.root, "cannot pack a layer"):
            entries = _clamped(content.unchanged(_audited(changes, machines)), workshop.job.latest)
            made = compress.pack(entries, temporary, wanted.kind, wanted.level)
            blobs.adopt(store, temporary, made.digest, made.size)
            return made, tuple(ElfFiles(name, each.count, tuple(each.paths)) for name, each in sorted(machines.items()))
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _clamped(entries: Iterable[Entry], latest: int | None) -> Iterable[Entry]:
    """``entries`` with no time after ``latest`` (seconds)."""
    if latest is None:
        return entries
    from msgspec.structs import replace

    limit = latest * 1_000_000_000
    return (replace(each, mtime_ns=limit) if each.mtime_ns > limit else each for each in entries)


class _Elves(msgspec.Struct):
    """ELF files of one architecture."""

    count: int = 0
    paths: list[str] = msgspec.field(default_factory=list)
    """The first of them."""


def _audited(entries: Iterable[Entry], found: dict[str, _Elves]) -> Iterator[Entry]:
    """``entries``, whose ELF files are noted in ``found``, by architecture."""
    for entry in entries:
        if entry.kind is Kind.FILE and entry.size >= elf.SMALLEST and not elf.firmware(entry.path):
            name = elf.machine_of_file(entry.source)
            if name is not None:
                elves = found.setdefault(name, _Elves())
                elves.count += 1
                if elves.count <= _PATHS_KEPT:
                    elves.paths.append(entry.path.decode("utf-8", "replace"))
        yield entry
