"""Parsing the values of ``RUN --mount`` and ``RUN --device``: comma-separated ``key=value`` fields.

Source: Dockerfile reference, "RUN --mount" and "RUN --device". Errors are ``ValueError``; the caller adds the location.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from executor.dockerfile.instructions import Device, Mount
from executor.dockerfile.suggestions import hint

TYPES: Final = ("bind", "cache", "tmpfs", "secret", "ssh")
_SHARING: Final = ("shared", "private", "locked")
KEYS: Final = (
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
)
_BOOLEANS: Final = dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True) | dict.fromkeys(
    ("0", "f", "F", "FALSE", "false", "False"), False
)
_NUMBER: Final = r"\+?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?"  # compiled when used
_UNITS: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_ID_LIMIT: Final = 1 << 32


def unexpanded(text: str) -> Mount:
    """Return a mount with only ``text`` and ``from_`` set; the other fields may depend on variables."""
    source = ""
    for field in fields(text):
        key, equals, value = field.partition("=")
        if key.lower() == "from" and equals:
            if 0 <= value.find("$") < len(value) - 1:
                raise ValueError("'from' doesn't support variable expansion, define alias stage instead")
            source = value
    return Mount(text=text, from_=source)


def mount(text: str, expanded: Callable[[str], str]) -> Mount:
    """Return the mount that ``text`` describes. ``expanded`` expands the variables of a value."""
    found: dict[str, Any] = {"text": text}
    for field in fields(text):
        key, equals, value = field.partition("=")
        key = key.lower()
        if equals:
            _set(found, key, expanded(value), field)
        else:
            _switch(found, key, field)
    kind = found.get("type", "bind")
    found.setdefault("readonly", kind not in ("cache", "tmpfs"))
    made = Mount(**found)
    _check(made)
    return made


def _switch(found: dict[str, Any], key: str, field: str) -> None:
    """Set a field that has no value."""
    if key in ("readonly", "ro"):
        found["readonly"] = True
    elif key in ("readwrite", "rw"):
        found["readonly"] = False
    elif key == "required":
        _only_for(found, key, "secret", "ssh")
        found["required"] = True
    else:
        raise ValueError(f"invalid field '{field}' must be a key=value pair")


def _set(found: dict[str, Any], key: str, value: str, field: str) -> None:
    match key:
        case "type":
            found["type"] = _one_of(value, TYPES, "mount type")
        case "from":
            found["from_"] = value
        case "source" | "src":
            found["source"] = value
        case "target" | "dst" | "destination":
            found["target"] = value
        case "readonly" | "ro":
            found["readonly"] = _boolean(key, value)
        case "readwrite" | "rw":
            found["readonly"] = not _boolean(key, value)
        case "required":
            _only_for(found, key, "secret", "ssh")
            found["required"] = _boolean(key, value)
        case "size":
            _only_for(found, key, "tmpfs")
            found["size"] = _size(key, value)
        case "sharing":
            found["sharing"] = _one_of(value, _SHARING, "sharing value")
        case "mode":
            found["mode"] = _number(key, value, 8)
        case "uid" | "gid":
            found[key] = _number(key, value, 10)
        case "id" | "env":
            found[key] = value
        case _:
            raise ValueError(f"unexpected key '{key}' in '{field}'{hint(key, KEYS)}")


def _check(made: Mount) -> None:
    """Raise for fields that exclude each other."""
    if made.type in ("bind", "tmpfs"):
        for key in ("mode", "uid", "gid"):
            if getattr(made, key) is not None:
                raise ValueError(f'{key} not allowed for "{made.type}" type mounts')
    if made.type == "secret":
        if made.from_:
            raise ValueError("secret mount should not have a from")
        if made.sharing:
            raise ValueError("secret mount should not define sharing")
        if not (made.source or made.target or made.id):
            raise ValueError("invalid secret mount. one of source, target required")
        if made.source and made.id:
            raise ValueError("both source and id can't be set")
    if made.type == "ssh" and made.source:
        raise ValueError("ssh does not support source")
    if made.sharing and made.type != "cache":
        raise ValueError(f"invalid cache sharing set for {made.type} mount")


def _only_for(found: dict[str, Any], key: str, *types: str) -> None:
    """Raise for a key that the mount's ``type`` does not have."""
    kind = found.get("type", "bind")
    if kind not in types:
        raise ValueError(f"unexpected key '{key}' for mount type '{kind}'")


def _one_of(value: str, options: tuple[str, ...], what: str) -> str:
    if value.lower() not in options:
        raise ValueError(f'unsupported {what} "{value}"{hint(value, options)}')
    return value.lower()


def _boolean(key: str, value: str) -> bool:
    if value not in _BOOLEANS:
        raise ValueError(f"invalid value for {key}: {value}")
    return _BOOLEANS[value]


def _number(key: str, value: str, base: int) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 20 or (base == 8 and set(value) & {"8", "9"}):
        raise ValueError(f"invalid value {value} for {key}")
    number = int(value, base)
    if number >= _ID_LIMIT:
        raise ValueError(f"invalid value {value} for {key}")
    return number


def _size(key: str, value: str) -> int:
    """Return the bytes of a number with an optional binary unit: ``64m``, ``1.5GiB``."""
    wrong = ValueError(f"invalid value for {key}: {value}")
    at = max((value.rfind(letter) for letter in "0123456789. "), default=-1)
    number, unit = (value[:at] if value[at : at + 1] == " " else value[: at + 1]), value[at + 1 :].lower()
    if at < 0 or len(unit) > 3 or re.fullmatch(_NUMBER, number) is None:
        raise wrong
    if unit == "b":
        unit = ""
    if unit[1:] not in ("", "b", "ib") or unit[:1] not in _UNITS:
        raise wrong
    size = float(number) * (1 << _UNITS[unit[:1]])
    if size >= 1 << 63:
        raise wrong
    return int(size)


def device(text: str) -> Device:
    """Return the device of the value of ``--device``."""
    name, required = "", False
    for field in fields(text):
        key, equals, value = field.partition("=")
        key = key.lower()
        if key == "required":
            required = _boolean(key, value) if equals else True
        elif key == "name" and equals:
            if name:
                raise ValueError(f"device name already set to {name}")
            name = value
        elif not name:
            name = field
        elif equals:
            raise ValueError(f"unexpected key '{key}' in '{field}'{hint(key, ('name', 'required'))}")
        else:
            raise ValueError(f"invalid field '{field}' must be a key=value pair")
    return Device(name=name, required=required)


def fields(line: str) -> list[str]:
    """Return the fields of a line of comma-separated values (RFC 4180)."""
    if not line:
        raise ValueError("failed to parse csv mounts: it is empty")
    found: list[str] = []
    at = 0
    while at <= len(line):
        if line.startswith('"', at):
            field, at = _quoted_field(line, at + 1)
        else:
            end = line.find(",", at)
            end = len(line) if end < 0 else end
            field, at = line[at:end], end + 1
            if '"' in field:
                raise ValueError('failed to parse csv mounts: a quote stands inside a field (bare ")')
        found.append(field)
    return found


def _quoted_field(line: str, at: int) -> tuple[str, int]:
    """Return the field after its opening quote, and the index of the next field (beyond the line after the last)."""
    parts: list[str] = []
    while True:
        end = line.find('"', at)
        if end < 0:
            raise ValueError('failed to parse csv mounts: a quoted field has no end (extraneous or missing ")')
        parts.append(line[at:end])
        after = line[end + 1 : end + 2]
        if after in ("", ","):
            return "".join(parts), end + 2 if after else len(line) + 1
        if after != '"':
            raise ValueError('failed to parse csv mounts: text follows a quoted field (extraneous or missing ")')
        parts.append('"')
        at = end + 2
