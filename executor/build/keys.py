"""Cache keys: everything a step can observe, framed so that no two different inputs read the same.

A key is the SHA-256 of a MessagePack encoding, in which every part carries its type and length (kaniko's joined strings
made ``A=x-B=z`` and ``A=x``, ``B=z`` the same key; a framed encoding cannot).
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

Part = str | bytes | int | bool | None | tuple["Part", ...]

_GENERATION: Final = "kanifold 2"
"""Changes when a step comes to mean something else, so that older records are no longer found."""
_TEXT: Final = 1
_NUMBER: Final = 2


def key(kind: str, *parts: Part) -> str:
    """The key of a step of ``kind`` that observes ``parts``: 64 hexadecimal digits."""
    whole = (_GENERATION, kind, parts)
    try:
        data = msgspec.msgpack.encode(whole)
    except (UnicodeEncodeError, OverflowError):
        data = msgspec.msgpack.encode(_extended(whole))
    return hashlib.sha256(data).hexdigest()


def _extended(part: Part) -> object:
    """``part`` with extension types for what MessagePack has no type for: text that is not UTF-8, large numbers."""
    if isinstance(part, tuple):
        return tuple(map(_extended, part))
    if isinstance(part, str) and not part.isascii():
        data = part.encode("utf-8", "surrogateescape")
        return part if data.decode("utf-8", "replace") == part else msgspec.msgpack.Ext(_TEXT, data)
    if isinstance(part, int) and not -(1 << 63) <= part < 1 << 63:
        return msgspec.msgpack.Ext(_NUMBER, b"%d" % part)
    return part
