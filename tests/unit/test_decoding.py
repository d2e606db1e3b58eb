"""What others wrote is decoded in one place, where everything that can be wrong with it is one kind of error."""

from __future__ import annotations

import ast

import msgspec
import pytest
from packages import parsed, violations

from platforms import decoding

DEEP = b'{"b":' + b"[" * 200_000 + b"]" * 200_000 + b"}"


class Thing(msgspec.Struct):
    a: str = ""


THING = msgspec.json.Decoder(Thing)
PACKED = msgspec.msgpack.Decoder(Thing)


def loose_decoders(source: str) -> list[str]:
    """The calls in ``source`` that decode by other means: a constant's ``decode``, ``json.loads``, ``json.load``."""
    found = []
    for node in ast.walk(parsed(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = node.func.value
        while isinstance(owner, ast.Subscript):
            owner = owner.value
        name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
        constant = node.func.attr == "decode" and name.lstrip("_").isupper()
        if constant or ast.unparse(node.func) in ("json.loads", "json.load", "msgspec.json.decode"):
            found.append(f"line {node.lineno}: {ast.unparse(node.func)}")
    return found


def test_what_others_wrote_is_decoded_in_one_place() -> None:
    found = violations(lambda _, source: loose_decoders(source))
    assert found.keys() <= {"platforms/decoding.py"}, "platforms.decoding.decode, or from_json"


def test_the_rule_blames_what_it_should() -> None:
    assert loose_decoders("_ENTRY.decode(data)") == ["line 1: _ENTRY.decode"]
    assert loose_decoders("_CALLS[a][1].decode(data)") == ["line 1: _CALLS[a][1].decode"]
    assert loose_decoders("json.loads(data)\ndata.decode()") == ["line 1: json.loads"]
    assert loose_decoders("decoding.decode(_ENTRY, data)") == []


@pytest.mark.parametrize(
    "data", [b'{"a":"\xff"}', b'{"\xff":1}', b"\xff", b"", b"[", DEEP, b'{"a":"\\ud800"}', b'{"a":1}']
)
def test_whatever_is_wrong_is_one_error(data: bytes) -> None:
    if data != b'{"\xff":1}':  # the name of a field that nobody wants is passed over
        with pytest.raises(msgspec.DecodeError):
            decoding.decode(THING, data)
    if data != b'{"a":1}':
        with pytest.raises(msgspec.DecodeError):
            decoding.from_json(data)
    with pytest.raises(msgspec.DecodeError):
        decoding.decode(PACKED, data)
    with pytest.raises(msgspec.DecodeError):
        decoding.decode(PACKED, b"\x91" * 200_000)


def test_json_as_go_reads_it_keeps_halves_of_pairs_for_the_caller() -> None:
    assert decoding.from_loose_json('["\\ud800"]') == ["\ud800"]
    for text in ("[NaN]", "[1e999]", "[" * 100_000):
        with pytest.raises(msgspec.DecodeError):
            decoding.from_loose_json(text)
