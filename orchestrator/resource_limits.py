"""``--resource NAME=VALUE``: resource limits of steps, with buildx's names, and ``pids``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from executor.dockerfile.suggestions import hint
from executor.step_options import ResourceLimits
from orchestrator.fields import size
from platforms.errors import UsageError

_NAMES = tuple(each.replace("_", "-") for each in ResourceLimits.__struct_fields__)


def limits(texts: Iterable[str]) -> ResourceLimits:
    """Return the limits in ``texts``; of several with the same name the last counts. Raises ``UsageError``."""
    found: dict[str, int | str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in _NAMES:
            raise UsageError(
                f"--resource {text!r} is not NAME=VALUE with a name that is known{hint(name, _NAMES)}",
                remedy=f"known are {', '.join(_NAMES)}",
            )
        found[name.replace("-", "_")] = _value(name, value, text)
    made = ResourceLimits(**found)  # type: ignore[arg-type]
    if made.memory_swap and (not made.memory or 0 < made.memory_swap < made.memory):
        raise UsageError("--resource memory-swap= is memory and swap together", remedy="give memory= too, not above it")
    return made


def _value(name: str, value: str, text: str) -> int | str:
    if name.startswith("cpuset-"):
        if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", value):
            raise UsageError(f"--resource {text!r}: write numbers and ranges, as in 0-3,7")
        return value
    if name == "memory-swap" and value == "-1":
        return -1
    if name.startswith("memory"):
        number = size(value, f"--resource {name}")
    else:
        number = int(value) if re.fullmatch(r"[0-9]{1,18}", value) else 0
    if number <= 0:
        raise UsageError(f"--resource {text!r}: the value is a number above 0")
    return number
