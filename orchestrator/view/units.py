"""Formatting bytes and durations."""

from __future__ import annotations

from typing import Final

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


def size(count: float) -> str:
    """Format bytes in decimal units, as registries and docker do: ``812 B``, ``48.2 MB``."""
    amount = max(0.0, float(count))
    unit = 0
    # 999.95 would be rounded to 1000.0
    while amount >= 999.95 and unit < len(_UNITS) - 1:
        amount /= 1000
        unit += 1
    return f"{amount:.0f} B" if unit == 0 else f"{amount:.1f} {_UNITS[unit]}"


def part(done: int, total: int) -> str:
    """Format progress: ``12.0/48.2 MB``; without a known total only the bytes done."""
    if total <= 0:
        return size(done)
    whole = size(total)
    some = size(min(done, total))
    unit = whole.rpartition(" ")[2]
    return f"{some.removesuffix(' ' + unit)}/{whole}" if some.endswith(" " + unit) else f"{some}/{whole}"


def duration(seconds: float) -> str:
    """Format a finished duration: ``0.4s``, ``12.3s``, ``1m04s``, ``1h02m``."""
    seconds = max(0.0, seconds)
    return f"{seconds:.1f}s" if seconds < 59.95 else _long(seconds)


def elapsed(seconds: float) -> str:
    """Format a running duration in whole seconds: ``12s``, ``1m04s``."""
    seconds = max(0.0, seconds)
    return f"{int(seconds)}s" if seconds < 60 else _long(int(seconds))


def _long(seconds: float) -> str:
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    minutes = whole // 60
    return f"{minutes // 60}h{minutes % 60:02}m"
