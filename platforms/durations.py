"""Parsing of durations: as users write them in flags and settings, and as Go writes them in Dockerfiles."""

from __future__ import annotations

import re
from typing import Final

_NANOSECONDS: Final = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86400 * 10**9,
    "w": 7 * 86400 * 10**9,
}
_SECOND: Final = _NANOSECONDS["s"]
# Compiled when used, which few builds do:
_PLAIN: Final = r"([0-9]+(?:\.[0-9]+)?)(ms|[smhdw])"
"""A part of a user's duration."""
_GO: Final = r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)"
"""A part of a duration for Go's time.ParseDuration."""
_LONGEST: Final = 40
"""Maximum length of a user's duration."""
_DIGITS: Final = 20
"""Maximum number of digits before a point, and of those after it that count."""
_MOST: Final = (1 << 63) - 1
"""Maximum of Go's time.Duration in nanoseconds."""


def seconds(text: str) -> float | None:
    """Return the seconds in ``20s``, ``1m30s``, ``1.5h``, ``500ms`` or plain ``20``; None for anything else.

    Units are ms, s, m, h, d and w, in either case.
    """
    plain = text.strip().lower()
    if len(plain) > _LONGEST:
        return None
    if re.fullmatch(r"\d+(?:\.\d+)?", plain, re.ASCII):
        return float(plain)
    total = _total(plain, _PLAIN)
    return None if total is None else total / _SECOND


def age(text: str) -> float | None:
    """Return the seconds in ``90m``, ``24h`` or ``7d``: as ``seconds``, but a number without a unit is None."""
    return seconds(text) if text.strip()[-1:].isalpha() else None


def nanoseconds(text: str) -> int | None:
    """Return the nanoseconds in ``1h30m`` or ``-1.5s`` as Go's time.ParseDuration does; None for what it refuses."""
    rest = text[1:] if text[:1] in ("-", "+") else text
    total = 0 if rest == "0" else _total(rest, _GO)
    if total is None or total > _MOST:
        return None
    return -total if text.startswith("-") else total


def _total(text: str, part: str) -> int | None:
    """Return the nanoseconds in ``text``, a sequence of what ``part`` matches; None if it is anything else."""
    total = at = 0
    pattern = re.compile(part)
    while found := pattern.match(text, at):
        whole, _, fraction = found[1].partition(".")
        if len(whole) > _DIGITS:
            return None
        scale, fraction = _NANOSECONDS[found[2]], fraction[:_DIGITS]
        total += int(whole or "0") * scale + int(fraction or "0") * scale // 10 ** len(fraction)
        at = found.end()
    return total if text and at == len(text) else None
