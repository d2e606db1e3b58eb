"""The values of flags: sizes, ages, and ``key=value,key=value`` in CSV, as buildx reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from executor.dockerfile.suggestions import hint
from platforms import durations
from platforms.errors import UsageError
from platforms.sizes import number_of_bytes

_SECRET: Final = ("secret", "token", "key", "password")
"""Words in keys whose values may be secrets."""


def parse(text: str, flag: str, known: Sequence[str]) -> dict[str, str]:
    """The values in ``text`` by key in lower case, which has to be a ``known`` one. Raises ``UsageError``."""
    import csv

    values: dict[str, str] = {}
    for each in next(csv.reader([text])):
        key, equals, value = each.partition("=")
        if not equals or key.lower() not in known:
            meant = hint(key.lower(), known) if equals else ""
            shown = f"{key}=…" if equals and any(word in key.lower() for word in _SECRET) else each
            raise UsageError(
                f"{flag}: unexpected {shown!r}{meant}", remedy=f"use {', '.join(f'{name}=' for name in known)}"
            )
        values[key.lower()] = value
    return values


def first(text: str, key: str) -> str:
    """The value of ``key`` in ``text``, whatever else is there; "" if it has none."""
    import csv

    words = (each.partition("=") for each in next(csv.reader([text]), ()))
    return next((value for name, _, value in words if name.lower() == key), "")


def truth(values: Mapping[str, str], key: str, flag: str, *, default: bool) -> bool:
    """Whether ``key`` says true; ``default`` when it is not there. Raises ``UsageError``."""
    text = values.get(key)
    if text is None:
        return default
    if text.lower() not in ("true", "1", "t", "false", "0", "f"):
        raise UsageError(f"{flag}: {key}={text!r} is neither true nor false")
    return text.lower() in ("true", "1", "t")


def size(text: str, flag: str) -> int:
    """``10g``, ``512MB`` or plain bytes, as bytes (powers of 1024, as docker counts here). Raises ``UsageError``."""
    found = number_of_bytes(text)
    if found is None:
        raise UsageError(f"{flag}: {text!r} is not a size", remedy="write bytes, or 512k, 64m, 10g")
    return found


def age(text: str, flag: str) -> int:
    """``24h``, ``90m`` or ``7d``, as seconds; a number without a unit is none. Raises ``UsageError``."""
    found = durations.age(text)
    if found is None:
        raise UsageError(f"{flag}: {text!r} is not an age", remedy="write 90m, 24h or 7d")
    return int(found)
