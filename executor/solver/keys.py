"""Cache keys: everything a step can observe, framed so that no two different inputs read the same.

A key is the SHA-256 of a MessagePack encoding, in which every part carries its type and length (kaniko's joined strings
made ``A=x-B=z`` and ``A=x``, ``B=z`` the same key; a framed encoding cannot).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final

import msgspec


class Rows(msgspec.Struct, frozen=True):
    """A tuple that is too long to be held: how many parts it has, and what gives the encodings of all of them."""

    count: int
    encoded: Callable[[], Iterable[bytes]]


Part = str | bytes | int | bool | None | Rows | tuple["Part", ...]

_GENERATION: Final = "kanifold 5"
"""Changes when a step comes to mean something else, so that older records are no longer found."""
_TOGETHER: Final = 512
_TEXT: Final = 1
_NUMBER: Final = 2


def key(kind: str, *parts: Part) -> str:
    """The key of a step of ``kind`` that observes ``parts``: 64 hexadecimal digits."""
    whole = (_GENERATION, kind, parts)
    try:
        return hashlib.sha256(encoded(whole)).hexdigest()
    except TypeError:  # there are ``Rows``, which are the same as if they were a tuple
        digest = hashlib.sha256()
        for piece in _pieces(whole):
            digest.update(piece)
        return digest.hexdigest()


def encoded(part: Part) -> bytes:
    """What stands for ``part``, which has no ``Rows``, in the encoding."""
    try:
        return msgspec.msgpack.encode(part)
    except (UnicodeEncodeError, OverflowError):
        return msgspec.msgpack.encode(_extended(part))


def encodings(parts: Iterable[Part]) -> Iterator[bytes]:
    """The encodings of ``parts``, which have no ``Rows``, many at a time."""
    rest = iter(parts)
    while some := tuple(islice(rest, _TOGETHER)):
        yield encoded(some)[len(tuple_of(len(some))) :]


def tuple_of(count: int) -> bytes:
    """What stands before the encodings of a tuple's ``count`` parts."""
    if count < 16:
        return bytes((0x90 | count,))
    return b"\xdc" + count.to_bytes(2, "big") if count < 1 << 16 else b"\xdd" + count.to_bytes(4, "big")


def _pieces(part: Part) -> Iterator[bytes]:
    if isinstance(part, Rows):
        yield tuple_of(part.count)
        yield from part.encoded()
    elif isinstance(part, tuple):
        yield tuple_of(len(part))
        for each in part:
            yield from _pieces(each)
    else:
        yield encoded(part)


def _extended(part: Part) -> object:
    """``part`` with extension types for what MessagePack has no type for: text that is not UTF-8, large numbers."""
    if isinstance(part, tuple):
        return tuple(map(_extended, part))
    if isinstance(part, str) and not part.isascii():
        data = part.encode("utf-8", "surrogateescape")
        return part if data.decode("utf-8", "replace") == part else msgspec.msgpack.Ext(_TEXT, data)
    if isinstance(part, int) and not -(1 << 63) <= part < 1 << 64:
        return msgspec.msgpack.Ext(_NUMBER, b"%d" % part)
    return part
