"""Methods of another process: what the interface declares is what crosses, and errors arrive as what they are."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest

from executor.registry.client import Client
from orchestrator import registries, rpc
from platforms.errors import EnvironmentUnfit, KanifoldError, ProtocolError, RegistryError


class Point(msgspec.Struct, frozen=True):
    x: int
    y: int = 0


class Drawing(Protocol):
    def move(self, point: Point, by: int) -> Point: ...
    def raw(self, data: bytes) -> tuple[bytes, Point | None]: ...
    def fail(self, how: str) -> None: ...


class Board:
    """The object that is called."""

    def move(self, point: Point, by: int) -> Point:
        return Point(point.x + by, point.y)

    def raw(self, data: bytes) -> tuple[bytes, Point | None]:
        return data[::-1], None

    def fail(self, how: str) -> None:
        if how == "unfit":
            raise EnvironmentUnfit("cannot draw", why="no ink", remedy="buy some")
        if how == "strange":
            raise RegistryError("cannot draw", why="\ud800")
        raise RuntimeError(how)


METHODS = {
    each.name: rpc.Method(
        each.name, each.parameters, msgspec.json.Decoder(each.arguments), msgspec.json.Decoder(each.result)
    )
    for each in rpc.signatures(Drawing)
}
MESSAGE: msgspec.json.Decoder[rpc.Call | rpc.Reply] = msgspec.json.Decoder(rpc.Call | rpc.Reply)


def served(channel: rpc.Channel[Any]) -> None:
    for call in channel.messages():
        channel.answer(METHODS, Board(), call)


@pytest.fixture
def caller() -> Iterator[rpc.Channel[Any]]:
    """A channel whose other end is a thread with a ``Board``."""
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    ours = rpc.Channel(ours_in, ours_out, MESSAGE, "the board")
    theirs = rpc.Channel(theirs_in, theirs_out, MESSAGE, "the caller")
    threads = [threading.Thread(target=served, args=(theirs,)), threading.Thread(target=lambda: [*ours.messages()])]
    for each in threads:
        each.start()
    yield ours
    ours.end(ProtocolError("it is over"))
    threads[0].join(10)
    theirs.end(ProtocolError("it is over"))
    threads[1].join(10)
    ours.close()
    theirs.close()


@pytest.fixture
def drawing(caller: rpc.Channel[Any]) -> Drawing:
    found: Drawing = rpc.stub(METHODS, caller.call)
    return found


def test_methods_are_those_of_the_interface() -> None:
    assert [(each.name, each.parameters) for each in rpc.signatures(Drawing)] == [
        ("move", ("point", "by")), ("raw", ("data",)), ("fail", ("how",)),
    ]  # fmt: skip


def test_a_call_is_made_by_the_other_end(drawing: Drawing) -> None:
    assert drawing.move(Point(1, 2), 3) == Point(4, 2)
    assert drawing.move(Point(1), by=-1) == Point(0)
    assert drawing.raw(b"\x00\xff") == (b"\xff\x00", None)


def test_an_error_arrives_as_what_it_is(drawing: Drawing) -> None:
    with pytest.raises(EnvironmentUnfit) as raised:
        drawing.fail("unfit")
    assert (raised.value.problem.why, raised.value.problem.remedy) == ("no ink", "buy some")
    with pytest.raises(RegistryError) as strange:
        drawing.fail("strange")
    assert strange.value.problem.why == "?"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_is_told_without_its_text(drawing: Drawing, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ProtocolError) as raised:
        drawing.fail("a bug")
    assert (raised.value.problem.what, raised.value.problem.why) == ("cannot answer the call of fail", "RuntimeError")
    assert "a bug" in capsys.readouterr().err


def test_arguments_of_another_type_are_refused_by_the_other_end(
    caller: rpc.Channel[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ProtocolError):
        caller.call(METHODS["move"], "no point", 1)
    with pytest.raises(ProtocolError):
        caller.call(rpc.Method("__init__", (), METHODS["move"].arguments, METHODS["move"].result))
    assert "ValidationError" in capsys.readouterr().err


def test_after_the_end_every_call_is_told_why(caller: rpc.Channel[Any], drawing: Drawing) -> None:
    caller.end(ProtocolError("closed for today"))
    caller.end(ProtocolError("too late"))
    with pytest.raises(KanifoldError, match="closed for today"):
        drawing.move(Point(1), 1)


def test_a_registrys_methods_are_spelled_once() -> None:
    """In the interface; the client and the registries' client fit it, as mypy checks, and decoders are made from it."""
    names = [each.name for each in rpc.signatures(registries.RegistryCalls)]
    assert list(registries._CALLS) == names
    for name in names:
        assert callable(getattr(Client, name))
    text = Path(registries.__file__).read_text()
    for name in names:
        assert text.count(f"def {name}(") == 1, name
