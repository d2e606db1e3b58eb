"""Images as local outputs: OCI layouts, and archives of the kinds that are loaded elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO, cast

from msgspec.structs import replace

from executor.registry import archive, layout
from executor.registry.layout import REF_NAME, BlobSource
from orchestrator import load
from orchestrator.fanout import Emit
from orchestrator.load import Loader
from orchestrator.outputs import Output
from orchestrator.publish import Image, Product
from orchestrator.request import Request
from orchestrator.view import events
from platforms.errors import Interrupted, UsageError


async def write(output: Output, product: Product, request: Request, loader: Loader | None, emit: Emit) -> None:
    """Write a local output of images, into ``loader`` if it is of kind ``load``. Cancelling leaves nothing of it."""
    cancelled = threading.Event()
    writing = asyncio.create_task(asyncio.to_thread(_write, output, product, request, loader, cancelled))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.gather(writing, return_exceptions=True)
        raise
    place = loader.name if output.kind == "load" and loader is not None else output.dest or "stdout"
    emit(events.Published(ref=place, digest=product.root.digest))


def _write(
    output: Output, product: Product, request: Request, loader: Loader | None, cancelled: threading.Event
) -> None:
    names = [*output.names, *(str(each) for each in request.tags)]
    roots = [
        replace(product.root, annotations=((layout.CONTAINERD_NAME, name), (REF_NAME, _tag_of(name)))) for name in names
    ] or [product.root]
    sources = _sources(product, cancelled)
    match output.kind:
        case "oci" if not output.archive:
            layout.write_layout(output.dest or "oci-layout", roots, sources)
        case "oci":
            with opened(output.dest) as file:
                archive.write_archive(file, roots, sources)
        case "load":
            assert loader is not None

            def archived(file: BinaryIO) -> None:
                if len(product.images) == 1:
                    archive.write_docker_archive(file, names, product.images[0].manifest, roots, sources)
                else:
                    archive.write_archive(file, roots, sources)

            load.run(loader, archived, cancelled)
        case _:
            if len(product.images) != 1:
                raise UsageError(
                    "--output type=docker holds one platform",
                    why=f"this build has {len(product.images)}",
                    remedy="use type=oci, which docker load reads where its image store is containerd's",
                )
            with opened(output.dest) as file:
                archive.write_docker_archive(file, names, product.images[0].manifest, roots, sources)


class _Cancellable(io.RawIOBase):
    """A file that cannot be read any more once ``cancelled`` is set."""

    def __init__(self, file: BinaryIO, cancelled: threading.Event) -> None:
        self._file = file
        self._cancelled = cancelled

    def read(self, size: int = -1) -> bytes:
        if self._cancelled.is_set():
            raise Interrupted("the build was cancelled")
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()
        super().close()


def _opened(image: Image, digest: str, cancelled: threading.Event) -> BinaryIO:
    return cast(BinaryIO, _Cancellable(image.content(digest), cancelled))


def _sources(product: Product, cancelled: threading.Event) -> list[BlobSource]:
    """Every blob of ``product`` once, the root last."""
    found: dict[str, BlobSource] = {}
    for each in product.images:
        for descriptor in (*each.manifest.layers, each.manifest.config):
            found[descriptor.digest] = BlobSource(
                descriptor.digest,
                descriptor.size,
                partial(_opened, each, descriptor.digest, cancelled),
            )
        found[each.descriptor.digest] = _inline(each.descriptor.digest, each.data)
    found[product.root.digest] = _inline(product.root.digest, product.data)
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
    with archive.archive_file(path) as file:
        yield file
