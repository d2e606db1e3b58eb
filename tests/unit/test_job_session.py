"""What is said with an executor about its job: every question has an answer, whatever happens on this machine."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from executor import protocol
from orchestrator import job_session
from orchestrator.job_session import Answer
from platforms.errors import BuildError, KanifoldError

QUESTION = protocol.Ask(1, protocol.AskLayout("image", "index.json"))


class Asking:
    """A connection to an executor that asks one question, and fails with the error that it hears."""

    greeting = protocol.Handshake(protocol.VERSION, "1")
    closed = False

    def __init__(self) -> None:
        self.asked = False
        self.answered: asyncio.Future[protocol.Answer] = asyncio.get_running_loop().create_future()

    async def send(self, message: object, payload: bytes = b"") -> None:
        if isinstance(message, protocol.Answer) and not message.more:
            self.answered.set_result(message)

    async def receive(self) -> protocol.Message:
        if not self.asked:
            self.asked = True
            return QUESTION
        answer = await self.answered
        assert answer.error is not None
        return protocol.Failed(answer.error)

    async def end(self) -> None:
        """Nothing to end."""


def broken(_: Callable[[bytes], object]) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO), "/srv/layout/index.json")


async def at_once(_: protocol.Ask) -> Answer:
    broken(len)
    return None


async def while_it_is_read(_: protocol.Ask) -> Answer:
    return broken  # type: ignore[return-value]


@pytest.mark.parametrize("on_ask", [at_once, while_it_is_read])
def test_a_file_that_cannot_be_read_is_an_error_and_not_silence(on_ask: Any) -> None:
    async def run() -> None:
        job: Any = None
        talk = job_session.run(Asking(), job, lambda _: None, on_ask)  # type: ignore[arg-type]
        await asyncio.wait_for(talk, 5)

    with pytest.raises(KanifoldError) as caught:
        asyncio.run(run())
    problem = caught.value.problem
    assert (problem.kind, problem.why) == (BuildError.__name__, os.strerror(errno.EIO))
    assert "/srv" not in str(problem), "the executor may be elsewhere"
