"""The listing of a context: its entries without content, in parts that are named by their digests.

Entries are sorted as in an archive, by component. A part ends after an entry whose name says so (or after 1024), not
after a number of entries: a file that is added, removed or edited changes one part, and all others keep their digests.
A part is a list of entries in MessagePack. The content of a file is named by the digest of its entry.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from executor.rootfs.entry import KIND_OF_MODE, Entry, Kind
from platforms import decoding
from platforms.errors import ContextError, ProtocolError

PART_LIMIT: Final = 64 << 20
"""Maximum size of a part in bytes."""
_MOST: Final = 1024
_MEAN: Final = 256
"""Entries in a part: at most, and on average."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_KINDS: Final = frozenset(KIND_OF_MODE.values())
_ENCODER: Final = msgspec.msgpack.Encoder()
# Made here, by one thread: two that make the decoder of one type at the same moment crash msgspec.
_ENTRIES: Final[msgspec.msgpack.Decoder[list[Entry]]] = msgspec.msgpack.Decoder(list[Entry])


def cut(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield ``entries``, which are sorted, in parts."""
    part: list[Entry] = []
    for entry in entries:
        part.append(entry)
        if len(part) >= _MOST or not zlib.crc32(entry.path, 1) % _MEAN:
            yield part
            part = []
    if part:
        yield part


def encode(part: Sequence[Entry]) -> bytes:
    """Return ``part`` without what is of this machine only. Raises ``ContextError`` for a time that cannot be sent."""
    try:
        return _ENCODER.encode([replace(each, source=b"", stamp=b"") for each in part])
    except OverflowError as error:
        raise ContextError(
            f"cannot send the files beside {part[0].path.decode(errors='replace')}",
            why="one of them has a time that does not fit into 64 bits",
            remedy="touch it",
        ) from error


def decode(data: bytes) -> list[Entry]:
    """Return the part ``data``. Raises ``ProtocolError`` for entries that no context can have."""
    try:
        part = decoding.decode(_ENTRIES, data)
    except msgspec.DecodeError as error:
        raise ProtocolError("the listing of a context is malformed", why=str(error)) from error
    for each in part:
        if not _is_valid(each):
            raise ProtocolError("the listing of a context is malformed", why=f"{each.path!r} cannot be in one")
    return part


def _is_valid(entry: Entry) -> bool:
    names = entry.path.split(b"/") if entry.path else []
    return (
        entry.kind in _KINDS
        and not any(name in (b"", b".", b"..") or b"\0" in name for name in names)
        and 0 <= entry.mode <= 0o7777
        and min(entry.size, entry.uid, entry.gid) >= 0
        and not (entry.source or entry.stamp)
        and (not entry.digest or (entry.kind is Kind.FILE and _DIGEST.fullmatch(entry.digest) is not None))
    )
