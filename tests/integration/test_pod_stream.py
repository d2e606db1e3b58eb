"""The pipes of an executor in a Pod, whose streams are cut: the orchestrator's end against a real relay, no cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pod_sockets import Message, Socket

from executor import relay
from orchestrator.nodes.kubernetes import job_manifest
from orchestrator.nodes.kubernetes.cluster_api import APIUnreachableError
from orchestrator.nodes.kubernetes.pod_stream import BusyError, PodStream
from platforms.errors import ConnectionLost

ECHO = (
    "import os,sys;f=sys.stdin.buffer.raw;"
    "b=f.read(65536)\nwhile b:\n sys.stdout.buffer.write(b);sys.stdout.buffer.flush();b=f.read(65536)\n"
)
"""Writes what it reads."""


def program(text: str) -> bytes:
    """The first lines of stdin, by which the relay's child becomes ``text``."""
    return f"\nimport signal;signal.alarm(0);exec({text!r})\n".encode()


class Pod(NamedTuple):
    """A relay that runs as process ``process``, without a container."""

    path: Path
    process: subprocess.Popen[bytes]

    def stream(self, limits: Iterator[int], closed: Callable[[], Awaitable[object]] | None = None) -> PodStream:
        """A stream to it, whose connections are cut after as many bytes as ``limits`` say."""

        @contextlib.asynccontextmanager
        async def dial() -> AsyncIterator[Any]:
            limit = next(limits)
            if limit == 0:
                raise APIUnreachableError("no connection")
            socket = Socket(*await asyncio.open_unix_connection(self.path), limit)
            try:
                yield socket
            finally:
                await socket.close()

        return PodStream(os.urandom(8).hex(), dial, 1 << 20, closed or nothing)


async def nothing() -> None:
    """Delete no Job."""


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    place = tmp_path / "relay"
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", job_manifest.relay_text()],
        env={**os.environ, "KANIFOLD_RELAY": str(place)}, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline() == b"kanifold: waiting for an orchestrator\n"
    yield Pod(place / relay.SOCKET, process)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.stderr.close()
    process.wait()


def always(limit: int = 1 << 60) -> Iterator[int]:
    while True:
        yield limit


def test_what_goes_over_streams_that_are_cut_arrives_once(pod: Pod) -> None:
    chance = random.Random(7)
    limits = (chance.choice((0, 10, 300, 5000, 100_000, 700_000)) for _ in iter(int, 1))
    content = chance.randbytes(3 << 20)

    async def echo() -> bytes:
        stream = pod.stream(iter(limits))
        worker = stream.worker
        worker.stdin.write(program(ECHO))

        async def write() -> None:
            for begin in range(0, len(content), 50_000):
                worker.stdin.write(content[begin : begin + 50_000])
                await worker.stdin.drain()

        writing = asyncio.create_task(write())
        found = await worker.stdout.readexactly(len(content))
        await writing
        worker.stdin.close()
        await worker.end()
        return found

    assert asyncio.run(asyncio.wait_for(echo(), 60)) == content


def test_the_end_of_an_executor_and_its_last_words_come_over(pod: Pod) -> None:
    async def last() -> tuple[bytes, int, str]:
        stream = pod.stream(always())
        stream.worker.stdin.write(program("import sys;print('out');print('err',file=sys.stderr);sys.exit(5)"))
        out = await stream.worker.stdout.read()
        status = await stream.process.ended
        tail = stream.process.stderr_tail
        stream.close()
        await stream.wait_closed()
        return out, status, tail

    assert asyncio.run(asyncio.wait_for(last(), 30)) == (b"out\n", 5, "err")
    assert pod.process.wait(10) == 5, "the container ends as its executor did"


def test_a_second_orchestrator_is_sent_away_while_the_first_one_lives(pod: Pod) -> None:
    async def both() -> None:
        first = pod.stream(always())
        await first.connected
        second = pod.stream(always())
        with pytest.raises(BusyError):
            await second.connected
        second.abort()
        first.worker.stdin.write(program("print('still here')"))
        assert await first.worker.stdout.readline() == b"still here\n"
        first.abort()
        await first.wait_closed()

    asyncio.run(asyncio.wait_for(both(), 30))


def test_what_an_orchestrator_left_behind_is_taken_over_with_a_new_executor(pod: Pod, tmp_path: Path) -> None:
    async def die() -> None:
        stream = pod.stream(always())
        stream.worker.stdin.write(
            program(f"open({str(tmp_path / 'first')!r},'w').write('x');print(1,flush=True);{ECHO}")
        )
        assert await stream.worker.stdout.readline() == b"1\n"
        stream._task.cancel()  # as if the process was killed: nothing more is said
        await asyncio.gather(stream._task, return_exceptions=True)

    async def rerun() -> bytes:
        stream = pod.stream(always())
        stream.worker.stdin.write(program("import os;print('another',os.getppid())"))
        found = await stream.worker.stdout.readline()
        stream.abort()
        return found

    asyncio.run(asyncio.wait_for(die(), 30))
    assert asyncio.run(asyncio.wait_for(rerun(), 30)) == f"another {pod.process.pid}\n".encode()
    assert (tmp_path / "first").exists()


def test_closing_ends_the_executor_and_says_so_once(pod: Pod) -> None:
    async def close() -> int:
        calls = 0

        async def closed() -> None:
            nonlocal calls
            calls += 1

        stream = pod.stream(always(), closed)
        await stream.connected
        stream.worker.stdin.close()
        stream.close()
        await stream.worker.end()
        await stream.wait_closed()
        return calls

    assert asyncio.run(asyncio.wait_for(close(), 30)) == 1


def test_the_last_words_of_an_executor_come_before_its_job_is_deleted(pod: Pod) -> None:
    async def hear() -> tuple[str, int]:
        async def deleted() -> None:
            pod.process.terminate()

        stream = pod.stream(always(), deleted)
        worker = stream.worker
        dying = "os.close(1);time.sleep(0.2);os.write(2,b'the last words');os._exit(3)"
        worker.stdin.write(program(f"import os,time;{dying}"))
        assert await worker.stdout.read() == b""
        worker.stdin.close()
        await worker.process.gone()
        await stream.wait_closed()
        return worker.process.stderr_tail, worker.process.ended.result()

    assert asyncio.run(asyncio.wait_for(hear(), 30)) == ("the last words", 3)


def test_a_pod_that_is_told_to_end_does(pod: Pod) -> None:
    async def told() -> None:
        stream = pod.stream(always())
        stream.worker.stdin.write(program(f"print(1,flush=True);{ECHO}"))
        await stream.worker.stdout.readline()
        pod.process.terminate()
        await asyncio.to_thread(pod.process.wait, 10)
        stream.fail(ConnectionLost("the Pod is gone"))
        with pytest.raises(ConnectionLost):
            await stream.worker.stdout.read()
        await stream.wait_closed()

    asyncio.run(asyncio.wait_for(told(), 30))


def test_garbage_costs_a_connection_and_nothing_else(pod: Pod) -> None:
    async def attack() -> bytes:
        for data in (b"GET / HTTP/1.1\r\n\r\n" * 9, relay.HEADER.pack(b"H", 0, 1 << 30), relay.HEADER.pack(b"D", 9, 0)):
            reader, writer = await asyncio.open_unix_connection(pod.path)
            writer.write(data)
            assert await reader.read() == b""
            writer.close()
        stream = pod.stream(always())
        stream.worker.stdin.write(program("print('well')"))
        found = await stream.worker.stdout.readline()
        stream.abort()
        return found

    assert asyncio.run(asyncio.wait_for(attack(), 30)) == b"well\n"


class Liar:
    """A stream on which a Pod greets and then says ``frames``, whatever it is sent."""

    def __init__(self, *frames: bytes) -> None:
        self._frames = [b"\1" + each for each in frames]

    async def send_bytes(self, data: bytes) -> None: ...

    async def receive(self) -> Message:
        return Message(self._frames.pop(0) if self._frames else None)

    async def close(self) -> None: ...


WELCOME = relay.HEADER.pack(b"H", 0, 1) + b"0"


@pytest.mark.parametrize(
    "frames",
    [
        (b"no frame at all, but long enough",),
        (relay.HEADER.pack(b"H", 0, 3) + b"-99",),
        (relay.HEADER.pack(b"H", 0, 5) + b"9" * 5,),
        (relay.HEADER.pack(b"H", 0, 4) + b"\xff\xff\xff\xff",),
        (WELCOME, relay.HEADER.pack(b"A", 1 << 40, 0)),
        (WELCOME, relay.HEADER.pack(b"D", 5, 1) + b"x"),
        (WELCOME, relay.HEADER.pack(b"D", 0, 1 << 31)),
        (WELCOME, relay.HEADER.pack(b"X", 0, 2) + b"{}"),
        (WELCOME, relay.HEADER.pack(b"?", 0, 0)),
    ],
)
def test_what_a_pod_says_wrongly_costs_a_stream_and_nothing_else(pod: Pod, frames: tuple[bytes, ...]) -> None:
    async def hear() -> bytes:
        stream = pod.stream(always())
        honest = stream._dial
        lies = [frames]

        @contextlib.asynccontextmanager
        async def dial() -> AsyncIterator[Any]:
            if lies:
                yield Liar(*lies.pop())
            else:
                async with honest() as socket:
                    yield socket

        stream._dial = dial
        stream.worker.stdin.write(program("print('well')"))
        found = await stream.worker.stdout.readline()
        assert not lies
        stream.abort()
        return found

    assert asyncio.run(asyncio.wait_for(hear(), 20)) == b"well\n"
