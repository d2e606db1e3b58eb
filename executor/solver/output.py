"""The output of a step as lines: decoded, with secrets masked, limited, and sent in large pieces.

A step may write a million lines in a second. So output is read, decoded, masked and told in pieces of many lines, and
of each stream at most so many bytes are told, altogether and on average a second, as BuildKit has it: the environment's
``BUILDKIT_STEP_LOG_MAX_SIZE`` (bytes, 2 MiB) and ``BUILDKIT_STEP_LOG_MAX_SPEED`` (bytes a second, 200 KiB) set that, -1
is no limit. What is cut is said in the place of it. The last lines of all are kept for the error of a step that fails.
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
"""Lines of a failed step's output that its error shows."""
_LINE_LIMIT: Final = 64 << 10
"""Characters of output without a newline that are shown as a line of their own."""
_OVERWRITTEN_SECONDS: Final = 1.0
"""Seconds between two states of a progress bar that are shown."""
_PIECE: Final = 1 << 18
"""Bytes that are read at once."""

Tell = Callable[[str, int], None]
"""Takes some lines, with newlines between them, and the number of their stream: 1 is stdout, 2 stderr."""


class LogLimits(msgspec.Struct, frozen=True):
    """How much of a stream is told; -1 is all."""

    size: int = 2 << 20
    """Bytes."""
    speed: int = 200 << 10
    """Bytes a second, on average since the step began."""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> LogLimits:
        """Those of the environment; what is no number there is passed over, as BuildKit does."""
        found = {}
        for field, name in (("size", "BUILDKIT_STEP_LOG_MAX_SIZE"), ("speed", "BUILDKIT_STEP_LOG_MAX_SPEED")):
            with suppress(ValueError):
                found[field] = int(environ.get(name, ""))
        return cls(**found)


class Clip:
    """Counts a stream's bytes against ``limits``."""

    def __init__(self, limits: LogLimits, began: float) -> None:
        self._limits = limits
        self._began = began
        self._size = 0
        self._clipping = False

    def cut(self, lines: str, now: float) -> str | None:
        """``lines``, or as many of them as may be told, and a line that says so where it begins to be fewer.

        None when that is none.
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
    """One stream of a step: bytes go in, whole lines come out, with ``secrets`` masked."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self._secrets = secrets
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._rest = ""
        self._due = 0.0

    def feed(self, data: bytes, now: float) -> str:
        """The lines that ``data`` completes, with newlines between them and after the last; "" if there are none."""
        text = self._rest + self._decode(data)
        end = text.rfind("\n") + 1
        lines, rest = masked(text[:end], self._secrets), text[end:]
        if len(rest) > _LINE_LIMIT:
            # A secret may have begun that is not all here.
            rest = masked(rest, self._secrets)
            kept = _begun(rest, self._secrets)
            lines += f"{rest[: len(rest) - kept]}\n"
            rest = rest[len(rest) - kept :]
        returned = rest.rfind("\r", 0, -1)  # a last one may be half of a line's end
        if returned >= 0 and now >= self._due:
            self._due = now + _OVERWRITTEN_SECONDS
            if state := rest[:returned].rpartition("\r")[2]:
                lines += f"{masked(state, self._secrets)}\n"
            rest = rest[returned + 1 :]
        self._rest = rest
        return lines

    def end(self) -> str:
        """What is left: one line, without a newline, or ""."""
        return masked(self._rest + self._decode(b"", True), self._secrets)


def masked(text: str, secrets: tuple[str, ...]) -> str:
    """``text`` without secrets."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


class Tail:
    """The last lines of a step, whichever of its streams they came by."""

    def __init__(self) -> None:
        self.lines: tuple[str, ...] = ()

    def add(self, lines: str) -> None:
        """Take some lines in, with newlines between them."""
        self.lines = (*self.lines, *lines.rsplit("\n", TAIL)[-TAIL:])[-TAIL:]


@contextmanager
def captured(secrets: tuple[str, ...], limits: LogLimits, tail: Tail, tell: Tell) -> Iterator[tuple[int, int]]:
    """Two descriptors to write to, a step's stdout and stderr. At the end, all that came has been told."""
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(2)]
    for read, _ in pipes:
        with suppress(OSError):  # there may be a bound to what pipes of one user hold
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
    """Turn two pipes into lines until both end. Of a line that is written over and over, some states are lines too."""
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
    """How many characters at the end of ``text`` may be the beginning of a secret."""
    longest = 0
    for secret in secrets:
        for size in range(min(len(secret) - 1, len(text)), longest, -1):
            if text.endswith(secret[:size]):
                longest = size
                break
    return longest


def _amount(size: int) -> str:
    """``size`` in the largest unit that it fills, as BuildKit writes it: ``2MiB``, ``200KiB``."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{value:g}{units[0]}"
