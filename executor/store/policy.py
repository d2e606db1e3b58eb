"""The garbage collection policy of the store: size limits and retention.

Names and defaults are those of BuildKit's garbage collection (cmd/buildkitd/config). The file is YAML,
``$KANIFOLD_STORE_SETTINGS``, else ``$XDG_CONFIG_HOME/kanifold/store.yaml``; environment variables override it:

    gc: true                # KANIFOLD_GC: false leaves the size to `kanifold prune`
    reservedSpace: 10GB     # KANIFOLD_RESERVED_SPACE
    maxUsedSpace: 100GB     # KANIFOLD_MAX_USED_SPACE
    minFreeSpace: 20%       # KANIFOLD_MIN_FREE_SPACE
    keepDuration: 60d       # KANIFOLD_KEEP_DURATION

A size is a number of bytes, optionally with a unit (powers of 1024), or a percentage of the disk. 0 is no limit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from platforms import durations
from platforms.errors import UsageError
from platforms.paths import below
from platforms.sizes import number_of_bytes

_GIB: Final = 1 << 30
_DAY: Final = 86400.0
_RESERVED: Final = (10, 10 * _GIB)
"""Percentage of the disk, and bytes: the lesser applies."""
_MAX_USED: Final = (80, 100 * _GIB)
_MIN_FREE: Final = 20
_KEEP_SECONDS: Final = 60 * _DAY
_FILE_LIMIT: Final = 1 << 20
_SIZES: Final = {"reservedSpace", "maxUsedSpace", "minFreeSpace"}
_FLAGS: Final = {"1": True, "true": True, "0": False, "false": False}


class Policy(msgspec.Struct, frozen=True):
    """The limits. Sizes in bytes, times in seconds."""

    reserved: int
    """Below this size nothing but garbage is removed."""
    max_used: int
    """Maximum size of the store: the least recently used is removed beyond it; 0: no limit."""
    min_free: int
    """Minimum free space of the disk: the least recently used is removed below it; 0: no limit."""
    keep: float
    """Time without use after which a resource is removed; 0: no limit."""
    enabled: bool = True


class Disk(msgspec.Struct, frozen=True):
    """The size of a file system, and the free space for unprivileged users, in bytes (statvfs(3))."""

    total: int
    free: int


def disk(root: str) -> Disk:
    """Return the disk that the store at ``root`` is on, or will be."""
    place = os.path.abspath(root)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    found = os.statvfs(place)
    return Disk(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


def load(root: str, environment: Mapping[str, str] | None = None) -> Policy:
    """Return the policy of the store at ``root``. Raises ``UsageError`` for invalid settings."""
    environment = os.environ if environment is None else environment
    said = _from_file(environment)
    for key, name in {
        "gc": "KANIFOLD_GC",
        "reservedSpace": "KANIFOLD_RESERVED_SPACE",
        "maxUsedSpace": "KANIFOLD_MAX_USED_SPACE",
        "minFreeSpace": "KANIFOLD_MIN_FREE_SPACE",
        "keepDuration": "KANIFOLD_KEEP_DURATION",
    }.items():
        if environment.get(name):
            said[key] = (name, environment[name])
    total = disk(root).total

    def size(key: str, default: int) -> int:
        return _size(*said[key], total) if key in said else default

    return Policy(
        size("reservedSpace", min(total * _RESERVED[0] // 100, _RESERVED[1])),
        size("maxUsedSpace", min(total * _MAX_USED[0] // 100, _MAX_USED[1])),
        size("minFreeSpace", total * _MIN_FREE // 100),
        _seconds(*said["keepDuration"]) if "keepDuration" in said else _KEEP_SECONDS,
        _flag(*said["gc"]) if "gc" in said else True,
    )


def _from_file(environment: Mapping[str, str]) -> dict[str, tuple[str, object]]:
    """Return the settings of the file by key, each with its name for error messages."""
    explicit = environment.get("KANIFOLD_STORE_SETTINGS", "")
    home = environment.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    file = explicit or below(home, "kanifold", "store.yaml")
    try:
        with open(file, "rb") as stream:
            data = stream.read(_FILE_LIMIT)
    except (FileNotFoundError, NotADirectoryError) as error:
        if explicit:
            raise _invalid(file, "there is no such file") from error
        return {}
    except OSError as error:
        raise _invalid(file, error.strerror or "it cannot be read") from error
    import yaml

    try:
        document: Any = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise _invalid(file, str(error)) from error
    known = {"gc", "keepDuration", *_SIZES}
    if document is None:
        return {}
    if not isinstance(document, dict) or not set(document) <= known:
        raise _invalid(file, f"it has other keys than {', '.join(sorted(known))}")
    return {key: (f"{key} in {file}", value) for key, value in document.items()}


def _size(name: str, value: object, total: int) -> int:
    text = str(value).strip()
    share = re.fullmatch(r"(\d{1,3}(?:\.\d{1,9})?)\s*%", text)
    if share is not None:
        return int(total * min(float(share[1]), 100.0) / 100)
    found = number_of_bytes(text)
    if found is None or isinstance(value, bool):
        raise UsageError(
            f"{name}: {value!r} is not a size", remedy="write bytes, 512MB, 10GB, or a part of the disk: 20%"
        )
    return found


def _seconds(name: str, value: object) -> float:
    if value in (0, "0"):
        return 0.0
    found = durations.age(str(value))
    if found is None:
        raise UsageError(f"{name}: {value!r} is not a duration", remedy="write 90m, 24h or 60d")
    return found


def _flag(name: str, value: object) -> bool:
    found = value if isinstance(value, bool) else _FLAGS.get(str(value).lower())
    if found is None:
        raise UsageError(f"{name}: {value!r} is neither true nor false")
    return found


def _invalid(file: str, why: str) -> UsageError:
    return UsageError(f"cannot use the settings of the store in {file}", why=why)
