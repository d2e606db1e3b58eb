"""Processes that are forked off this one and go on as something else: they start with what is loaded by then."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from platforms import debug, syscalls


def live(name: str, life: Callable[[], int]) -> NoReturn:
    """Be a forked process of ours, which is no terminal's: do ``life``, and end with the status that it returns.

    ``name`` (15 bytes) is what ``ps`` shows.
    """
    status = 1
    try:
        try:
            os.setsid()
            syscalls.set_name(name)
            debug.enter(name)
            status = life()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        debug.log("process ends", status=status)
    finally:
        os._exit(status)
