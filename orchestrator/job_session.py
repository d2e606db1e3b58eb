"""What is said with an executor about one job: its events, its questions, its result, and what it hands over then.

An executor's word is not taken: what it claims to have built is checked by the caller against the content itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import msgspec

from executor import protocol
from orchestrator.connection import Connection
from platforms.errors import Interrupted, KanifoldError, ProtocolError

_QUESTIONS: Final = 1000
"""Questions without an answer that an executor may have: far more than it has threads."""

OnMessage = Callable[[protocol.Message], None]
Stream = Callable[[Callable[[bytes | memoryview], object]], None]
"""Gives an answer, too large to be held, to its argument block by block; runs on a thread."""
Answer = bytes | Stream | None
"""None: there is no such thing."""
OnAsk = Callable[[protocol.Ask], Awaitable[Answer]]


class Executor(msgspec.Struct, frozen=True):
    """A running executor whose job is done, still there to hand over blobs."""

    connection: Connection
    result: protocol.Result

    async def blob(self, digest: str, size: int, sink: Callable[[bytes], object]) -> None:
        """Give the content of ``digest``, which has ``size`` bytes, to ``sink``, in blocks."""
        await self.connection.send(protocol.Fetch(digest))
        message = await self._asked_for()
        if isinstance(message, protocol.Failed):
            raise KanifoldError.of(message.problem)
        if (
            not isinstance(message, protocol.BlobContent)
            or (message.digest, message.size) != (digest, size)
            or size < 0
        ):
            raise ProtocolError("an executor sent something else than the blob it was asked for")
        async for block in self.connection.payload(size, "a blob"):
            sink(block)

    async def files(self, prefix: str) -> AsyncIterator[bytes]:
        """The image's file system as blocks of a tar archive without an end, everything in the directory ``prefix``."""
        await self.connection.send(protocol.FilesRequest(prefix))
        while True:
            message = await self._asked_for()
            if isinstance(message, protocol.Failed):
                raise KanifoldError.of(message.problem)
            if not isinstance(message, protocol.Piece) or message.size < 0:
                raise ProtocolError("an executor sent something else than the files it was asked for")
            if not message.size:
                return
            async for block in self.connection.payload(message.size, "files"):
                yield block

    async def abandon(self) -> None:
        """End the executor: nobody wants what it made."""
        await self.connection.end()

    async def close(self) -> None:
        """Release the executor."""
        await self.connection.send(protocol.Done())
        await self.connection.end()

    async def _asked_for(self) -> protocol.Message:
        """The next message that is no word of progress: what is asked for now may have to be made first."""
        while isinstance(message := await self.connection.receive(), protocol.Transfer):
            pass
        return message


async def run(connection: Connection, job: protocol.Job, on_message: OnMessage, on_ask: OnAsk) -> Executor:
    """Give ``job`` to an executor, and hear it to the end; ``on_message`` is told its greeting first.

    Raises the error that the executor reports, or ``ProtocolError`` when it breaks off. Cancelling this coroutine ends
    the executor and everything below it, and so does an error.
    """
    try:
        on_message(connection.greeting)
        await connection.send(job)
        result = await _listen(connection, on_message, on_ask)
    except BaseException:
        await asyncio.shield(connection.end())
        raise
    return Executor(connection, result)


async def _listen(connection: Connection, on_message: OnMessage, on_ask: OnAsk) -> protocol.Result:
    answers: set[asyncio.Task[None]] = set()
    while True:
        match message := await connection.receive():
            case protocol.Ask():
                if len(answers) >= _QUESTIONS:
                    raise ProtocolError("an executor asks more than it can hear")
                task = asyncio.create_task(_answer(connection, message, on_ask))
                answers.add(task)
                task.add_done_callback(answers.discard)
            case protocol.Failed():
                raise KanifoldError.of(message.problem)
            case protocol.Result():
                on_message(message)
                return message
            case protocol.BlobContent() | protocol.Piece():
                raise ProtocolError("an executor sent content that nobody asked for")
            case _:
                on_message(message)


async def _answer(connection: Connection, ask: protocol.Ask, on_ask: OnAsk) -> None:
    try:
        payload = await on_ask(ask)
    except KanifoldError as error:
        await connection.send(protocol.Answer(ask.id, error=error.problem))
        return
    match payload:
        case None:
            await connection.send(protocol.Answer(ask.id, missing=True))
        case bytes():
            await connection.send(protocol.Answer(ask.id, size=len(payload)), payload)
        case _:
            await _stream(connection, ask.id, payload)


async def _stream(connection: Connection, number: int, stream: Stream) -> None:
    """Answer question ``number`` with what ``stream`` gives, no faster than the executor takes it."""
    loop = asyncio.get_running_loop()

    def out(block: bytes | memoryview) -> None:
        if connection.closed:
            raise Interrupted("the executor is gone")
        sending = connection.send(protocol.Answer(number, len(block), more=True), bytes(block))
        asyncio.run_coroutine_threadsafe(sending, loop).result()

    try:
        await asyncio.to_thread(stream, out)
    except KanifoldError as error:
        await connection.send(protocol.Answer(number, error=error.problem))
    else:
        await connection.send(protocol.Answer(number))
