"""The orchestrator's end of the pipes to the process that asks registries for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from executor.registry.auth import anonymous
from executor.registry.reference import Reference
from executor.registry.registry_settings import RegistrySettings
from orchestrator import registries
from platforms.errors import EnvironmentUnfit, Interrupted, KanifoldError, ProtocolError

APP = Reference("registry.test", "app", "1")


def error_of(call: Callable[[], object], kind: type[KanifoldError]) -> str:
    with pytest.raises(kind) as raised:
        call()
    return raised.value.problem.why


def test_who_cannot_be_there_says_why() -> None:
    process, pipes = registries.prepared()
    registries.refuse(pipes[1], EnvironmentUnfit("cannot speak to registries", why="no more processes").problem)
    for fd in pipes:
        os.close(fd)
    registry = process.connect(RegistrySettings(), anonymous)
    assert error_of(lambda: registry.resolve(APP), EnvironmentUnfit) == "no more processes"
    process.close()


@pytest.mark.parametrize("said", [b"", b"{", b'{"type": "torn"', b"none\n"], ids=repr)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # that is told on stderr
def test_who_breaks_off_is_an_error_of_every_question(said: bytes) -> None:
    process, pipes = registries.prepared()
    registry = process.connect(RegistrySettings(), anonymous)
    os.write(pipes[1], said)
    for fd in pipes:
        os.close(fd)
    for question in (lambda: registry.resolve(APP), lambda: registry.check_push(APP)):
        assert "has died" in error_of(question, ProtocolError)
    process.close()


def test_closing_wakes_who_waits_for_an_answer() -> None:
    process, pipes = registries.prepared()
    registry = process.connect(RegistrySettings(), anonymous)
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            registry.resolve(APP)
        except Interrupted as error:
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    asked = b""
    while b"resolve" not in asked:
        asked += os.read(pipes[0], 1 << 16)
    closing = threading.Thread(target=process.close)
    closing.start()
    asking.join(5)
    assert [type(each) for each in errors] == [Interrupted]
    error_of(lambda: registry.resolve(APP), Interrupted)
    for fd in pipes:
        os.close(fd)
    closing.join(5)
    assert not closing.is_alive()
