"""Cache keys: everything a step can observe, framed so that no two different inputs read the same.

A key is the SHA-256 of a canonical encoding in which every part carries its type and length (kaniko's joined strings
made ``A=x-B=z`` and ``A=x``, ``B=z`` the same key; a framed encoding cannot).
"""

from __future__ import annotations

import hashlib

Part = str | bytes | int | bool | None | tuple["Part", ...]

_GENERATION = "kanifold 1"
"""Changes when a step comes to mean something else, so that older records are no longer found."""


def key(kind: str, *parts: Part) -> str:
    """The key of a step of ``kind`` that observes ``parts``: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    out: list[bytes] = []
    _frame((_GENERATION, kind, parts), out)
    digest.update(b"".join(out))
    return digest.hexdigest()


def _frame(part: Part, out: list[bytes]) -> None:
    if isinstance(part, tuple):
        out.append(b"(%d:" % len(part))
        for each in part:
            _frame(each, out)
    elif isinstance(part, str):
        data = part.encode("utf-8", "surrogateescape")
        out.append(b"s%d:" % len(data))
        out.append(data)
    elif isinstance(part, bytes):
        out.append(b"b%d:" % len(part))
        out.append(part)
    elif part is None:
        out.append(b"n")
    elif isinstance(part, bool):
        out.append(b"T" if part else b"F")
    else:
        out.append(b"i%d;" % part)
