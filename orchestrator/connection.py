"""A connection to one executor: the orchestrator's ends of its pipes, from its greeting to its end.

An executor may run on another machine and is not trusted: every line is decoded strictly and limited in size.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from executor import protocol
from orchestrator import heartbeat
from orchestrator.process import GRACE, Worker, start
from platforms import framing
from platforms.errors import BuildError, ConnectionLost, EnvironmentUnfit, ProtocolError

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
    | protocol.CacheBlob
    | protocol.Piece
    | protocol.Ping
)
GREETING: Final = 60.0
"""Seconds in which an executor that was started has to introduce itself."""


class Connection(msgspec.Struct, frozen=True):
    """An executor that has introduced itself, and waits for a job unless it was given one."""

    worker: Worker
    greeting: protocol.Handshake
    node: str
    """The name of its node."""
    heartbeat: asyncio.Task[None] | None = None
    """Gives the executor up when it is silent; None for one that was forked."""
    ahead: float = 0.0
    """Seconds by which the clock of the node is ahead of this machine's; 0 if it was not said."""

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self.worker.stdin.is_closing()

    async def send(self, message: protocol.Message, payload: bytes = b"") -> None:
        """Write ``message``. No error if the executor has ended: what it wrote before can still be received."""
        await framing.write(self.worker.stdin, message, payload)

    async def receive(self) -> protocol.Message:
        """Return the next message. Raises ``ProtocolError``, also at the end of the stream, with its cause."""
        message: protocol.Message | None = protocol.Ping()
        while isinstance(message, protocol.Ping):
            message = await framing.read(self.worker.stdout, _INCOMING, _sender(self.node))
        if message is None:
            raise await _end_of(self.worker, _sender(self.node))
        return message

    def payload(self, size: int, what: str) -> AsyncIterator[bytes]:
        """Yield the ``size`` bytes after the last message, in blocks; ``what`` is their name in errors."""
        return framing.read_payload(self.worker.stdout, size, _sender(self.node), what)

    async def end(self) -> None:
        """Close the executor's stdin, which cancels its job, and wait for its end; kill it after ``GRACE`` seconds."""
        if self.heartbeat is not None:
            self.heartbeat.cancel()
        await end(self.worker)


async def launch(node: str, command: Sequence[str], environment: Sequence[tuple[str, str]]) -> Connection:
    """Start an executor on the node called ``node`` by ``command``, and return its connection with a heartbeat.

    Raises what ``connect`` raises, and ``EnvironmentUnfit`` when the command cannot be started.
    """
    try:
        worker = await start(command, environment, LINE_LIMIT)
    except OSError as error:
        raise EnvironmentUnfit(
            f"cannot start an executor on node {node}", why=f"{command[0]}: {error.strerror}"
        ) from error
    return await connect_with_heartbeat(worker, node)


async def connect_with_heartbeat(worker: Worker, node: str) -> Connection:
    """As ``connect``, with a heartbeat."""
    connected = await connect(worker, node)
    resources = connected.greeting.resources
    ahead = resources.clock - time.time() if resources is not None and resources.clock else 0.0
    return replace(connected, heartbeat=heartbeat.start(worker, node), ahead=ahead)


async def connect(worker: Worker, node: str) -> Connection:
    """Return a connection to the executor ``worker`` on the node called ``node``, after its greeting, which it sends
    before it reads its job.

    Raises ``ProtocolError``, also after ``GREETING`` seconds without one (an executor of another version may wait for
    its job first), or ``BuildError`` with the problem that the executor reports in place of a greeting. After an error,
    or when this is cancelled, the process is ended.
    """
    try:
        return Connection(worker, await _greeting(worker, _sender(node)), node)
    except BaseException:
        await asyncio.shield(end(worker))
        raise


def _sender(node: str) -> str:
    """Return what errors call an executor on ``node``."""
    return "an executor" if node == "local" else f"an executor on node {node}"


async def _greeting(worker: Worker, sender: str) -> protocol.Handshake:
    try:
        async with asyncio.timeout(GREETING):
            line = await framing.read_line(worker.stdout, sender)
    except TimeoutError as error:
        raise ProtocolError(
            f"{sender} did not introduce itself",
            why=worker.process.stderr_tail or f"it wrote nothing for {GREETING:.0f} seconds",
            remedy="install the same version of kanifold on every node",
        ) from error
    if line is None:
        raise await _end_of(worker, sender)
    protocol.check_version(line, sender)
    match framing.decode(_INCOMING, line, sender):
        case protocol.Handshake() as greeting:
            return greeting
        case protocol.Failed(problem):
            raise BuildError.of(problem)  # as a kind that is not known here
        case _:
            raise ProtocolError(f"{sender} did not introduce itself")


async def _end_of(worker: Worker, sender: str) -> ConnectionLost:
    """Return the error for an executor that closed its stdout before a result, with its stderr or exit status."""
    worker.stdin.close()
    process = worker.process
    await process.gone()
    status = f"exit status {process.ended.result()}" if process.ended.done() else "its process goes on without it"
    return ConnectionLost(f"{sender} ended without a result", why=process.stderr_tail or status)


async def end(worker: Worker) -> None:
    """End ``worker``: close its stdin and wait, then kill it after ``GRACE`` seconds."""
    worker.stdin.close()
    try:
        await asyncio.wait_for(worker.end(), GRACE)
    except TimeoutError:
        worker.process.kill()
        await worker.process.ended
    finally:
        worker.release()
