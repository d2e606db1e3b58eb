"""Spans of time as people write them."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")
_WHOLE: Final = re.compile(rf"(?:{_PART.pattern})+|\d+(?:\.\d+)?")
_LIMIT: Final = 40
"""Characters; what is longer is no span of time."""


def seconds(text: str) -> float | None:
    """The seconds of ``20s``, ``1m30s``, ``1.5h``, ``500ms`` or plain ``20``; None for anything else."""
    plain = text.strip().lower()
    if len(plain) > _LIMIT or not plain.isascii() or not _WHOLE.fullmatch(plain):
        return None
    parts = _PART.findall(plain)
    return sum(float(number) * _UNITS[unit] for number, unit in parts) if parts else float(plain)
