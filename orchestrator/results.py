"""Results of a build: of each platform, and of all platforms together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import BinaryIO, Protocol

import msgspec

from executor import protocol
from executor.image.manifest import Descriptor, Manifest
from orchestrator.nodes.placement import Placement
from platforms.errors import KanifoldError, ProtocolError
from platforms.platform import Platform

StepEvent = protocol.Planned | protocol.Started | protocol.Finished | protocol.BuildWarning
"""Events of steps, without output and progress."""


class ImageContent(Protocol):
    """Provides the content of an image that was built, until it is released."""

    async def blob(self, digest: str, size: int, sink: Callable[[bytes], object]) -> None:
        """Pass the content of ``digest``, of ``size`` bytes, to ``sink`` in blocks."""
        ...

    def blocks(self, digest: str, size: int) -> AsyncIterator[bytes]:
        """Return the content of ``digest``, of ``size`` bytes, in blocks, as fast as they are taken."""
        ...

    def files(self, prefix: str) -> AsyncIterator[bytes]:
        """Return the image's file system as blocks of a tar archive without its end, in the directory ``prefix``."""
        ...

    async def abandon(self) -> None:
        """End it immediately: the result is not needed."""
        ...

    async def close(self) -> None:
        """Release it."""
        ...


class NullExecutor:
    """The content of an image that is in the registry already, for which no executor was started: none."""

    async def blob(self, digest: str, size: int, sink: Callable[[bytes], object]) -> None:
        """Raise ``ProtocolError``: a blob that was in the registry is gone."""
        raise ProtocolError(f"{digest} has vanished", remedy="build again")

    async def blocks(self, digest: str, size: int) -> AsyncIterator[bytes]:
        """Raise ``ProtocolError``, as ``blob``."""
        raise ProtocolError(f"{digest} has vanished", remedy="build again")
        yield b""

    async def files(self, prefix: str) -> AsyncIterator[bytes]:
        """Raise ``ProtocolError``."""
        raise ProtocolError("nobody has the image's files")
        yield b""

    async def abandon(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""


class Image(msgspec.Struct, frozen=True):
    """The verified image of one platform, and where its blobs can be read."""

    platform: Platform
    manifest: Manifest
    descriptor: Descriptor
    """With the platform, as in the index."""
    data: bytes
    content: Callable[[str], BinaryIO]


class PlatformResult(msgspec.Struct, frozen=True):
    """A platform that was built, and the executor that built it."""

    placement: Placement
    result: protocol.Result
    executor: ImageContent
    events: tuple[StepEvent, ...] = ()
    """Events of its steps; none if there were too many to keep."""
    image: Image | None = None
    """The verified image, if it comes from a node with another disk."""


class PlatformFailure(msgspec.Struct, frozen=True):
    """A platform that was not built, and why."""

    placement: Placement
    error: KanifoldError


class BuildResult(msgspec.Struct, frozen=True):
    """The root document of a build (an index, or the manifest of a single image), and its images."""

    root: Descriptor
    data: bytes
    images: tuple[Image, ...]
    pins: tuple[protocol.Pin, ...] = ()
    """The digests of its external images."""
    dockerfile: str = ""
    """The digest of its Dockerfile."""
