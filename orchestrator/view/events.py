"""The events of a build, from which every display is made.

They are emitted by the orchestrator; messages of an executor are passed on unchanged, with their platform. ``at`` is in
seconds of the orchestrator's monotonic clock, so that the clock of a node does not matter.

A release is a build whose platforms are those of all its images: what ``platform`` says is then ``IMAGE PLATFORM``.

The order in a build: ``BuildStarted``, any ``Resolving``/``Resolved``; for each platform ``PlatformStarted``, any
number of ``PlatformWaiting`` and ``FromExecutor``, ``PlatformMoved`` and the same again if its node fails,
``PlatformEnded``; then ``Publishing``/``Published`` and ``BuildEnded``. Displays accept any order, and events for a
platform or step that was not announced.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import msgspec
from msgspec.structs import replace

from executor.protocol import Message
from platforms.errors import Problem

Outcome = Literal["built", "failed", "cancelled"]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """The base class of events."""

    at: float = msgspec.field(default_factory=time.monotonic)
    """Seconds, monotonic."""


class PlatformPlacement(msgspec.Struct, frozen=True):
    """Where a platform is built, and how its steps run there."""

    platform: str
    node: str = ""
    """The name of the node; "" for this machine."""
    how: str = ""
    """``native``, or the emulator (``qemu-aarch64``); "" while unknown."""
    why: str = ""
    """Why it is built there: ``runs it natively``; "" if there was no choice."""
    after: tuple[str, ...] = ()
    """The images of a release that it is built from."""


class BuildStarted(Event, frozen=True):
    """The build of these platforms starts, with at most ``jobs`` at once (0: all)."""

    platforms: tuple[PlatformPlacement, ...]
    name: str = ""
    """What is built: the first tag, or the context."""
    tags: tuple[str, ...] = ()
    """The references that a successful build updates."""
    jobs: int = 0


class ImagePlaced(Event, frozen=True):
    """Of a release: the build of an image starts, on these nodes."""

    platforms: tuple[PlatformPlacement, ...]


class Resolving(Event, frozen=True):
    """The tag of a base image is being resolved."""

    ref: str


class Resolved(Event, frozen=True):
    """``ref`` is resolved to ``digest``."""

    ref: str
    digest: str


class PlatformStarted(Event, frozen=True):
    """The executor of ``platform`` was started on ``node``."""

    platform: str
    node: str = ""
    how: str = ""


class PlatformWaiting(Event, frozen=True):
    """The executor of ``platform`` on ``node`` is not there yet: ``why``, in words; "" when it is there."""

    platform: str
    node: str = ""
    why: str = ""


class FromExecutor(Event, frozen=True):
    """The executor of ``platform`` sent ``message``."""

    platform: str
    message: Message


class PlatformMoved(Event, frozen=True):
    """The node ``old`` of ``platform`` has failed with ``problem``: it starts again on ``node``, which may be the same
    one. ``PlatformStarted`` follows."""

    platform: str
    old: str
    node: str
    how: str
    problem: Problem

    @property
    def warning(self) -> Problem:
        """The warning about it, for display."""
        where = f"again on {self.node}" if self.node == self.old else f"on {self.node}, no longer on {self.old}"
        return replace(self.problem, what=f"{self.platform} is built {where}: {self.problem.what}", remedy="")


class PlatformEnded(Event, frozen=True):
    """The build of ``platform`` has ended. ``reason``: a short text why it was not built."""

    platform: str
    outcome: Outcome
    reason: str = ""


class RegistryWaiting(Event, frozen=True):
    """The orchestrator has waited ``seconds`` for a registry, or (``over``) has got its response."""

    registry: str
    what: str
    seconds: float = 0.0
    why: str = ""
    over: bool = False


class WarningRaised(Event, frozen=True):
    """A warning of the orchestrator."""

    problem: Problem
    rule: str = ""


class Publishing(Event, frozen=True):
    """``done`` of ``total`` parts of the result ``what`` were published."""

    what: str
    done: int = 0
    total: int = 0


class Published(Event, frozen=True):
    """``ref`` (a tag, or a path) now refers to ``digest``."""

    ref: str
    digest: str


class Failure(msgspec.Struct, frozen=True):
    """Why a build failed; ``platform`` is "" if it was not a single platform."""

    problem: Problem
    platform: str = ""


class BuildEnded(Event, frozen=True):
    """The last event. Displays show ``troubles``, so the caller need not."""

    outcome: Outcome
    digest: str = ""
    """The digest of the index (of the manifest, for a single image); "" unless built."""
    troubles: tuple[Failure, ...] = ()


Emit = Callable[[Event], None]
"""Receives events: a display, a trace, or both."""
