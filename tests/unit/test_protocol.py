"""Messages between orchestrator and executor: any of them crosses, whatever strangers' names are in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import msgspec
import pytest
from msgspec import inspect

from executor import protocol
from orchestrator import connection
from platforms import framing
from platforms.errors import ContextError, EnvironmentUnfit, KanifoldError, Location, ProtocolError

_MESSAGES: msgspec.json.Decoder[protocol.Answer | protocol.Failed | protocol.Finished | protocol.Log] = (
    msgspec.json.Decoder(protocol.Answer | protocol.Failed | protocol.Finished | protocol.Log)
)


def crossed(message: protocol.Message) -> protocol.Message:
    line = framing.encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    return _MESSAGES.decode(line)


def test_an_error_arrives_as_it_was() -> None:
    where = Location("Dockerfile", 2, 3, ("a", "b"), 1)
    error = EnvironmentUnfit("no such program", why="it is not there", remedy="install it", where=where, log=("x",))
    arrived = crossed(protocol.Answer(7, error=error.problem))
    assert isinstance(arrived, protocol.Answer)
    assert arrived.error == error.problem
    again = KanifoldError.of(arrived.error)
    assert (type(again), again.exit_code) == (EnvironmentUnfit, 3)


def test_what_is_no_text_crosses_too() -> None:
    name = b"\xff\xfe.txt".decode("utf-8", "surrogateescape")
    where = Location(name, 1, 1, (name,), 1)
    error = ContextError(f"cannot read {name}", why=name, remedy=name, where=where, log=(name,))
    for message in (protocol.Failed(error.problem), protocol.Answer(1, error=error.problem)):
        arrived = crossed(message)
        assert isinstance(arrived, protocol.Failed | protocol.Answer)
        problem = arrived.problem if isinstance(arrived, protocol.Failed) else arrived.error
        assert problem is not None
        assert (problem.kind, problem.what) == ("ContextError", "cannot read ??.txt")
        assert problem.where is not None
        assert problem.where.source == ("??.txt",)
    assert crossed(protocol.Finished(3, 0.5, error=name)) == protocol.Finished(3, 0.5, error="??.txt")
    assert crossed(protocol.Log(3, name)) == protocol.Log(3, "??.txt")


def test_a_number_that_no_float_can_hold_is_no_message() -> None:
    """Progress is divided: such a number would end the display, and the build with it."""
    line = b'{"type":"moved","action":"pull","name":"x","done":1%s}\n' % (b"0" * 400)
    with pytest.raises(ProtocolError, match="malformed"):
        framing.decode(connection._INCOMING, line, "an executor")


def unbounded(part: object, path: str, seen: set[str]) -> Iterator[str]:
    """Yield where in the type ``part`` there are integers of any size."""
    if isinstance(part, inspect.IntType) and (part.ge is None or part.le is None):
        yield path
    if isinstance(part, inspect.StructType):
        if part.cls.__name__ in seen:
            return
        seen.add(part.cls.__name__)
        for field in part.fields:
            yield from unbounded(field.type, f"{part.cls.__name__}.{field.name}", seen)
    for name in ("types", "item_types", "item_type", "key_type", "value_type"):
        inner = getattr(part, name, ())
        for each in inner if isinstance(inner, tuple) else (inner,):
            yield from unbounded(each, path, seen)


def test_no_number_of_an_executor_is_without_bounds() -> None:
    messages = inspect.multi_type_info(get_args(connection._INCOMING.type))  # type: ignore[attr-defined]
    seen: set[str] = set()
    assert [each for message in messages for each in unbounded(message, "", seen)] == []
    assert {"Transfer", "Descriptor", "Location"} <= seen
