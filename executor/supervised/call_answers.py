"""Answering the system calls of a step: each by its handler."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from executor.supervised.identity_calls import IdentityCalls
from executor.supervised.metadata_calls import MetadataCalls
from executor.supervised.path_calls import PathCalls
from executor.supervised.socket_calls import SocketCalls

if TYPE_CHECKING:
    from executor.sandbox.listener import SystemCall
    from executor.supervised.step_context import StepContext


class CallAnswers:
    """The answers to the calls of ``step``."""

    def __init__(self, step: StepContext) -> None:
        self._listener = step.listener
        self._processes = step.processes
        self._handlers = {
            **PathCalls(step).handlers,
            **MetadataCalls(step).handlers,
            **IdentityCalls(step).handlers,
            **SocketCalls(step).handlers,
        }

    def answer(self, call: SystemCall) -> None:
        """Answer ``call``."""
        process = self._processes.threads.get(call.pid)
        if process is None:
            self._listener.answer(call, error=errno.EPERM)
            return
        try:
            value = self._handlers[call.name](call, process)
        except OSError as error:
            self._listener.answer(call, error=error.errno or errno.EINVAL)
        except (ValueError, OverflowError, struct.error):  # a path with a NUL byte, a number that does not fit
            self._listener.answer(call, error=errno.EINVAL)
        else:
            if value is not None:
                self._listener.answer(call, value)
