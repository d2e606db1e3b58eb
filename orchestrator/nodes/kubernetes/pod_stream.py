"""The pipes of an executor in a Pod, over streams of exec that may be cut.

This is the orchestrator's end of ``executor.relay``. Bytes have offsets and are kept until the other end has
acknowledged them, so that the next stream goes on where the last one was.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from executor import relay
from executor.relay import HEADER
from orchestrator.nodes.kubernetes.cluster_api import APIRefusedError, APIUnreachableError
from orchestrator.process import STDERR_LIMIT, CountedReader, Worker
from platforms import debug, decoding
from platforms.errors import KanifoldError, printable

if TYPE_CHECKING:
    import aiohttp

Dial = Callable[[], AbstractAsyncContextManager["aiohttp.ClientWebSocketResponse"]]
"""Opens a stream to the container. Raises ``KanifoldError`` if that is in vain, now and later."""

_STDIN: Final = b"\x00"
_STDOUT: Final = 1
_STDERR: Final = 2
_ERROR: Final = 3
_HIGH: Final = 1 << 20
"""Bytes that wait to be acknowledged from which on writers wait."""
_LOW: Final = 1 << 19
_FRAME: Final = 1 << 16
_WINDOW: Final = 8 << 20
"""Bytes on their way at most."""
_ACK_EVERY: Final = 10.0
"""Seconds after which a sign of life is sent."""
_SILENCE: Final = 20.0
"""Seconds without an answer to what was sent after which a stream is given up."""
_PAUSES: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds before another stream is opened; the last one from then on."""
_DRAIN: Final = 2.0
"""Seconds in which the last bytes of a Pod that has ended may come."""


class _Exit(msgspec.Struct, frozen=True):
    """The end of an executor, as its relay tells it."""

    status: decoding.Int64
    oom: bool
    """Whether a process in the container was killed for want of memory meanwhile."""
    stderr: str


_EXIT: Final = msgspec.json.Decoder(_Exit)


class BusyError(Exception):
    """Another orchestrator is connected to the executor."""


class _CutError(Exception):
    """The stream has ended, or carries something else than frames."""


class PodProcess:
    """The process of an executor in a Pod, for ``Worker``."""

    executors = 1
    pid = 0

    def __init__(self, kill: Callable[[], object]) -> None:
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.tail = ""
        self._kill = kill

    @property
    def stderr_tail(self) -> str:
        """The end of what the executor has written to stderr."""
        return self.tail[-STDERR_LIMIT:].strip()

    async def gone(self) -> None:
        """Wait for the end, for a moment at most."""
        await asyncio.wait({self.ended}, timeout=_DRAIN)

    def end(self, status: int) -> None:
        """Record that it has ended."""
        if not self.ended.done():
            self.ended.set_result(status)

    def kill(self) -> None:
        """Give it up."""
        self._kill()
        self.end(-9)

    def release(self) -> None:
        """Do nothing: the stream is closed by its own end."""


class PodStream(asyncio.Transport):
    """The streams to an executor that is begun as ``session``; ``dial`` opens them.

    ``closed`` is called once when the orchestrator writes nothing more: the executor is done, or cancelled. It is not
    if the stream has never been connected: the executor may be another orchestrator's.
    """

    def __init__(self, session: str, dial: Dial, limit: int, closed: Callable[[], Awaitable[object]]) -> None:
        super().__init__()
        loop = asyncio.get_running_loop()
        self._session = session
        self._dial = dial
        self._closed = closed
        self._protocol = asyncio.streams.FlowControlMixin(loop)
        self._reader = CountedReader(limit=limit)
        self._reader.set_transport(self)
        self._kept = bytearray()
        """What was written and not acknowledged."""
        self._base = 0
        """The offset of its first byte."""
        self._sent = 0
        """The offset up to which the present stream was given it."""
        self._received = 0
        self._acknowledged = 0
        """The offset up to which was acknowledged to the other end."""
        self._ending = self._end_sent = False
        self._stdout_ended = self._writing_paused = False
        self._changed = asyncio.Event()
        self._readable = asyncio.Event()
        self._readable.set()
        self._heard = time.monotonic()
        self.connected: asyncio.Future[None] = loop.create_future()
        """Done when the executor has been started, or raises why not."""
        self.process = PodProcess(self.abort)
        self._task = asyncio.create_task(self._run())
        self._closing: asyncio.Task[object] | None = None

    @property
    def worker(self) -> Worker:
        """The executor, as other parts use it."""
        writer = asyncio.StreamWriter(self, self._protocol, None, asyncio.get_running_loop())
        return Worker(self.process, writer, self._reader, self)

    async def wait_closed(self) -> None:
        """Wait until nothing is left to do."""
        await asyncio.gather(
            *(each for each in (self._task, self._closing) if each is not None), return_exceptions=True
        )

    # -- what asyncio's streams call -----------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Have ``data`` sent."""
        if self._ending:
            return
        self._kept += data
        self._changed.set()
        if len(self._kept) > _HIGH and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        """Return how many bytes have not arrived."""
        return len(self._kept)

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self._ending

    def close(self) -> None:
        """Write nothing more."""
        if not self._ending:
            self._ending = True
            self._changed.set()
            self._closing = asyncio.create_task(self._finish())

    def abort(self) -> None:
        """Give up the streams."""
        self.close()
        self._task.cancel()

    def pause_reading(self) -> None:
        """Take nothing more from the stream."""
        self._readable.clear()

    def resume_reading(self) -> None:
        """Go on taking."""
        self._readable.set()

    # -- the end -------------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        try:
            if self._stdout_ended:  # the executor has ended, and its last words are on their way
                await self.process.gone()
            if self.connected.done() and self.connected.exception() is None:
                await self._closed()
        finally:
            self._task.cancel()
            self.process.end(0)
            self._end_reading()

    def fail(self, error: KanifoldError) -> None:
        """End with ``error``, which whoever reads gets."""
        if not self.connected.done():
            self.connected.set_exception(error)
            self.connected.exception()  # it need not be awaited
        if not self._stdout_ended:
            self._reader.set_exception(error)
        self._task.cancel()
        self._protocol.connection_lost(None)
        self.process.end(1)

    async def fail_soon(self, error: KanifoldError) -> None:
        """As ``fail``, unless the last bytes of the executor tell more."""
        await asyncio.wait({self.process.ended}, timeout=_DRAIN)
        if not self.process.ended.done():
            self.fail(error)

    def _end_reading(self) -> None:
        if not self._stdout_ended:
            self._stdout_ended = True
            self._reader.feed_eof()

    # -- streams -------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        failures = 0
        while not self.process.ended.done():
            try:
                async with self._dial() as socket:
                    await self._speak(socket)
            except BusyError:
                if not self.connected.done():
                    self.connected.set_exception(BusyError())
                return
            except KanifoldError as error:
                self.fail(error)
                return
            except (_CutError, APIRefusedError, APIUnreachableError) as error:
                debug.log("stream to a Pod is cut", why=str(error), received=self._received, sent=self._base)
            failures = 0 if time.monotonic() - self._heard < 1.0 else failures + 1
            await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])

    async def _speak(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Use the stream ``socket`` until it ends. Raises ``BusyError``, ``_CutError``."""
        hello = f"{self._session} {self._received}".encode()
        try:
            await socket.send_bytes(_STDIN + HEADER.pack(b"H", 0, len(hello)) + hello)
            frames = _Frames(socket)
            async with asyncio.timeout(_SILENCE):
                kind, _, content = await frames.next()
            if kind == b"B":
                raise BusyError
            if kind != b"H":
                raise _CutError("no greeting")
            self._acknowledge(int(content))
        except (TimeoutError, ValueError, ConnectionError, RuntimeError) as error:
            raise _CutError(printable(str(error))) from error
        self._sent, self._end_sent, self._acknowledged = self._base, False, -1
        self._heard = time.monotonic()
        if not self.connected.done():
            self.connected.set_result(None)
        both = [asyncio.create_task(self._send(socket)), asyncio.create_task(self._receive(frames))]
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
        finally:
            for each in both:
                each.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _send(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        try:
            while not self.process.ended.done():
                self._changed.clear()
                if self._received != self._acknowledged:
                    self._acknowledged = self._received
                    await socket.send_bytes(_STDIN + HEADER.pack(b"A", self._received, 0))
                end = self._base + len(self._kept)
                if self._sent < end and self._sent - self._base < _WINDOW:
                    block = bytes(self._kept[self._sent - self._base : self._sent - self._base + _FRAME])
                    begin, self._sent = self._sent, self._sent + len(block)
                    await socket.send_bytes(_STDIN + HEADER.pack(b"D", begin, len(block)) + block)
                    continue
                if self._ending and self._sent == end and not self._end_sent:
                    self._end_sent = True
                    await socket.send_bytes(_STDIN + HEADER.pack(b"E", end, 0))
                try:
                    async with asyncio.timeout(_ACK_EVERY):
                        await self._changed.wait()
                except TimeoutError:
                    self._acknowledged = -1
                if self._kept and time.monotonic() - self._heard > _SILENCE and self._readable.is_set():
                    raise _CutError("nothing is acknowledged")
        except (ConnectionError, RuntimeError) as error:
            raise _CutError(printable(str(error))) from error

    async def _receive(self, frames: _Frames) -> None:
        while True:
            await self._readable.wait()
            kind, offset, content = await frames.next()
            self._heard = time.monotonic()
            match kind:
                case b"D":
                    if offset > self._received:
                        raise _CutError("bytes are missing")
                    new = content[self._received - offset :]
                    self._received += len(new)
                    if new and not self._stdout_ended:
                        self._reader.feed_data(new)
                    self._changed.set()
                case b"A":
                    self._acknowledge(offset)
                case b"E":
                    self._changed.set()
                    self._end_reading()
                case b"X":
                    self._ended(content)
                    await frames.acknowledge(self._received + 1)
                    return
                case _:
                    raise _CutError("an unknown frame")

    def _acknowledge(self, offset: int) -> None:
        count = offset - self._base
        if not 0 <= count <= len(self._kept):
            raise _CutError("an offset that was not sent")
        del self._kept[:count]
        self._base += count
        self._sent = max(self._sent, self._base)
        self._changed.set()
        if self._writing_paused and len(self._kept) < _LOW:
            self._writing_paused = False
            self._protocol.resume_writing()

    def _ended(self, content: bytes) -> None:
        """Take the end of the executor, as its relay tells it."""
        try:
            said = decoding.decode(_EXIT, content)
        except msgspec.DecodeError as error:
            raise _CutError("a malformed end") from error
        killed = said.oom and said.status == -9
        self.process.tail = f"{said.stderr}\nit was killed for want of memory (OOM)" if killed else said.stderr
        self._end_reading()
        self.process.end(said.status)


class _Frames:
    """The frames that come on the stream ``socket``."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._buffer = bytearray()
        self._said = b""
        """What the program in the container has written to stderr."""

    async def next(self) -> tuple[bytes, int, bytes]:
        """Return the next frame. Raises ``_CutError``."""
        while True:
            if len(self._buffer) >= HEADER.size:
                kind, offset, size = HEADER.unpack_from(self._buffer)
                if size > relay.FRAME_LIMIT:
                    raise _CutError("a frame that is too long")
                if len(self._buffer) >= HEADER.size + size:
                    content = bytes(self._buffer[HEADER.size : HEADER.size + size])
                    del self._buffer[: HEADER.size + size]
                    return kind, offset, content
            await self._more()

    async def _more(self) -> None:
        message = await self._socket.receive()
        data = message.data
        if not isinstance(data, bytes):
            raise _CutError(printable(self._said.decode(errors="replace")) or "the stream has ended")
        channel, content = data[:1], data[1:]
        if channel == bytes((_STDOUT,)):
            self._buffer += content
        elif channel == bytes((_STDERR,)):
            self._said = (self._said + content)[-1000:]
        elif channel == bytes((_ERROR,)):
            said = self._said or content
            raise _CutError(printable(said.decode(errors="replace"), 1000))

    async def acknowledge(self, offset: int) -> None:
        """Acknowledge all up to ``offset``."""
        with contextlib.suppress(ConnectionError, RuntimeError):
            await self._socket.send_bytes(_STDIN + HEADER.pack(b"A", offset, 0))
