"""The orchestrator's end of the protocol in ``executor.protocol``: one executor process, its events, its questions.

An executor may run on another machine and its word is not taken: every line is decoded strictly and bounded, and what
it claims to have built is checked by the caller against the content itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import msgspec

from executor import protocol
from orchestrator.node import Node
from orchestrator.process import GRACE, Process, start
from platforms import framing
from platforms.errors import EnvironmentUnfit, Interrupted, KanifoldError, ProtocolError

_INCOMING: Final[msgspec.json.Decoder[protocol.Message]] = msgspec.json.Decoder(
    protocol.Handshake
    | protocol.Planned
    | protocol.Started
    | protocol.Held
    | protocol.Finished
    | protocol.Log
    | protocol.Transfer
    | protocol.Waiting
    | protocol.BuildWarning
    | protocol.Ask
    | protocol.Result
    | protocol.Failed
    | protocol.Blob
    | protocol.Piece
)
_SENDER: Final = "an executor"
GREETING: Final = 60.0
"""Seconds in which an executor that was started has to introduce itself."""
_QUESTIONS: Final = 1000
"""Questions without an answer that an executor may have: far more than it has threads."""

OnMessage = Callable[[protocol.Message], None]
Stream = Callable[[Callable[[bytes | memoryview], object]], None]
"""Gives an answer, too large to be held, to its argument block by block; runs on a thread."""
OnAsk = Callable[[protocol.Ask], Awaitable[bytes | Stream | None]]


class Executor(msgspec.Struct, frozen=True):
    """A running executor whose job is done, still there to hand over blobs."""

    process: Process
    result: protocol.Result

    async def blob(self, digest: str, size: int, sink: Callable[[bytes], object]) -> None:
        """Give the content of ``digest``, which has ``size`` bytes, to ``sink``, in blocks."""
        await _send(self.process, protocol.Fetch(digest))
        message = await _asked_for(self.process)
        if isinstance(message, protocol.Failed):
            raise KanifoldError.of(message.problem)
        if not isinstance(message, protocol.Blob) or (message.digest, message.size) != (digest, size) or size < 0:
            raise ProtocolError("an executor sent something else than the blob it was asked for")
        async for block in framing.read_payload(self.process.stdout, size, _SENDER, "a blob"):
            sink(block)

    async def files(self, prefix: str) -> AsyncIterator[bytes]:
        """The image's file system as blocks of a tar archive without an end, everything in the directory ``prefix``."""
        await _send(self.process, protocol.Files(prefix))
        while True:
            message = await _asked_for(self.process)
            if isinstance(message, protocol.Failed):
                raise KanifoldError.of(message.problem)
            if not isinstance(message, protocol.Piece) or message.size < 0:
                raise ProtocolError("an executor sent something else than the files it was asked for")
            if not message.size:
                return
            async for block in framing.read_payload(self.process.stdout, message.size, _SENDER, "files"):
                yield block

    async def abandon(self) -> None:
        """End the executor: nobody wants what it made."""
        await _end(self.process)

    async def close(self) -> None:
        """Let the executor go."""
        await _send(self.process, protocol.Done())
        await _end(self.process)


async def run(node: Node, job: protocol.Job, on_message: OnMessage, on_ask: OnAsk) -> Executor:
    """Start an executor on ``node``, give it ``job`` and hear it to the end.

    Raises the error that the executor reports, or ``ProtocolError`` when it breaks off. Cancelling this coroutine ends
    the executor and everything below it.
    """
    try:
        process = await node.pool.acquire(framing.LINE_LIMIT) if node.pool is not None else None
        if process is None:
            process = await start(node.command, node.environment, framing.LINE_LIMIT)
    except OSError as error:
        raise EnvironmentUnfit(
            f"cannot start an executor on node {node.name}", why=f"{node.command[0]}: {error.strerror}"
        ) from error
    try:
        on_message(await _greeting(process))
        await _send(process, job)
        result = await _listen(process, on_message, on_ask)
    except BaseException:
        await asyncio.shield(_end(process))
        raise
    return Executor(process, result)


async def _greeting(process: Process) -> protocol.Handshake:
    """What the executor is, which it writes before it reads its job. Raises ``ProtocolError``, also when it is silent.

    An executor of another version may wait for its job first, and would do so forever.
    """
    try:
        async with asyncio.timeout(GREETING):
            line = await framing.read_line(process.stdout, _SENDER)
    except TimeoutError as error:
        raise ProtocolError(
            "an executor did not introduce itself",
            why=process.child.stderr_tail or f"it wrote nothing for {GREETING:.0f} seconds",
            remedy="install the same version of kanifold on every node",
        ) from error
    if line is None:
        raise await _end_of(process)
    protocol.check_version(line, _SENDER)
    match framing.decode(_INCOMING, line, _SENDER):
        case protocol.Handshake() as greeting:
            return greeting
        case protocol.Failed(problem):
            raise KanifoldError.of(problem)
        case _:
            raise ProtocolError("an executor did not introduce itself")


async def _end_of(process: Process) -> ProtocolError:
    """The error of an executor that has closed its stdout before it wrote a result, with what is known of the cause."""
    process.stdin.close()
    child = process.child
    gone: set[asyncio.Future[Any]] = {child.ended, child.stderr_closed}
    await asyncio.wait(gone, timeout=GRACE)
    status = f"exit status {child.ended.result()}" if child.ended.done() else "its process goes on without it"
    return ProtocolError("an executor ended without a result", why=child.stderr_tail or status)


async def _listen(process: Process, on_message: OnMessage, on_ask: OnAsk) -> protocol.Result:
    answers: set[asyncio.Task[None]] = set()
    while True:
        message = await _receive(process)
        if message is None:
            raise await _end_of(process)
        match message:
            case protocol.Ask():
                if len(answers) >= _QUESTIONS:
                    raise ProtocolError("an executor asks more than it can hear")
                task = asyncio.create_task(_answer(process, message, on_ask))
                answers.add(task)
                task.add_done_callback(answers.discard)
            case protocol.Failed():
                raise KanifoldError.of(message.problem)
            case protocol.Result():
                on_message(message)
                return message
            case protocol.Blob() | protocol.Piece():
                raise ProtocolError("an executor sent content that nobody asked for")
            case _:
                on_message(message)


async def _answer(process: Process, ask: protocol.Ask, on_ask: OnAsk) -> None:
    try:
        payload = await on_ask(ask)
    except KanifoldError as error:
        await _send(process, protocol.Answer(ask.id, error=error.problem))
        return
    match payload:
        case None:
            await _send(process, protocol.Answer(ask.id, missing=True))
        case bytes():
            await _send(process, protocol.Answer(ask.id, size=len(payload)), payload)
        case _:
            await _stream(process, ask.id, payload)


async def _stream(process: Process, number: int, stream: Stream) -> None:
    """Answer question ``number`` with what ``stream`` gives, no faster than the executor takes it."""
    loop = asyncio.get_running_loop()

    def out(block: bytes | memoryview) -> None:
        if process.stdin.is_closing():
            raise Interrupted("the executor is gone")
        sending = _send(process, protocol.Answer(number, len(block), more=True), bytes(block))
        asyncio.run_coroutine_threadsafe(sending, loop).result()

    try:
        await asyncio.to_thread(stream, out)
    except KanifoldError as error:
        await _send(process, protocol.Answer(number, error=error.problem))
    else:
        await _send(process, protocol.Answer(number))


async def _asked_for(process: Process) -> protocol.Message | None:
    """The next message that is no word of progress: what is asked for after the result may have to be made first."""
    while isinstance(message := await _receive(process), protocol.Transfer):
        pass
    return message


async def _send(process: Process, message: protocol.Message, payload: bytes = b"") -> None:
    await framing.write(process.stdin, message, payload)  # if it is gone, its last words are still to be read


async def _receive(process: Process) -> protocol.Message | None:
    return await framing.read(process.stdout, _INCOMING, _SENDER)


async def _end(process: Process) -> None:
    """Close stdin, which cancels the job; kill what does not go."""
    process.stdin.close()
    try:
        await asyncio.wait_for(process.end(), GRACE)
    except TimeoutError:
        process.child.kill()
        await process.child.ended
    finally:
        process.release()
