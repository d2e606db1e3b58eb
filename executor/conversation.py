"""The executor's end of ``executor.protocol`` for one job: sends events and requests, receives answers.

The end of the incoming pipe cancels the job: ``closed`` is set, and ``on_close`` is called on the reading thread to
wake waiting threads. So does an orchestrator elsewhere that is silent: it sends a ``Ping`` every few seconds.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import BinaryIO, Final

import msgspec

from executor import protocol
from platforms import debug, framing
from platforms.errors import Interrupted, KanifoldError, ProtocolError

_Request = protocol.Fetch | protocol.FilesRequest | protocol.Done
_Incoming = protocol.Job | protocol.Answer | protocol.Ping | _Request
_INCOMING: msgspec.json.Decoder[_Incoming] = msgspec.json.Decoder(_Incoming)

_SENDER: Final = "the orchestrator"
_SIGNS: Final = 16
"""Signs of life that are shown at most in the time in which the orchestrator must not be silent."""


class _Waiting(msgspec.Struct, frozen=True):
    """A request without an answer yet."""

    sink: Callable[[bytes], object]
    """Receives the answer in blocks."""
    found: Future[bool]
    """Done when the answer is complete: whether there is one."""


class Conversation:
    """Sends and receives messages on two descriptors. ``send`` and ``ask`` are thread-safe.

    ``receive_job`` is called first, then ``listen``, then the other methods. ``patience`` is the number of seconds that
    the orchestrator may be silent before it says another one; 0 where its end is noticed in any case.
    """

    def __init__(self, incoming: int, outgoing: int, patience: float = 0.0) -> None:
        self._reader = framing.Reader(incoming, _INCOMING, _SENDER, patience)
        self._reader.pipe.heard = self._show_life
        self._writer = framing.Writer(outgoing)
        self._ping: protocol.Ping | None = None
        """The last ping; None while there was none."""
        self._shown = 0.0
        """When this end showed last that it is alive (``time.monotonic``)."""
        self._numbers = itertools.count(1)
        self._waiting: dict[int, _Waiting] = {}
        self._requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
        self.closed = threading.Event()
        self.dismissed = False
        """Whether the orchestrator has sent ``Done``, rather than only closed its end."""
        self.on_close: Callable[[], None] = lambda: None
        self._asked: Callable[[protocol.Question], None]  # set by ``listen``

    def receive_job(self) -> protocol.Job:
        """Return the first message but for pings. Raises ``Interrupted`` if there is none, ``ProtocolError`` if it is
        no job or does not come."""
        while (line := self._reader.line()) is not None:
            protocol.check_version(line, _SENDER)
            match framing.decode(_INCOMING, line, _SENDER):
                case protocol.Job() as job:
                    return job
                case protocol.Ping() as ping:
                    self._pinged(ping)
                case _:
                    raise ProtocolError("the first message is not a job")
        raise Interrupted("no job was sent")

    def listen(self, asked: Callable[[protocol.Question], None]) -> None:
        """Start to receive answers and requests, on another thread.

        ``asked`` is called with each request before it is sent.
        """
        self._asked = asked
        threading.Thread(target=self._listen, name="protocol", daemon=True).start()

    def send(self, message: protocol.Message, payload: bytes | memoryview = b"") -> None:
        """Send a message and its raw bytes; does nothing after the other end is closed."""
        self._writer.write(message, (payload,) if payload else ())

    def send_file(self, message: protocol.Message, path: str, size: int) -> None:
        """Send ``message`` and the ``size`` bytes of the file at ``path``."""
        with open(path, "rb") as file:
            self._writer.write(message, _blocks(file, size))

    def close(self) -> None:
        """Stop sending. Further messages from the other end are ignored."""
        self._writer.close()

    def ask(self, question: protocol.Question) -> bytes | None:
        """Return the orchestrator's answer; None when it has none. Raises an error that it sends."""
        parts: list[bytes] = []
        return b"".join(parts) if self.ask_into(parts.append, question) else None

    def ask_into(self, sink: Callable[[bytes], object], question: protocol.Question) -> bool:
        """As ``ask``, with the answer passed to ``sink`` in blocks. Returns whether there is one."""
        self._asked(question)
        number = next(self._numbers)
        waiting = self._waiting[number] = _Waiting(sink, Future())
        if self.closed.is_set():
            raise Interrupted("the orchestrator is gone")
        debug.log("question", number=number, kind=question.kind, of=question.name)
        self.send(protocol.Ask(number, question))
        found = waiting.found.result()
        debug.log("answer", number=number, found=found)
        return found

    def next_request(self) -> _Request:
        """Wait for a request after the result and return it; ``Done`` when the other end is closed."""
        return self._requests.get()

    def _listen(self) -> None:
        try:
            while (message := self._reader.message()) is not None:
                match message:
                    case protocol.Answer():
                        self._resolve(message)
                    case protocol.Ping():
                        self._pinged(message)
                    case protocol.Fetch() | protocol.FilesRequest() | protocol.Done():
                        self.dismissed = isinstance(message, protocol.Done)
                        self._requests.put(message)
                    case _:
                        raise ProtocolError("a second job in one conversation")
        except ProtocolError as error:
            self._end(error)
        else:
            self._end(Interrupted("the orchestrator is gone"))

    def _pinged(self, ping: protocol.Ping) -> None:
        self._ping = ping
        self._reader.pipe.patience = ping.patience
        self._show_life()

    def _show_life(self) -> None:
        """Return the last ping, now and then: also in the middle of a message that takes long to arrive."""
        now = time.monotonic()
        if self._ping is not None and now - self._shown >= self._ping.patience / _SIGNS:
            self._shown = now
            self._writer.write_if_idle(self._ping)

    def _end(self, error: Exception) -> None:
        self.closed.set()
        self._requests.put(protocol.Done())
        for waiting in list(self._waiting.values()):
            if not waiting.found.done():
                waiting.found.set_exception(error)
        self.on_close()

    def _resolve(self, answer: protocol.Answer) -> None:
        question = self._waiting.get(answer.id)
        if question is None:
            raise ProtocolError(f"an answer to no question: {answer.id}")
        for block in self._reader.payload(answer.size, "an answer"):
            if not question.found.done():
                try:
                    question.sink(block)
                except Exception as error:  # a full disk, say: raised to the caller, while the rest is skipped
                    question.found.set_exception(error)
        if answer.more:
            return
        del self._waiting[answer.id]
        if question.found.done():
            return
        if answer.error is not None:
            question.found.set_exception(KanifoldError.of(answer.error))
        else:
            question.found.set_result(not answer.missing)


def _blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size and (block := file.read(min(size, framing.BLOCK))):
        size -= len(block)
        yield block
