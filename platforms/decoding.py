"""Decoding untrusted JSON and MessagePack: every failure is ``msgspec.DecodeError``.

Decoders have other failures besides their own: invalid UTF-8, lone surrogates, and nesting that exhausts the stack.
``tests/unit/test_decoding.py`` fails where the sources decode by other means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Protocol, TypeVar

import msgspec

T_co = TypeVar("T_co", covariant=True)

Int64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""An integer of what is decoded. One of hundreds of digits is not: it cannot even become a float."""


class Decoder(Protocol[T_co]):
    """A decoder of one type, of ``msgspec.json`` or ``msgspec.msgpack``; created at import."""

    def decode(self, data: bytes, /) -> T_co:
        """Return the decoded ``data``."""
        ...


def decode(decoder: Decoder[T_co], data: bytes | msgspec.Raw) -> T_co:
    """Return the decoded ``data``. Raises ``msgspec.DecodeError`` for everything else."""
    try:
        return decoder.decode(data)
    except RecursionError as error:
        raise msgspec.DecodeError("it is nested too deeply") from error
    except UnicodeError as error:
        raise msgspec.DecodeError("it is not UTF-8") from error


def from_json(
    data: bytes | str,
    *,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    number: Callable[[str], Any] | None = None,
) -> Any:
    """Return the JSON document ``data``; lone surrogates are rejected.

    ``pairs`` makes the objects, ``number`` the numbers, which it may refuse with a ``ValueError``. Raises
    ``msgspec.DecodeError``, whose message never quotes ``data``.
    """
    import json  # late: a cached build does not need it

    try:
        text = data if isinstance(data, str) else data.decode()
        document = json.loads(text, object_pairs_hook=pairs, parse_float=number, parse_int=number)
        if "\\u" in text:
            json.dumps(document, ensure_ascii=False, default=str).encode()
    except RecursionError:
        raise msgspec.DecodeError("it is nested too deeply") from None
    except UnicodeError:
        raise msgspec.DecodeError("it is not UTF-8") from None
    except ValueError as error:
        raise msgspec.DecodeError(f"it is not JSON: {error}") from None
    return document


def from_loose_json(text: str) -> Any:
    """Return the JSON document ``text`` as Go parses it: lone surrogates are accepted, numbers that overflow are not.

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
    """Reject NaN and Infinity, Python's extensions of JSON."""
    raise ValueError(name)


def _number(text: str) -> float:
    """Return a JSON number. One that overflows is an error, as in Go; in Python it is infinity."""
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(text)
    return value
