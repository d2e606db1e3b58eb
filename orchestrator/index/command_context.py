"""The context of a command: registry clients with the user's credentials, signals, and the display."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from types import FrameType
from typing import Final

from executor.registry import auth
from executor.registry.client import Client
from executor.registry.notices import Notice, Remark, Wait
from executor.registry.registry_settings import RegistrySettings
from orchestrator.index.publishing import CommandContext
from orchestrator.view import events
from orchestrator.view.display import Display
from platforms.errors import Problem

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def open_context(settings: RegistrySettings, display: Display) -> Iterator[CommandContext]:
    """Open registry clients with ``settings``. A signal interrupts their requests at once, as ``cancelled`` does."""
    cancelled = threading.Event()
    ending: SimpleQueue[None] = SimpleQueue()
    before = [signal.signal(each, partial(_stop, ending)) for each in _SIGNALS]
    client = Client(settings, auth.docker_keychain(), cancel=cancelled, tell=partial(_tell, display))
    # Not in the signal's handler: events and connections have locks that the thread which is interrupted may hold, a
    # handler that a second signal interrupts among them. Only the queue's put is reentrant (queue, "SimpleQueue").
    signals = threading.Thread(target=_cancel, args=(ending, cancelled), name="signals", daemon=True)
    closing = threading.Thread(target=_close, args=(cancelled, client), name="cancel", daemon=True)
    signals.start()
    closing.start()
    try:
        yield CommandContext(client, cancelled, display.emit)
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)
        ending.put(None)
        signals.join()
        closing.join()


def _stop(ending: SimpleQueue[None], _number: int, _frame: FrameType | None) -> None:
    ending.put(None)


def _cancel(ending: SimpleQueue[None], cancelled: threading.Event) -> None:
    ending.get()
    cancelled.set()


def _close(cancelled: threading.Event, client: Client) -> None:
    cancelled.wait()
    client.close()


def _tell(display: Display, notice: Notice) -> None:
    match notice:
        case Wait(registry, what, seconds, why, over):
            display.emit(events.RegistryWaiting(registry=registry, what=what, seconds=seconds, why=why, over=over))
        case Remark(text):
            display.emit(events.WarningRaised(problem=Problem("Registry", text), rule="Registry"))
