"""The events of a release: those of its builds, with the name of the image before each platform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec.structs import replace

from executor import protocol
from orchestrator.view import events
from orchestrator.view.events import Emit

_TEST_STEPS: Final = 1_000_000
"""Numbers of steps that the build of an image does not reach; each of its tests has as many after that."""


def label(image: str, platform: str) -> str:
    """Return what events of a release call a platform of an image."""
    return f"{image} {platform}"


class ImageEvents(msgspec.Struct, frozen=True):
    """Passes on the events of the build of ``image``.

    A platform of an image that is ``tested`` has not ended when it is built: whoever tests it says so.
    """

    emit: Emit
    image: str
    tested: bool

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.BuildStarted():
                places = tuple(replace(each, platform=label(self.image, each.platform)) for each in event.platforms)
                self.emit(events.ImagePlaced(places, at=event.at))
            case events.PlatformEnded(outcome="built") if self.tested:
                pass
            case events.Publishing(what="index"):
                pass  # by digest, which nobody sees
            case (
                events.FromExecutor()
                | events.PlatformStarted()
                | events.PlatformWaiting()
                | events.PlatformMoved()
                | events.PlatformEnded()
            ):
                self.emit(replace(event, platform=label(self.image, event.platform)))
            case _:
                self.emit(event)


class StepEvents(msgspec.Struct, frozen=True):
    """Passes on the events of the build that is test number ``number`` of a platform, as steps of that platform.

    ``started`` is called when the test has an executor, ``heard`` with the lines that it writes.
    """

    emit: Emit
    label: str
    number: int
    stage: str
    """What the stage of its steps is called."""
    started: Callable[[], None]
    heard: Callable[[str], None]

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.PlatformStarted():
                self.started()
            case events.FromExecutor():
                if isinstance(event.message, protocol.Log):
                    self.heard(event.message.text)
                message = self.shifted(event.message)
                if message is not None:
                    self.emit(replace(event, platform=self.label, message=message))
            case events.PlatformWaiting():
                self.emit(replace(event, platform=self.label))
            case events.Resolving() | events.Resolved() | events.RegistryWaiting() | events.WarningRaised():
                self.emit(event)

    def shifted(self, message: protocol.Message) -> protocol.Message | None:
        """Return ``message`` with other numbers of steps; None for one that is not about steps."""
        shift = _TEST_STEPS * self.number
        match message:
            case protocol.Planned():
                steps = tuple(
                    replace(each, id=each.id + shift, stage=self.stage if each.number else each.stage)
                    for each in message.steps
                )
                return replace(message, steps=steps, emulation="", stages=())  # those shown are the image's
            case protocol.Started() | protocol.Held() | protocol.Finished() | protocol.Log():
                return replace(message, step=message.step + shift)
            case protocol.BuildWarning() | protocol.Waiting():
                return message
            case _:
                return None
