"""What happens during a build, as data: the one stream that every display is made from.

An orchestrator emits these; what an executor says is passed on whole, with the platform it speaks for. ``at`` is in
seconds of the orchestrator's own monotonic clock, so that a node with another clock cannot bend the times shown.

The order of a build: ``BuildStarted``, any ``Resolving``/``Resolved``; per platform ``PlatformStarted``, any number of
``FromExecutor``, ``PlatformEnded``; then ``Publishing``/``Published`` and ``BuildEnded``. Displays accept any order and
events for a platform or step that was never announced.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import msgspec

from executor.protocol import Message
from platforms.errors import Problem

Outcome = Literal["built", "failed", "cancelled"]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """The root of all events."""

    at: float = msgspec.field(default_factory=time.monotonic)
    """Seconds, monotonic."""


class Place(msgspec.Struct, frozen=True):
    """Where a platform is going to be built, and how its steps run there."""

    platform: str
    node: str = ""
    """The node's name; "" when the build is on this machine."""
    how: str = ""
    """``native``, or the emulator's name (``qemu-aarch64``); "" while unknown."""


class BuildStarted(Event, frozen=True):
    """The plan is made: these platforms will be built, at most ``jobs`` of them at once (0: all)."""

    platforms: tuple[Place, ...]
    name: str = ""
    """What is being built, as the user called it: the first tag, or the context."""
    tags: tuple[str, ...] = ()
    """The references that a successful build will move."""
    jobs: int = 0


class Resolving(Event, frozen=True):
    """A base image's tag is being looked up."""

    ref: str


class Resolved(Event, frozen=True):
    """``ref`` is pinned to ``digest``."""

    ref: str
    digest: str


class PlatformStarted(Event, frozen=True):
    """The executor of ``platform`` was started on ``node``."""

    platform: str
    node: str = ""
    how: str = ""


class FromExecutor(Event, frozen=True):
    """The executor of ``platform`` said ``message``."""

    platform: str
    message: Message


class PlatformEnded(Event, frozen=True):
    """``platform`` is done for, one way or the other. ``reason`` says in a few words why it was not built."""

    platform: str
    outcome: Outcome
    reason: str = ""


class Waiting(Event, frozen=True):
    """The orchestrator has had no answer of a registry for ``seconds``, or (``over``) has one at last."""

    registry: str
    what: str
    seconds: float = 0.0
    why: str = ""
    over: bool = False


class Cautioned(Event, frozen=True):
    """A warning of the orchestrator's own."""

    problem: Problem
    rule: str = ""


class Publishing(Event, frozen=True):
    """``done`` of ``total`` parts of the result named ``what`` are at their destination."""

    what: str
    done: int = 0
    total: int = 0


class Published(Event, frozen=True):
    """``ref`` (a tag, or a path) now names ``digest``."""

    ref: str
    digest: str


class Trouble(msgspec.Struct, frozen=True):
    """Why a build failed; ``platform`` is "" when it was not one platform's doing."""

    problem: Problem
    platform: str = ""


class BuildEnded(Event, frozen=True):
    """The last event. A display shows ``troubles`` in its own manner, so a caller that lists them has shown them."""

    outcome: Outcome
    digest: str = ""
    """The index's digest (or the manifest's, for a single image); "" unless built."""
    troubles: tuple[Trouble, ...] = ()


Emit = Callable[[Event], None]
"""Takes what happens: a display, a trace, or both."""
