"""The one form of messages between processes: what is written is read, and what is broken is an error in words."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest

from platforms import framing
from platforms.errors import ConnectionLost, ProtocolError


class Note(msgspec.Struct, frozen=True):
    text: str = ""
    size: int = 0


NOTE = msgspec.json.Decoder(Note)
WHO = "a neighbour"


Given = Callable[[bytes], framing.Reader[Note]]


@pytest.fixture
def given() -> Iterator[Given]:
    """Makes a reader of a pipe into which some bytes were written before it was closed."""
    with contextlib.ExitStack() as readers:

        def make(data: bytes) -> framing.Reader[Note]:
            incoming, outgoing = os.pipe()
            reader = readers.enter_context(contextlib.closing(framing.Reader(incoming, NOTE, WHO)))
            with os.fdopen(outgoing, "wb") as file:
                file.write(data)
            return reader

        yield make


def given_stream(data: bytes, limit: int = framing.LINE_LIMIT) -> asyncio.StreamReader:
    """The same as a stream of asyncio."""
    stream = asyncio.StreamReader(limit=limit)
    stream.feed_data(data)
    stream.feed_eof()
    return stream


def test_what_is_written_is_read() -> None:
    incoming, outgoing = os.pipe()
    writer, reader = framing.Writer(outgoing), framing.Reader(incoming, NOTE, WHO)
    writer.write(Note("first\n", 5), (b"by", b"tes"))
    writer.write(Note("second"))
    writer.close()
    writer.write(Note("too late"))
    assert reader.message() == Note("first\n", 5)
    assert b"".join(reader.payload(5, "a note")) == b"bytes"
    assert reader.message() == Note("second")
    assert reader.message() is None
    reader.close()


def read(data: bytes, limit: int = framing.LINE_LIMIT) -> Note | None:
    """The first message in ``data``, read from a stream of asyncio."""

    async def first() -> Note | None:
        return await framing.read(given_stream(data, limit), NOTE, WHO)

    return asyncio.run(first())


def test_asyncio_reads_the_same() -> None:
    async def both() -> tuple[Note | None, bytes, Note | None]:
        stream = given_stream(framing.encode(Note("first", 5)) + b"bytes")
        first = await framing.read(stream, NOTE, WHO)
        payload = [block async for block in framing.read_payload(stream, 5, WHO, "a note")]
        return first, b"".join(payload), await framing.read(stream, NOTE, WHO)

    assert asyncio.run(both()) == (Note("first", 5), b"bytes", None)


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(ProtocolError) as raised:
        call()
    return str(raised.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"text": "half', "a message of a neighbour is malformed: it is cut short"),
        (b'{"text": "half"}', "a message of a neighbour is malformed: it is cut short"),
        (b"junk\n", "a message of a neighbour is malformed: JSON is malformed"),
        (b'{"text": 1}\n', "a message of a neighbour is malformed: Expected `str`"),
        (b'{"text": "\xff"}\n', "a message of a neighbour is malformed: Invalid UTF-8"),
        (b"\n", "a message of a neighbour is malformed"),
    ],
    ids=repr,
)
def test_a_broken_message_is_an_error_of_its_sender(given: Given, data: bytes, said: str) -> None:
    assert error_of(given(data).message).startswith(said)
    assert error_of(lambda: read(data)).startswith(said)


def test_a_line_has_a_limit(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "LINE_LIMIT", 100)
    data = framing.encode(Note("x" * 100))
    assert error_of(given(data).message) == "a message of a neighbour is too long"
    assert error_of(lambda: read(data, 100)) == "a message of a neighbour is too long"
    assert given(framing.encode(Note("x" * 70))).message() == Note("x" * 70)


def test_a_payload_that_is_cut_short_is_an_error(given: Given) -> None:
    async def payload() -> None:
        async for _ in framing.read_payload(given_stream(b"abc"), 4, WHO, "a note"):
            pass

    said = "a neighbour stopped in the middle of a note"
    assert error_of(lambda: list(given(b"abc").payload(4, "a note"))) == said
    assert error_of(lambda: asyncio.run(payload())) == said


def test_a_size_below_nothing_reads_nothing(given: Given) -> None:
    assert list(given(b"abc").payload(-1, "a note")) == []


def test_what_nobody_reads_is_dropped() -> None:
    incoming, outgoing = os.pipe()
    os.close(incoming)
    writer = framing.Writer(outgoing)
    writer.write(Note("into the void", 3), (b"abc",))
    writer.close()


def test_a_packet_brings_descriptors() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        incoming, outgoing = os.pipe()
        framing.send(ours, Note("take this"), (outgoing,))
        os.close(outgoing)
        message, (copy,) = framing.receive(theirs, NOTE, WHO, 1)
        assert message == Note("take this")
        assert not os.get_inheritable(copy)
        os.write(copy, b"x")
        os.close(copy)
        assert os.read(incoming, 2) == b"x"
        os.close(incoming)
        ours.close()
        assert framing.receive(theirs, NOTE, WHO) == (None, [])


def test_silence_counts_only_while_it_is_waited_for() -> None:
    incoming, outgoing = os.pipe()
    reader = framing.Reader(incoming, NOTE, WHO, 0.4)
    os.write(outgoing, framing.encode(Note("early")))
    time.sleep(0.6)  # this end was busy, or stopped
    assert reader.message() == Note("early")
    began = time.monotonic()
    with pytest.raises(ConnectionLost, match="a neighbour is silent"):
        reader.message()
    assert time.monotonic() - began >= 0.4
    os.close(outgoing)
    assert reader.message() is None
    reader.close()


def test_a_sign_of_life_waits_for_nobody() -> None:
    incoming, outgoing = os.pipe()
    writer = framing.Writer(outgoing)
    writer.write_if_idle(Note("heard"))
    assert os.read(incoming, 100) == framing.encode(Note("heard"))
    os.set_blocking(outgoing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(outgoing, b"x" * 4096)
    os.set_blocking(outgoing, True)
    writer.write_if_idle(Note("the pipe is full"))
    os.close(incoming)
    writer.write_if_idle(Note("nobody is there"))
    writer.close()
    writer.write_if_idle(Note("too late"))
