"""Images as local outputs: OCI layouts, and archives for ``docker load``."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import BinaryIO, assert_never, cast

import msgspec
from msgspec.structs import replace

from executor.registry import layout, oci_archive
from executor.registry.layout import REF_NAME, BlobSource
from executor.store import stat_cache
from executor.store.store import Store
from orchestrator import load
from orchestrator.load import Loader
from orchestrator.outputs import DockerArchive, ImagesOutput, ImageStore, OciArchive, OciLayout, writes_stdout
from orchestrator.request import BuildRequest
from orchestrator.results import BuildResult, Image
from orchestrator.view import events
from orchestrator.view.events import Emit
from platforms.errors import Interrupted, StoreError, UsageError


class Targets(msgspec.Struct, frozen=True):
    """Where images come from and, for an ``ImageStore``, go to."""

    store: Store
    loader: Loader | None


async def write(output: ImagesOutput, result: BuildResult, request: BuildRequest, targets: Targets, emit: Emit) -> None:
    """Write a local output of images, an ``ImageStore`` by the loader. Cancelling leaves nothing of it."""
    cancelled = threading.Event()
    place = _shown(output, targets)
    emit(events.Publishing(what=place))
    writing = asyncio.create_task(asyncio.to_thread(_write, output, result, request, targets, cancelled))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.gather(writing, return_exceptions=True)
        raise
    emit(events.Published(ref=place, digest=result.root.digest))


def _shown(output: ImagesOutput, targets: Targets) -> str:
    if isinstance(output, ImageStore):
        assert targets.loader is not None
        return targets.loader.name
    return "stdout" if writes_stdout(output) else output.dest


def _write(
    output: ImagesOutput, result: BuildResult, request: BuildRequest, targets: Targets, cancelled: threading.Event
) -> None:
    names = [*output.image.names, *(str(each) for each in request.tags)]
    roots = [
        replace(
            result.root,
            annotations=(*result.root.annotations, (layout.CONTAINERD_NAME, name), (REF_NAME, _tag_of(name))),
        )
        for name in names
    ] or [result.root]
    sources = _sources(result, cancelled)
    match output:
        case OciLayout():
            layout.write_layout(output.dest, roots, sources, _digests(targets.store))
        case OciArchive():
            with opened(output.dest) as file:
                oci_archive.write_archive(file, roots, sources)
        case ImageStore():
            assert targets.loader is not None

            def archived(file: BinaryIO) -> None:
                if len(result.images) == 1:
                    oci_archive.write_docker_archive(file, names, result.images[0].manifest, roots, sources)
                else:
                    oci_archive.write_archive(file, roots, sources)

            load.run(targets.loader, archived, cancelled)
        case DockerArchive():
            if len(result.images) != 1:
                raise UsageError(
                    "--output type=docker holds one platform",
                    why=f"this build has {len(result.images)}",
                    remedy="use type=oci, which docker load reads where its image store is containerd's",
                )
            with opened(output.dest) as file:
                oci_archive.write_docker_archive(file, names, result.images[0].manifest, roots, sources)
        case _:
            assert_never(output)


class _Cancellable(io.RawIOBase):
    """A file that cannot be read any more once ``cancelled`` is set."""

    def __init__(self, file: BinaryIO, cancelled: threading.Event) -> None:
        self._file = file
        self._cancelled = cancelled

    def read(self, size: int = -1) -> bytes:
        if self._cancelled.is_set():
            raise Interrupted("the build was cancelled")
        return self._file.read(size)

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
        super().close()


def _digests(store: Store) -> layout.DigestCache:
    """What ``store`` knows of files in layouts; in this boot only, for a power cut may take what they hold."""

    def known_as(found: os.stat_result) -> tuple[bytes, bytes]:
        name, stamp = stat_cache.cache_key(stat_cache.stat_signature(found))
        return f"{store.boot} ".encode() + name, stamp

    def recall(found: os.stat_result) -> str:
        return stat_cache.get(store, [known_as(found)])[0] or ""

    def note(seen: Sequence[tuple[os.stat_result, str]]) -> None:
        with contextlib.suppress(StoreError):  # the image is there, whatever is remembered of it
            stat_cache.put_renamed(store, [(*known_as(found), digest) for found, digest in seen])

    return layout.DigestCache(recall, note)


def _opened(image: Image, digest: str, cancelled: threading.Event) -> BinaryIO:
    return cast(BinaryIO, _Cancellable(image.content(digest), cancelled))


def _sources(result: BuildResult, cancelled: threading.Event) -> list[BlobSource]:
    """Every blob of ``result`` once, the root last."""
    found: dict[str, BlobSource] = {}

    def check() -> None:
        if cancelled.is_set():
            raise Interrupted("the build was cancelled")

    for each in result.images:
        for descriptor in (*each.manifest.layers, each.manifest.config):
            found[descriptor.digest] = BlobSource(
                descriptor.digest,
                descriptor.size,
                partial(_opened, each, descriptor.digest, cancelled),
                check,
            )
        found[each.descriptor.digest] = _inline(each.descriptor.digest, each.data)
    found[result.root.digest] = _inline(result.root.digest, result.data)
    return list(found.values())


def _inline(digest: str, data: bytes) -> BlobSource:
    return BlobSource(digest, len(data), lambda: io.BytesIO(data))


def _tag_of(name: str) -> str:
    return name.rpartition("/")[2].partition("@")[0].partition(":")[2] or "latest"


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """The file ``path``, which is there once all has been written; ``-`` or "" is stdout."""
    if path in ("", "-"):
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with oci_archive.archive_file(path) as file:
        yield file
