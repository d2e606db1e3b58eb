"""Streams of exec, as aiohttp has them, to relays (``executor.relay``) that run without a container."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, NamedTuple


class Message(NamedTuple):
    data: Any


class Socket:
    """A stream of exec, as aiohttp has it, to the relay on ``path``; cut after ``limit`` bytes in both directions."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int) -> None:
        self._reader, self._writer, self._left = reader, writer, limit

    def _passed(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            self._writer.transport.abort()

    async def send_bytes(self, data: bytes) -> None:
        assert data[:1] == b"\0"
        part = data[1:][: max(0, self._left)]  # cut within a frame
        self._writer.write(part)
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()
        self._passed(len(data) - 1)
        if self._writer.is_closing():
            raise ConnectionResetError("cut")

    async def receive(self) -> Message:
        try:
            data = await self._reader.read(1 << 16)
        except ConnectionError:
            return Message(None)
        self._passed(len(data))
        return Message(b"\1" + data) if data else Message(None)

    async def close(self) -> None:
        self._writer.transport.abort()
