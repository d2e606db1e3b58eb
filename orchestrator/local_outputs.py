"""What a build leaves on this machine: images and files, each written by the module for its kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, assert_never

import msgspec

from executor.store.store import Store
from orchestrator.outputs import (
    CacheOnly,
    DockerArchive,
    ImageStore,
    LocalArchive,
    LocalDirectory,
    OciArchive,
    OciLayout,
    Push,
)
from orchestrator.request import BuildRequest
from orchestrator.results import BuildResult, PlatformResult
from orchestrator.view.events import Emit

if TYPE_CHECKING:
    from orchestrator.load import Loader


class LocalOutputs(msgspec.Struct, frozen=True):
    """The outputs of a build that are on this machine, and what they need."""

    request: BuildRequest
    store: Store
    """Where the blobs of images are."""
    loader: Loader | None
    """What takes images that are loaded; None when none are."""

    async def write(self, built: Sequence[PlatformResult], result: BuildResult, emit: Emit) -> None:
        """Write all of them. Raises ``KanifoldError``."""
        for output in self.request.outputs:
            match output:
                case LocalDirectory() | LocalArchive():
                    from orchestrator import file_output

                    await file_output.write(output, built, result.root.digest, emit)
                case OciLayout() | OciArchive() | DockerArchive() | ImageStore():
                    from orchestrator import images

                    await images.write(output, result, self.request, images.Targets(self.store, self.loader), emit)
                case Push() | CacheOnly():
                    pass  # pushed before, all platforms together
                case _:
                    assert_never(output)


async def stage(request: BuildRequest, result: BuildResult, store: Store) -> None:
    """Write the images to the layout ``request.staged``, without names. Raises ``KanifoldError``."""
    from orchestrator import images

    unnamed = msgspec.structs.replace(request, tags=())
    await images.write(OciLayout(request.staged), result, unnamed, images.Targets(store, None), lambda _: None)


def find(request: BuildRequest, store: Store) -> LocalOutputs:
    """The local outputs of ``request``. Raises ``KanifoldError`` when a program that is to take images cannot."""
    stores = [each for each in request.outputs if isinstance(each, ImageStore)]
    if not stores:
        return LocalOutputs(request, store, None)
    from orchestrator import load

    loader = load.find(request.load_to)
    named = bool(request.tags) or all(each.image.names for each in stores)
    load.check(loader, request.platforms, named=named)
    return LocalOutputs(request, store, loader)
