"""The debug log: events of each process on stderr, with ``--debug`` or ``KANIFOLD_DEBUG=1``.

One line for each event: seconds since the command began, name and id of the process, the event, and its details:

        0.412 kanifold-exec[4711] step runs argv=('/bin/sh', '-c', 'make') network=isolated

A line is one write(2) of at most ``PIPE_BUF`` bytes, so that lines of several processes do not mix (pipe(7)). Forked
processes inherit the switch and the clock. One that is started as a command takes the switch from the environment and
counts from its own start. Callers pass no credentials, no secrets and no query strings of URLs.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Final

VARIABLE: Final = "KANIFOLD_DEBUG"
_LONGEST: Final = 4096
"""Maximum length of a line in bytes: Linux's ``PIPE_BUF``."""

on = os.environ.get(VARIABLE, "") not in ("", "0")
"""Whether the log is enabled. Callers with details that are costly to compute check this first."""
_began = time.monotonic() if on else 0.0
_process = ""
"""``NAME[PID]``, set by ``enter``."""


def enable() -> None:
    """Enable the log for this process and those that it starts from now on."""
    global on, _began
    if not on:
        on, _began = True, time.monotonic()
        os.environ[VARIABLE] = "1"
        enter("kanifold")


def enter(name: str) -> None:
    """Log the start of this process and set its ``name``. To be called in each new process."""
    global _process  # noqa: PLW0603 - see enable
    if on:
        _process = _called(name)
        log("process begins", parent=os.getppid() or "outside of its process namespace")


def log(what: str, **details: object) -> None:
    """Log the event ``what``. Details with spaces or unprintable characters are written as Python literals."""
    if not on:
        return
    parts = [f"{time.monotonic() - _began:9.3f} {_process} {what}"]
    parts += [f"{name}={_plain(value)}" for name, value in details.items()]
    line = " ".join(parts).encode("utf-8", "backslashreplace")
    if len(line) >= _LONGEST:
        line = line[: _LONGEST - 4].decode("utf-8", "ignore").encode() + b"..."  # whole characters only
    with contextlib.suppress(OSError):  # stderr is closed: not a reason to fail
        os.write(2, line + b"\n")


def _called(name: str) -> str:
    try:
        pid = os.readlink("/proc/self")  # the id on the host: in a new pid namespace getpid(2) returns 1
    except OSError:
        pid = str(os.getpid())
    return f"{name}[{pid}]"


def _plain(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if isinstance(value, tuple) or (text.isprintable() and text and " " not in text) else repr(text)
