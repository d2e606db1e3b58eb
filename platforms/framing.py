"""Messages between the processes of a build: a line of JSON, and after it as many raw bytes as the message announces.

All pipes have this form: those between an orchestrator and its executors (``executor.protocol``), those to the process
that asks registries (``orchestrator.registries``) and, a line to a packet, the socket to the process that forks the
others (``orchestrator.prefork``), which carries descriptors too. Which field of a message says how many bytes follow is
for the protocol to say. The one exception is the socket to the process that steps are forked from
(``executor.sandbox.zygote``), which loads no module for it.

The other end is not trusted: a line has a limit and is decoded strictly. What is wrong is a ``ProtocolError``.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec

from platforms import decoding
from platforms.descriptors import receive_fds, write_all
from platforms.errors import ConnectionLost, ProtocolError

if TYPE_CHECKING:
    import asyncio

LINE_LIMIT: Final = 16 << 20
"""Bytes that a message's line may have: a peer that sends more is broken or hostile."""
BLOCK: Final = 1 << 20
"""Bytes of a payload that are read at once."""
_WAITS: Final = 8
"""Waits of which the one of a ``Pipe`` is made."""
_PACKET: Final = 1 << 16
"""Bytes of the longest packet, below the least that a socket's buffer has on Linux (socket(7), ``wmem_default``)."""

T = TypeVar("T")


def encode(message: object) -> bytes:
    """The line of ``message``, a ``msgspec.Struct``."""
    return to_json(message) + b"\n"


def to_json(value: object) -> bytes:
    """``value`` as JSON in one line. What is no text, as in names of files, becomes question marks; bytes are base64.

    Such text must not stand beside a ``msgspec.Raw``: that is ``TypeError``.
    """
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_as_text(msgspec.to_builtins(value)))


def decode(decoder: decoding.Decoder[T], line: bytes, sender: str) -> T:
    """The message in ``line``. Raises ``ProtocolError``, which names the ``sender``: ``an executor``, say."""
    if not line.endswith(b"\n"):
        raise ConnectionLost(f"a message of {sender} is malformed", why="it is cut short")
    try:
        return decoding.decode(decoder, line)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"a message of {sender} is malformed", why=str(error)) from error


class Pipe(io.FileIO):
    """The end ``fd`` of a pipe to read from, whose other end may fall silent.

    ``heard`` is called after every read. A read raises ``ConnectionLost`` when nothing has come for ``patience``
    seconds; 0: it waits for ever. Time in which this process or its machine was stopped counts little, as the wait is
    made of ``_WAITS`` short ones.
    """

    def __init__(self, fd: int, sender: str, patience: float) -> None:
        super().__init__(fd, "rb")
        self.patience = patience
        self.heard: Callable[[], object] = _nothing
        self._sender = sender

    def readinto(self, buffer: Any) -> int | None:
        if self.patience and not self._readable():
            raise ConnectionLost(
                f"{self._sender} is silent", why=f"nothing has come from it for {self.patience:.0f} seconds"
            )
        count = super().readinto(buffer)
        self.heard()
        return count

    def _readable(self) -> bool:
        poll = select.poll()
        poll.register(self, select.POLLIN)
        return any(poll.poll(self.patience * 1000 / _WAITS) for _ in range(_WAITS))


class Reader(Generic[T]):
    """The messages that ``sender`` writes to the pipe ``fd``. For one thread; payloads are read before what follows.

    ``patience`` as for ``Pipe``: all methods may raise ``ConnectionLost``.
    """

    def __init__(self, fd: int, decoder: decoding.Decoder[T], sender: str, patience: float = 0.0) -> None:
        self.pipe = Pipe(fd, sender, patience)
        self._file = io.BufferedReader(self.pipe, 1 << 16)
        self._decoder = decoder
        self._sender = sender

    def line(self) -> bytes | None:
        """The line of the next message, with its end unless that is missing; None when there is no further one.

        Raises ``ProtocolError`` when it is too long.
        """
        line = self._file.readline(LINE_LIMIT)
        if len(line) == LINE_LIMIT and not line.endswith(b"\n"):
            raise _too_long(self._sender)
        return line or None

    def message(self) -> T | None:
        """The next message; None when the other end is closed. Raises ``ProtocolError``."""
        line = self.line()
        return None if line is None else decode(self._decoder, line, self._sender)

    def payload(self, size: int, what: str) -> Iterator[bytes]:
        """The ``size`` bytes after the last message, in blocks. Raises ``ProtocolError`` when they are cut short."""
        while size > 0:
            block = self._file.read(min(size, BLOCK))
            if not block:
                raise _cut_short(self._sender, what)
            size -= len(block)
            yield block

    def close(self) -> None:
        """Read nothing more."""
        self._file.close()


class Writer:
    """Messages to the pipe ``fd``, from any thread. Once the other end is gone, they are dropped."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def write(self, message: object, payload: Iterable[bytes | memoryview] = ()) -> None:
        """Write ``message``, and the bytes that it announces. Nothing once this is closed."""
        line = encode(message)
        with self._lock, contextlib.suppress(BrokenPipeError):
            if self._fd >= 0:
                write_all(self._fd, line)
                for block in payload:
                    write_all(self._fd, block)

    def write_if_idle(self, message: object) -> None:
        """Write ``message``, of less than 4096 bytes, unless that has to wait: for another thread that writes, or for
        the other end to read."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            poll = select.poll()
            if self._fd >= 0:
                poll.register(self._fd, select.POLLOUT)
            if poll.poll(0):  # there is room for PIPE_BUF bytes, or the other end is gone (pipe(7))
                with contextlib.suppress(BrokenPipeError):
                    write_all(self._fd, encode(message))
        finally:
            self._lock.release()

    def close(self) -> None:
        """Write nothing more."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1


async def read_line(stream: asyncio.StreamReader, sender: str) -> bytes | None:
    """As ``Reader.line``, from a stream of asyncio that was made with the limit ``LINE_LIMIT``."""
    try:
        return await stream.readline() or None
    except ValueError as error:
        raise _too_long(sender) from error


async def read(stream: asyncio.StreamReader, decoder: decoding.Decoder[T], sender: str) -> T | None:
    """As ``Reader.message``, from a stream of asyncio."""
    line = await read_line(stream, sender)
    return None if line is None else decode(decoder, line, sender)


async def read_payload(stream: asyncio.StreamReader, size: int, sender: str, what: str) -> AsyncIterator[bytes]:
    """As ``Reader.payload``, from a stream of asyncio."""
    while size > 0:
        block = await stream.read(min(size, BLOCK))
        if not block:
            raise _cut_short(sender, what)
        size -= len(block)
        yield block


async def write(stream: asyncio.StreamWriter, message: object, payload: bytes = b"") -> None:
    """Write ``message`` to a stream of asyncio, and the bytes that it announces; wait until the other end keeps up.

    An other end that is gone is no error here: its last messages can still be read.
    """
    stream.write(encode(message) + payload)
    with contextlib.suppress(ConnectionError):
        await stream.drain()


def send(packets: socket.socket, message: object, fds: Sequence[int] = ()) -> None:
    """Send ``message``, of at most 64 KiB, as a packet with copies of ``fds``, 253 at most (unix(7)).

    ``packets`` is a socket of type SOCK_SEQPACKET. Raises ``OSError``.
    """
    socket.send_fds(packets, [encode(message)], fds)


def receive(
    packets: socket.socket, decoder: decoding.Decoder[T], sender: str, fds: int = 0
) -> tuple[T | None, list[int]]:
    """The message in the next packet, and up to ``fds`` descriptors that came with it, which are the caller's to close.

    None when the other end is closed. Raises ``ProtocolError`` and ``OSError``.
    """
    line, found = receive_fds(packets, _PACKET, fds)
    return (decode(decoder, line, sender) if line else None), found


def _nothing() -> None:
    """Do nothing."""


def _too_long(sender: str) -> ProtocolError:
    return ProtocolError(f"a message of {sender} is too long")


def _cut_short(sender: str, what: str) -> ConnectionLost:
    return ConnectionLost(f"{sender} stopped in the middle of {what}")


def _as_text(value: Any) -> Any:
    match value:
        case str():
            return value.encode(errors="replace").decode()
        case dict():
            return {key: _as_text(each) for key, each in value.items()}
        case list() | tuple():
            return [_as_text(each) for each in value]
        case _:
            return value
