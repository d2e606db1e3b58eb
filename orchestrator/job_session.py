"""One job on an executor: its events, requests and result, and fetching blobs afterwards.

Executors are not trusted: the caller verifies the result.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import msgspec

from executor import protocol
from orchestrator.connection import Connection
from platforms.errors import BuildError, Interrupted, KanifoldError, Problem, ProtocolError

_QUESTIONS: Final = 1000
"""Maximum number of unanswered requests of an executor: far more than it has threads."""

OnMessage = Callable[[protocol.Message], None]
Stream = Callable[[Callable[[bytes | memoryview], object]], None]
"""Passes a large answer block by block to its argument; runs on a thread."""
Answer = bytes | Stream | None
"""None: what was requested does not exist."""
OnAsk = Callable[[protocol.Ask], Awaitable[Answer]]
OnCacheBlob = Callable[[protocol.CacheBlob, AsyncIterator[bytes]], Awaitable[None]]
"""Takes the layer of a cache entry to its end. Raises ``ProtocolError`` for one that was not requested."""


class Executor(msgspec.Struct, frozen=True):
    """A running executor that has done its job and can send blobs."""

    connection: Connection
    result: protocol.Result

    async def blob(self, digest: str, size: int, sink: Callable[[bytes], object]) -> None:
        """Pass the content of ``digest``, of ``size`` bytes, to ``sink`` in blocks."""
        async for block in self.blocks(digest, size):
            sink(block)

    async def blocks(self, digest: str, size: int) -> AsyncIterator[bytes]:
        """Return the content of ``digest``, of ``size`` bytes, in blocks, as fast as they are taken."""
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
            yield block

    async def files(self, prefix: str) -> AsyncIterator[bytes]:
        """Return the image's file system as blocks of a tar archive without its end, in the directory ``prefix``."""
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
        """End the executor: its result is not needed."""
        await self.connection.end()

    async def close(self) -> None:
        """Release the executor."""
        await self.connection.send(protocol.Done())
        await self.connection.end()

    async def _asked_for(self) -> protocol.Message:
        """Return the next message that is not about progress: what was requested may have to be made first."""
        while isinstance(message := await self.connection.receive(), protocol.Transfer):
            pass
        return message


async def unwanted(_message: protocol.CacheBlob, _content: AsyncIterator[bytes]) -> None:
    """An ``OnCacheBlob`` for a job that exports to no cache of the orchestrator."""
    raise ProtocolError("an executor sent content that nobody asked for")


async def run(
    connection: Connection,
    job: protocol.Job,
    on_message: OnMessage,
    on_ask: OnAsk,
    on_cache_blob: OnCacheBlob = unwanted,
) -> Executor:
    """Send ``job`` to an executor and wait for its result; ``on_message`` receives its greeting first, then events.

    Raises the error that the executor reports, or ``ProtocolError`` if the connection ends. An error, or cancelling
    this coroutine, ends the executor and all of its processes.
    """
    try:
        on_message(connection.greeting)
        await connection.send(job)
        result = await _listen(connection, on_message, on_ask, on_cache_blob)
    except BaseException:
        await asyncio.shield(connection.end())
        raise
    return Executor(connection, result)


async def _listen(
    connection: Connection, on_message: OnMessage, on_ask: OnAsk, on_cache_blob: OnCacheBlob
) -> protocol.Result:
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
            case protocol.CacheBlob():
                if message.size < 0:
                    raise ProtocolError("an executor sent a layer of a negative size")
                await on_cache_blob(message, connection.payload(message.size, "a layer"))
            case protocol.BlobContent() | protocol.Piece():
                raise ProtocolError("an executor sent content that nobody asked for")
            case _:
                on_message(message)


async def _answer(connection: Connection, ask: protocol.Ask, on_ask: OnAsk) -> None:
    try:
        payload = await on_ask(ask)
    except Exception as error:  # whatever it is: the executor waits
        await connection.send(protocol.Answer(ask.id, error=_problem(ask.question, error)))
        return
    match payload:
        case None:
            await connection.send(protocol.Answer(ask.id, missing=True))
        case bytes():
            await connection.send(protocol.Answer(ask.id, size=len(payload)), payload)
        case _:
            await _stream(connection, ask, payload)


def _problem(question: protocol.Question, error: Exception) -> Problem:
    """Return the reason why ``question`` cannot be answered, for the executor.

    Of an error that is not ours the text is left out, which may have paths of this machine.
    """
    if isinstance(error, KanifoldError):
        return error.problem
    if not isinstance(error, OSError):
        sys.excepthook(type(error), error, error.__traceback__)
    why = error.strerror if isinstance(error, OSError) else None
    what = f"the orchestrator cannot give the {question.kind} {question.name!r}"
    return Problem(BuildError.__name__, what, why or type(error).__name__)


async def _stream(connection: Connection, ask: protocol.Ask, stream: Stream) -> None:
    """Answer ``ask`` with the blocks of ``stream``, at the rate at which the executor reads."""
    loop = asyncio.get_running_loop()

    def out(block: bytes | memoryview) -> None:
        if connection.closed:
            raise Interrupted("the executor is gone")
        sending = connection.send(protocol.Answer(ask.id, len(block), more=True), bytes(block))
        asyncio.run_coroutine_threadsafe(sending, loop).result()

    try:
        await asyncio.to_thread(stream, out)
    except Exception as error:
        await connection.send(protocol.Answer(ask.id, error=_problem(ask.question, error)))
    else:
        await connection.send(protocol.Answer(ask.id))
