"""What stands for metadata that the kernel refused to set, read back.

See ``placing`` for who writes these records, and ``entry`` for their names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from executor.rootfs.entry import (
    CAPABILITY_XATTR,
    DEVICE_XATTR,
    OVERLAY_XATTR,
    OWNER_XATTR,
    PRIVATE_XATTR,
    Entry,
    Kind,
)

OWNERS: Final = "owners"
"""The file beside an upper directory with the owners of what cannot carry a record (symbolic links, say): lines of
JSON objects with ``path`` (relative to the upper directory, as ``os.fsdecode`` gives it), ``uid`` and ``gid``."""
_ESCAPED: Final = OVERLAY_XATTR + b"overlay."
_DEVICES: Final = {b"c": Kind.CHARACTER, b"b": Kind.BLOCK, b"p": Kind.FIFO}

Owners = dict[bytes, tuple[int, int]]


def restored(entry: Entry) -> Entry:
    """``entry``, read with all its extended attributes, as it would be if nothing had been refused.

    The records and overlayfs's own attributes are gone afterwards; a record that makes no sense counts for nothing.
    """
    if not any(key.startswith((PRIVATE_XATTR, OVERLAY_XATTR, b"trusted.overlay.")) for key, _ in entry.xattrs):
        return entry
    kept: dict[bytes, bytes] = {}
    records: dict[bytes, bytes] = {}
    for key, value in entry.xattrs:
        if key.startswith(PRIVATE_XATTR):
            records[key] = value
        elif key.startswith(_ESCAPED):
            kept[OVERLAY_XATTR + key[len(_ESCAPED) :]] = value
        elif not key.startswith((OVERLAY_XATTR, b"trusted.overlay.")):
            kept[key] = value
    if CAPABILITY_XATTR in records:
        kept.setdefault(b"security.capability", records[CAPABILITY_XATTR])
    uid, gid, mode = _owner(records.get(OWNER_XATTR, b""), entry)
    kind, device = entry.kind, entry.device
    if kind is Kind.FILE and not entry.size and DEVICE_XATTR in records:
        kind, device = _device(records[DEVICE_XATTR], entry)
    return replace(
        entry,
        kind=kind,
        mode=mode,
        uid=uid,
        gid=gid,
        device=device,
        xattrs=tuple(sorted(kept.items())),
        source=entry.source if kind is Kind.FILE else b"",
        stamp=entry.stamp if kind is Kind.FILE else b"",
    )


def _owner(record: bytes, entry: Entry) -> tuple[int, int, int]:
    parts = record.split(b":")
    if len(parts) not in (2, 3) or not all(part.isdigit() and len(part) < 11 for part in parts):
        return entry.uid, entry.gid, entry.mode
    try:
        mode = int(parts[2], 8) & 0o7777 if len(parts) == 3 else entry.mode
    except ValueError:
        mode = entry.mode
    return int(parts[0]), int(parts[1]), mode


def _device(record: bytes, entry: Entry) -> tuple[Kind, tuple[int, int]]:
    letter, *numbers = record.split(b":")
    kind = _DEVICES.get(letter)
    if kind is Kind.FIFO and not numbers:
        return kind, (0, 0)
    if kind is None or len(numbers) != 2 or not all(each.isdigit() and len(each) < 8 for each in numbers):
        return entry.kind, entry.device
    return kind, (int(numbers[0]), int(numbers[1]))


def read_owners(directory: str) -> Owners:
    """The owners recorded beside ``directory``, the last record of a path winning; empty without a file."""
    try:
        with open(_owners_beside(directory), encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
    except FileNotFoundError:
        return {}
    return {os.fsencode(each["path"]).strip(b"/"): (each["uid"], each["gid"]) for each in records}


def note_owners(directory: str, owners: Iterable[tuple[bytes, int, int]]) -> None:
    """Add path, user and group of each of ``owners`` to what is recorded beside ``directory``."""
    lines = [json.dumps({"path": os.fsdecode(path), "uid": uid, "gid": gid}) + "\n" for path, uid, gid in owners]
    if lines:
        with open(_owners_beside(directory), "a", encoding="utf-8") as file:
            file.writelines(lines)


def _owners_beside(directory: str) -> str:
    return os.path.join(os.path.dirname(os.path.abspath(directory)), OWNERS)
