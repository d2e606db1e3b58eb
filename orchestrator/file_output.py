"""``type=local`` and ``type=tar``: exporting the files of images.

Each executor sends the file system of its image as an archive. With several platforms, each gets a directory such as
``linux_arm64``. Files in a directory belong to the user who runs the build, as with buildx; an archive keeps owners.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import BinaryIO, Final, assert_never

from executor.rootfs import tarreader, tarwriter
from executor.rootfs.entry import Kind
from executor.snapshotter import unpack
from executor.store.removal import remove_tree
from orchestrator.images import opened
from orchestrator.outputs import FilesOutput, LocalArchive, LocalDirectory, writes_stdout
from orchestrator.results import PlatformResult
from orchestrator.view import events
from orchestrator.view.events import Emit
from platforms import paths
from platforms.errors import BuildError, StoreError

_LIMITS: Final = unpack.UnpackLimits()


async def write(output: FilesOutput, built: Sequence[PlatformResult], digest: str, emit: Emit) -> None:
    """Write the files of all ``built`` platforms to ``output``. Raises ``KanifoldError``."""
    ref = "stdout" if writes_stdout(output) else output.dest
    emit(events.Publishing(what=ref))
    match output:
        case LocalArchive():
            await _archive(output.dest, built)
        case LocalDirectory():
            await _directory(output, built)
        case _:
            assert_never(output)
    emit(events.Published(ref=ref, digest=digest))


async def _archive(path: str, built: Sequence[PlatformResult]) -> None:
    with opened(path) as file:
        for each in built:
            async for block in each.executor.files(_name(each) if len(built) > 1 else ""):
                await asyncio.to_thread(file.write, block)
        file.write(tarwriter.END)


async def _directory(output: LocalDirectory, built: Sequence[PlatformResult]) -> None:
    directory = os.path.abspath(output.dest)
    split = len(built) > 1 if output.split is None else output.split
    if not split:
        await _check_collisions(built)
    new = not os.path.lexists(directory)
    try:
        os.makedirs(directory, exist_ok=True)
        place = tempfile.mkdtemp(prefix=".kanifold.", dir=directory) if output.delete else directory
    except OSError as error:
        raise StoreError(f"cannot make the directory {output.dest}", why=error.strerror or str(error)) from error
    try:
        for each in built:
            await _receive(
                each, _name(each) if split else "", partial(unpack.hand_over, directory=place, limits=_LIMITS)
            )
        if output.delete:
            await asyncio.to_thread(_replace_all, directory, place)
    except BaseException:
        if new or output.delete:
            await asyncio.to_thread(remove_tree, directory if new else place)
        raise


def _replace_all(directory: str, place: str) -> None:
    """Replace the content of ``directory`` by that of its subdirectory ``place``."""
    name = os.path.basename(place)
    try:
        with os.scandir(directory) as entries:
            old = [(each.path, each.is_dir(follow_symlinks=False)) for each in entries if each.name != name]
        for path, is_directory in old:
            if is_directory:
                remove_tree(path)
            else:
                os.unlink(path)
        for each in os.listdir(place):
            os.rename(paths.below(place, each), paths.below(directory, each))
        os.rmdir(place)
    except OSError as error:
        raise StoreError(f"cannot replace what is in {directory}", why=error.strerror or str(error)) from error


async def _check_collisions(built: Sequence[PlatformResult]) -> None:
    """Raise for paths that several of ``built`` have, before anything is written."""
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
        await _receive(each, "", partial(claim, platform=str(each.placement.platform)))


async def _receive(built: PlatformResult, prefix: str, take: Callable[[BinaryIO], object]) -> None:
    """Call ``take`` on a thread with the files of one image, as an archive that is read from a pipe."""
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
        pass  # the reader raises the cause
    finally:
        await asyncio.gather(receiving, return_exceptions=True)
    receiving.result()


def _name(built: PlatformResult) -> str:
    return str(built.placement.platform).replace("/", "_")
