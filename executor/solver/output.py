"""The output of a step as lines: decoded, with secrets masked, limited, and sent in large pieces.

A step may write a million lines a second, so output is read, decoded, masked and sent in pieces of many lines. Each
stream is limited in total and in its average rate, as in BuildKit: the environment variables
``BUILDKIT_STEP_LOG_MAX_SIZE`` (bytes, 2 MiB) and ``BUILDKIT_STEP_LOG_MAX_SPEED`` (bytes per second, 200 KiB) set the
limits, -1 is none. A line tells where output was cut. The last lines are kept for the error of a failed step.
"""

from __future__ import annotations

import codecs
import fcntl
import os
import selectors
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

import msgspec

TAIL: Final = 20
"""Number of lines of output in the error of a failed step."""
_LINE_LIMIT: Final = 64 << 10
"""Maximum characters without a newline; then they are sent as a line."""
_OVERWRITTEN_SECONDS: Final = 1.0
"""Minimum seconds between two states of a progress bar that are sent."""
_PIECE: Final = 1 << 18
"""Number of bytes that are read at once."""

Tell = Callable[[str, int], None]
"""Receives lines, separated by newlines, and the number of their stream: 1 is stdout, 2 stderr."""


class LogLimits(msgspec.Struct, frozen=True):
    """Limits of a stream; -1 is none."""

    size: int = 2 << 20
    """Bytes."""
    speed: int = 200 << 10
    """Bytes per second, on average since the step began."""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> LogLimits:
        """Return the limits of the environment; an invalid number is ignored, as in BuildKit."""
        found = {}
        for field, name in (("size", "BUILDKIT_STEP_LOG_MAX_SIZE"), ("speed", "BUILDKIT_STEP_LOG_MAX_SPEED")):
            with suppress(ValueError):
                found[field] = int(environ.get(name, ""))
        return cls(**found)


class Clip:
    """Applies ``limits`` to a stream."""

    def __init__(self, limits: LogLimits, began: float) -> None:
        self._limits = limits
        self._began = began
        self._size = 0
        self._clipping = False

    def cut(self, lines: str, now: float) -> str | None:
        """Return ``lines``, or as many as are within the limits, with a line that tells where output was cut.

        None if there are none.
        """
        size = len(lines) if lines.isascii() else len(lines.encode("utf-8", "replace"))
        before, self._size = self._size, self._size + size + 1
        limit, words = self._limits.size, _amount(self._limits.size)
        if self._limits.speed >= 0:
            sofar = (int(now - self._began) + 1) * self._limits.speed
            if limit < 0 or sofar < limit:
                limit, words = sofar, f"{_amount(self._limits.speed)}/s"
        if limit < 0 or self._size <= limit:
            self._clipping = False
            return lines
        room = max(0, limit - before)
        shown = lines[: lines.rfind("\n", 0, room) + 1]  # whole lines; of what is not ASCII perhaps some more
        if self._clipping:
            return shown[:-1] if shown else None
        self._clipping = True
        return f"{shown}[output clipped, log limit {words} reached]"


class Stream:
    """One stream of a step: takes bytes and returns whole lines, with ``secrets`` masked."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self._secrets = secrets
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._rest = ""
        self._due = 0.0

    def feed(self, data: bytes, now: float) -> str:
        """Return the lines that ``data`` completes, each with its newline; "" if none."""
        text = self._rest + self._decode(data)
        end = text.rfind("\n") + 1
        lines, rest = masked(text[:end], self._secrets), text[end:]
        if len(rest) > _LINE_LIMIT:
            # The rest may contain the beginning of a secret.
            rest = masked(rest, self._secrets)
            kept = _begun(rest, self._secrets)
            lines += f"{rest[: len(rest) - kept]}\n"
            rest = rest[len(rest) - kept :]
        returned = rest.rfind("\r", 0, -1)  # the last may be the first half of a line end
        if returned >= 0 and now >= self._due:
            self._due = now + _OVERWRITTEN_SECONDS
            if state := rest[:returned].rpartition("\r")[2]:
                lines += f"{masked(state, self._secrets)}\n"
            rest = rest[returned + 1 :]
        self._rest = rest
        return lines

    def end(self) -> str:
        """Return the rest: a line without a newline, or ""."""
        return masked(self._rest + self._decode(b"", True), self._secrets)


def masked(text: str, secrets: tuple[str, ...]) -> str:
    """Return ``text`` with secrets masked."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


class Tail:
    """The last lines of a step, of both streams."""

    def __init__(self) -> None:
        self.lines: tuple[str, ...] = ()

    def add(self, lines: str) -> None:
        """Add lines, separated by newlines."""
        self.lines = (*self.lines, *lines.rsplit("\n", TAIL)[-TAIL:])[-TAIL:]


@contextmanager
def captured(secrets: tuple[str, ...], limits: LogLimits, tail: Tail, tell: Tell) -> Iterator[tuple[int, int]]:
    """Yield two descriptors to write to, for stdout and stderr of a step. At the end, all output has been sent."""
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(2)]
    for read, _ in pipes:
        with suppress(OSError):  # the capacity of a user's pipes may be limited
            fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, _PIECE)
    reader = threading.Thread(
        target=_pump, args=(tuple(read for read, _ in pipes), secrets, limits, tail, tell), name="output", daemon=True
    )
    reader.start()
    try:
        yield pipes[0][1], pipes[1][1]
    finally:
        for _, write in pipes:
            os.close(write)
        reader.join()


def _pump(fds: tuple[int, int], secrets: tuple[str, ...], limits: LogLimits, tail: Tail, tell: Tell) -> None:
    """Turn two pipes into lines until both end. Of a line that is overwritten repeatedly, some states are sent as
    lines."""
    began = time.monotonic()
    numbers = dict(zip(fds, (1, 2), strict=True))
    streams = {fd: Stream(secrets) for fd in fds}
    clips = {fd: Clip(limits, began) for fd in fds}

    with selectors.DefaultSelector() as selector:
        for fd in fds:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            for ready, _ in selector.select():
                data = os.read(ready.fd, _PIECE)
                now = time.monotonic()
                lines = streams[ready.fd].feed(data, now) if data else streams[ready.fd].end()
                if lines:
                    lines = lines.removesuffix("\n") if data else lines
                    tail.add(lines)
                    if (shown := clips[ready.fd].cut(lines, now)) is not None:
                        tell(shown, numbers[ready.fd])
                if not data:
                    selector.unregister(ready.fd)
                    os.close(ready.fd)


def _begun(text: str, secrets: tuple[str, ...]) -> int:
    """Return how many characters at the end of ``text`` may be the beginning of a secret."""
    longest = 0
    for secret in secrets:
        for size in range(min(len(secret) - 1, len(text)), longest, -1):
            if text.endswith(secret[:size]):
                longest = size
                break
    return longest


def _amount(size: int) -> str:
    """Return ``size`` in the largest unit that it fills, as in BuildKit: ``2MiB``, ``200KiB``."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{value:g}{units[0]}"
