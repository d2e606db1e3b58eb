"""JSON and MessagePack that somebody else has written, decoded: whatever is wrong with it is one kind of error.

A decoder has more ways to fail than its own: bytes that are no UTF-8, halves of surrogate pairs, nesting that exhausts
the stack. ``tests/unit/test_decoding.py`` fails where the sources decode by other means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec

T_co = TypeVar("T_co", covariant=True)


class Decoder(Protocol[T_co]):
    """A decoder of one type, of ``msgspec.json`` or ``msgspec.msgpack``; made where a module is loaded."""

    def decode(self, data: bytes, /) -> T_co:
        """What ``data`` says."""
        ...


def decode(decoder: Decoder[T_co], data: bytes | msgspec.Raw) -> T_co:
    """What ``data`` says. Raises ``msgspec.DecodeError`` for all that it may be instead."""
    try:
        return decoder.decode(data)
    except RecursionError as error:
        raise msgspec.DecodeError("it is nested too deeply") from error
    except UnicodeError as error:
        raise msgspec.DecodeError("it is not UTF-8") from error


def from_json(data: bytes | str, *, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The JSON document ``data``, which is text through and through: half of a surrogate pair is none.

    ``pairs`` makes the objects. Raises ``msgspec.DecodeError``, which never quotes ``data``.
    """
    import json  # which few builds need before they have something to do

    try:
        text = data if isinstance(data, str) else data.decode()
        document = json.loads(text, object_pairs_hook=pairs)
        if "\\u" in text:
            json.dumps(document, ensure_ascii=False).encode()
    except RecursionError:
        raise msgspec.DecodeError("it is nested too deeply") from None
    except UnicodeError:
        raise msgspec.DecodeError("it is not UTF-8") from None
    except ValueError as error:
        raise msgspec.DecodeError(f"it is not JSON: {error}") from None
    return document


def from_loose_json(text: str) -> Any:
    """The JSON document ``text``, as Go reads it: halves of surrogate pairs are left to the caller; numbers must fit.

    Raises ``msgspec.DecodeError``.
    """
    import json

    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_number)
    except RecursionError:
        raise msgspec.DecodeError("it is nested too deeply") from None
    except ValueError as error:
        raise msgspec.DecodeError(f"it is not JSON: {error}") from None


def _refuse(name: str) -> None:
    """NaN and Infinity are Python's own additions to JSON."""
    raise ValueError(name)


def _number(text: str) -> float:
    """A JSON number; one that does not fit is an error to Go, and infinity to Python."""
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(text)
    return value
