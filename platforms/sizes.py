"""Parsing sizes."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_SIZE: Final = r"(\d{1,18}(?:\.\d{1,18})?)\s*([kmgt]?)(?:i?b)?"  # compiled when used, which few builds do


def number_of_bytes(text: str) -> int | None:
    """Return the bytes of ``10g``, ``512MB``, ``1.5GiB`` or plain ``4096`` (powers of 1024, as in docker); else
    None."""
    found = re.fullmatch(_SIZE, text.strip().lower())
    return int(float(found[1]) * (1 << _UNITS[found[2]])) if found is not None else None
