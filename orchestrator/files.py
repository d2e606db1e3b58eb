"""``type=local`` and ``type=tar``: the files of the images, for people who want no image.

Each executor sends its image's file system as an archive. Several platforms have a directory each, called like
``linux_arm64``. Files in a directory belong to whoever runs the build, as they do with buildx; an archive keeps owners.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import BinaryIO, Final

from executor.rootfs import tarreader, tarwriter, unpack
from executor.rootfs.entry import Kind
from executor.store.removal import remove_tree
from orchestrator.fanout import Built, Emit
from orchestrator.images import opened
from orchestrator.outputs import Output
from orchestrator.view import events
from platforms.errors import BuildError, StoreError

_LIMITS: Final = unpack.Limits()


async def write(output: Output, built: Sequence[Built], digest: str, emit: Emit) -> None:
    """Write the files of all that was ``built`` to ``output``. Raises ``KanifoldError``."""
    if output.kind == "tar":
        await _archive(output.dest, built)
    else:
        await _directory(output, built)
    emit(events.Published(ref="stdout" if output.dest == "-" else output.dest, digest=digest))


async def _archive(path: str, built: Sequence[Built]) -> None:
    with opened(path) as file:
        for each in built:
            async for block in each.executor.files(_name(each) if len(built) > 1 else ""):
                await asyncio.to_thread(file.write, block)
        file.write(tarwriter.END)


async def _directory(output: Output, built: Sequence[Built]) -> None:
    directory = os.path.abspath(output.dest)
    split = len(built) > 1 if output.split is None else output.split
    if not split:
        await _keep_apart(built)
    new = not os.path.lexists(directory)
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the directory {output.dest}", why=error.strerror or str(error)) from error
    try:
        for each in built:
            await _hear(
                each, _name(each) if split else "", partial(unpack.hand_over, directory=directory, limits=_LIMITS)
            )
    except BaseException:
        if new:
            await asyncio.to_thread(remove_tree, directory)
        raise


async def _keep_apart(built: Sequence[Built]) -> None:
    """Refuse files that several of ``built`` have, if there are several: found out before anything is written."""
    owners: dict[bytes, str] = {}

    def claim(stream: BinaryIO, platform: str) -> None:
        for member in tarreader.read(stream):
            path = member.entry.path
            if member.entry.kind is not Kind.DIRECTORY and owners.setdefault(path, platform) != platform:
                raise BuildError(
                    f"cannot overwrite {os.fsdecode(path)} from {owners[path]} with {platform}",
                    why="platform-split=false puts the files of all platforms into one directory",
                )

    for each in built if len(built) > 1 else ():
        await _hear(each, "", partial(claim, platform=str(each.placement.platform)))


async def _hear(built: Built, prefix: str, take: Callable[[BinaryIO], object]) -> None:
    """Give the files of one image, as an archive, to ``take``, which runs on a thread and reads them from a pipe."""
    reading, writing = os.pipe()

    def receive() -> None:
        with open(reading, "rb") as stream:
            take(stream)

    receiving = asyncio.create_task(asyncio.to_thread(receive))
    try:
        with open(writing, "wb", 0) as pipe:
            async for block in built.executor.files(prefix):
                await asyncio.to_thread(pipe.write, block)
            await asyncio.to_thread(pipe.write, tarwriter.END)
    except BrokenPipeError:
        pass  # who reads says why
    finally:
        await asyncio.gather(receiving, return_exceptions=True)
    receiving.result()


def _name(built: Built) -> str:
    return str(built.placement.platform).replace("/", "_")
