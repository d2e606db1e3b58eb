"""A connection to one executor: the orchestrator's ends of its pipes, from its greeting to its end.

An executor may run on another machine and its word is not taken: every line is decoded strictly and bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import msgspec

from executor import protocol
from orchestrator.process import GRACE, Worker, start
from platforms import framing
from platforms.errors import BuildError, EnvironmentUnfit, ProtocolError

LINE_LIMIT: Final = framing.LINE_LIMIT
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
    | protocol.BlobContent
    | protocol.Piece
)
_SENDER: Final = "an executor"
GREETING: Final = 60.0
"""Seconds in which an executor that was started has to introduce itself."""


class Connection(msgspec.Struct, frozen=True):
    """An executor that has introduced itself, and waits for a job unless it was given one."""

    worker: Worker
    greeting: protocol.Handshake

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self.worker.stdin.is_closing()

    async def send(self, message: protocol.Message, payload: bytes = b"") -> None:
        """Write ``message``. If the executor is gone nothing happens: its last words are still to be read."""
        await framing.write(self.worker.stdin, message, payload)

    async def receive(self) -> protocol.Message:
        """The next message. Raises ``ProtocolError``, also when there is none: with what is known of the cause."""
        message = await framing.read(self.worker.stdout, _INCOMING, _SENDER)
        if message is None:
            raise await _end_of(self.worker)
        return message

    def payload(self, size: int, what: str) -> AsyncIterator[bytes]:
        """The ``size`` bytes that follow the last message, in blocks; errors call them ``what``."""
        return framing.read_payload(self.worker.stdout, size, _SENDER, what)

    async def end(self) -> None:
        """Close the executor's stdin, which cancels its job; kill what does not go. Nothing of it is left then."""
        await _end(self.worker)


async def launch(node: str, command: Sequence[str], environment: Sequence[tuple[str, str]]) -> Connection:
    """Run ``command``, which is an executor on the node called ``node``. Raises what ``connect`` raises.

    Raises ``EnvironmentUnfit`` when there is no such program.
    """
    try:
        worker = await start(command, environment, LINE_LIMIT)
    except OSError as error:
        raise EnvironmentUnfit(
            f"cannot start an executor on node {node}", why=f"{command[0]}: {error.strerror}"
        ) from error
    return await connect(worker)


async def connect(worker: Worker) -> Connection:
    """A connection to the executor ``worker`` once it has introduced itself, which it does before it reads its job.

    Raises ``ProtocolError``, also when it is silent (an executor of another version may wait for its job first, and
    would do so forever), or the error that the executor reports instead. The process is over then, as it is when this
    is cancelled.
    """
    try:
        return Connection(worker, await _greeting(worker))
    except BaseException:
        await asyncio.shield(_end(worker))
        raise


async def _greeting(worker: Worker) -> protocol.Handshake:
    try:
        async with asyncio.timeout(GREETING):
            line = await framing.read_line(worker.stdout, _SENDER)
    except TimeoutError as error:
        raise ProtocolError(
            "an executor did not introduce itself",
            why=worker.process.stderr_tail or f"it wrote nothing for {GREETING:.0f} seconds",
            remedy="install the same version of kanifold on every node",
        ) from error
    if line is None:
        raise await _end_of(worker)
    protocol.check_version(line, _SENDER)
    match framing.decode(_INCOMING, line, _SENDER):
        case protocol.Handshake() as greeting:
            return greeting
        case protocol.Failed(problem):
            raise BuildError.of(problem)  # as a kind that is not known here
        case _:
            raise ProtocolError("an executor did not introduce itself")


async def _end_of(worker: Worker) -> ProtocolError:
    """The error of an executor that has closed its stdout before it wrote a result, with what is known of the cause."""
    worker.stdin.close()
    process = worker.process
    gone: set[asyncio.Future[Any]] = {process.ended, process.stderr_closed}
    await asyncio.wait(gone, timeout=GRACE)
    status = f"exit status {process.ended.result()}" if process.ended.done() else "its process goes on without it"
    return ProtocolError("an executor ended without a result", why=process.stderr_tail or status)


async def _end(worker: Worker) -> None:
    worker.stdin.close()
    try:
        await asyncio.wait_for(worker.end(), GRACE)
    except TimeoutError:
        worker.process.kill()
        await worker.process.ended
    finally:
        worker.release()
