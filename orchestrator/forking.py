"""Processes that are forked from this one and do something else. They begin with the modules that it has loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from platforms import debug, syscalls, threads


def start(name: str, main: Callable[[], int]) -> int:
    """Fork a process that does ``main`` in a session of its own and ends with the status that this returns.

    ``name`` is what ``ps`` shows, 15 bytes at most. Returns the process id. Raises ``EnvironmentUnfit`` when this
    process has several threads, ``OSError`` when there can be no further process.
    """
    threads.check_single("fork the processes of a build")
    return os.fork() or _run(name, main)


def _run(name: str, main: Callable[[], int]) -> NoReturn:
    status = 1
    try:
        try:
            os.setsid()
            syscalls.set_name(name)
            debug.enter(name)
            status = main()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        debug.log("process ends", status=status)
    finally:
        os._exit(status)
