"""What a build comes to: of each platform, and of all platforms together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import BinaryIO, Protocol

import msgspec

from executor import protocol
from executor.image.manifest import Descriptor, Manifest
from orchestrator.placement import Placement
from platforms.errors import KanifoldError, ProtocolError
from platforms.platform import Platform

StepEvent = protocol.Planned | protocol.Started | protocol.Finished | protocol.BuildWarning
"""What an executor says of its steps, output and progress left out."""


class ImageContent(Protocol):
    """Who made an image and hands over what is in it, until it is released."""

    async def blob(self, digest: str, size: int, sink: Callable[[bytes], object]) -> None:
        """Give the content of ``digest``, which has ``size`` bytes, to ``sink``, in blocks."""
        ...

    def files(self, prefix: str) -> AsyncIterator[bytes]:
        """The image's file system as blocks of a tar archive without an end, everything in the directory ``prefix``."""
        ...

    async def abandon(self) -> None:
        """End it at once: what it made is not wanted."""
        ...

    async def close(self) -> None:
        """Release it."""
        ...


class NullExecutor:
    """The source of an image that is in the registry already, for which no executor was started: it gives nothing."""

    async def blob(self, digest: str, size: int, sink: Callable[[bytes], object]) -> None:
        """Raises ``ProtocolError``, always: a blob that was there is not there any more."""
        raise ProtocolError(f"{digest} has vanished", remedy="build again")

    async def files(self, prefix: str) -> AsyncIterator[bytes]:
        """Raises ``ProtocolError``, always."""
        raise ProtocolError("nobody has the image's files")
        yield b""

    async def abandon(self) -> None:
        """Nothing."""

    async def close(self) -> None:
        """Nothing."""


class PlatformResult(msgspec.Struct, frozen=True):
    """A platform whose image is made, and who made it."""

    placement: Placement
    result: protocol.Result
    executor: ImageContent
    events: tuple[StepEvent, ...] = ()
    """What the executor said of its steps; none if that was too much to keep."""


class PlatformFailure(msgspec.Struct, frozen=True):
    """A platform that was not built, and why."""

    placement: Placement
    error: KanifoldError


class Image(msgspec.Struct, frozen=True):
    """One platform's image, verified, and where its blobs can be read."""

    platform: Platform
    manifest: Manifest
    descriptor: Descriptor
    """With the platform, as the index will hold it."""
    data: bytes
    content: Callable[[str], BinaryIO]


class BuildResult(msgspec.Struct, frozen=True):
    """The root document of a build (an index, or the manifest of a single image), and the images below it."""

    root: Descriptor
    data: bytes
    images: tuple[Image, ...]
    pins: tuple[protocol.Pin, ...] = ()
    """The digests of the external images that it was built from."""
