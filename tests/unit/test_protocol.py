"""Messages between orchestrator and executor: any of them crosses, whatever strangers' names are in it."""

from __future__ import annotations

import msgspec

from executor import protocol
from platforms import framing
from platforms.errors import ContextError, EnvironmentUnfit, KanifoldError, Location

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
