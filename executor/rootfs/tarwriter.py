"""Canonical tar archives of entries.

The same entries always give the same bytes: POSIX ustar headers, preceded by a PAX extended header for what they cannot
hold (long or non-ASCII names, sizes from 8 GiB, owners from 2,097,152, extended attributes as ``SCHILY.xattr.NAME``);
whole seconds; no user or group names, and no other times. Names are written as by Docker and containerd:
``etc/passwd``, directories ``etc/``, deletions ``etc/.wh.NAME``.

A file whose own name is ``.wh.NAME`` is written under that name, as by BuildKit, and so becomes a deletion: the format
of layers has no other way.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from typing import Final
from zlib import adler32

from msgspec.structs import replace

from executor.rootfs.entry import OPAQUE_NAME, WHITEOUT_PREFIX, Entry, Kind, hard_link
from platforms.errors import BuildError

_BUFFER: Final = 256 << 10
"""Bytes that are collected before ``out`` is called, and the size of reads of large files."""

END: Final = bytes(1024)
"""The end of an archive: two empty blocks."""

Out = Callable[[bytes | memoryview], object]
"""Receives the next bytes; a view is valid only during the call."""

HeaderOf = Callable[[Entry], bytes]
"""Returns the header of an entry."""

_TYPE: Final = {
    Kind.FILE: b"0",
    Kind.HARDLINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHARACTER: b"3",
    Kind.BLOCK: b"4",
    Kind.DIRECTORY: b"5",
    Kind.FIFO: b"6",
}
# name, mode, uid, gid, size, mtime, checksum (as blanks), type, link, magic + version + uname + gname, device, prefix
_HEADER: Final = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0        %b%bustar\x0000" + bytes(64) + b"%b%b" + bytes(12)
_NO_DEVICE: Final = b"0000000\x000000000\x00"
_PADDING: Final = tuple(bytes(-size % 512) for size in range(512))
_MAX_ID: Final = 0o7777777
_MAX_NUMBER: Final = 0o77777777777
"""Maximum of the fields size and mtime of a ustar header."""


def canonical(entries: Iterable[Entry]) -> list[Entry]:
    """Return ``entries`` in the order of a canonical layer: bytewise by path component, parents before their content.

    An opaque mark follows its directory. Of a group of hard links the first path becomes the file and the others link
    to it, so that a target always precedes its links.
    """
    found = sorted(entries, key=_order)
    links = [at for at, each in enumerate(found) if each.kind is Kind.HARDLINK]
    if not links:
        return found
    places = {each.path: at for at, each in enumerate(found) if each.kind not in (Kind.WHITEOUT, Kind.OPAQUE)}
    groups: dict[int, list[int]] = {}
    for at in links:
        target = _target(found, places, at)
        if target is not None:
            groups.setdefault(target, [target]).append(at)
    for target, group in groups.items():
        group.sort()
        object_ = found[target]
        first = replace(object_, path=found[group[0]].path)
        found[group[0]] = first
        for at in group[1:]:
            found[at] = hard_link(object_, found[at].path, first.path)
    return found


def _order(entry: Entry) -> bytes:
    key = entry.path.replace(b"/", b"\0")
    return key + b"\0" if entry.kind is Kind.OPAQUE else key


def _target(found: list[Entry], places: dict[bytes, int], at: int) -> int | None:
    """Return the index of the file to which the hard link at ``at`` leads; None if it is not among the entries."""
    for _ in range(len(places)):
        place = places.get(found[at].link)
        if place is None or found[place].kind is not Kind.HARDLINK:
            return place
        at = place
    return None


def write(entries: Iterable[Entry], out: Out, header_of: HeaderOf | None = None) -> None:
    """Pass the tar archive of ``entries`` to ``out``; otherwise as ``write_open``."""
    write_open(entries, out, header_of)
    out(END)


def write_open(entries: Iterable[Entry], out: Out, header_of: HeaderOf | None = None) -> None:
    """Pass the tar archive of ``entries``, in the order given and without its ``END``, to ``out`` piece by piece.

    ``header_of`` (default: ``header``) returns the header of an entry. In constant memory. Raises ``BuildError`` if a
    file does not have the size in its entry (it was changed since) or is not a regular file; ``OSError`` if it cannot
    be read.
    """
    pending: list[bytes] = []
    size = 0
    header_of = header_of or header
    for entry in entries:
        head = header_of(entry)
        pending.append(head)
        size += len(head)
        content = entry.size
        if content and entry.kind is Kind.FILE:
            if content < _BUFFER:
                pending.append(_small(entry))
                pending.append(_PADDING[content & 511])
                size += content + 511
            else:
                out(b"".join(pending))
                pending.clear()
                _copy(entry, out)
                pending.append(_PADDING[content & 511])
                size = 511
        if size > _BUFFER:
            out(b"".join(pending))
            pending.clear()
            size = 0
    if pending:
        out(b"".join(pending))


def header(entry: Entry, more: Sequence[tuple[bytes, bytes]] = (), type_: int = 0) -> bytes:
    """Return the header of ``entry``, extended headers included: with the records ``more``, and with ``type_`` (bits of
    ``S_IFMT``) in the mode, which is only of use to readers of Windows layers."""
    kind, path = entry.kind, entry.path
    if kind is Kind.WHITEOUT or kind is Kind.OPAQUE:
        return header(_marker(entry), more, type_)
    name = path + b"/" if kind is Kind.DIRECTORY else path
    link, prefix, device = entry.link, b"", _NO_DEVICE
    uid, gid, mtime = entry.uid, entry.gid, entry.mtime_ns // 1_000_000_000
    size = entry.size if kind is Kind.FILE else 0
    records: list[tuple[bytes, bytes]] = [*more]

    if not name.isascii():
        records.append((b"path", name))
        name = _ascii(name)
    elif len(name) > 100:
        # The last slash that leaves a name which fits; a directory's own trailing slash does not count.
        cut = name.find(b"/", len(name) - 101, len(name) - 1)
        if 0 < cut <= 155:
            prefix, name = name[:cut], name[cut + 1 :]
        else:
            records.append((b"path", name))
            name = _ascii(name)
    if link and (len(link) > 100 or not link.isascii()):
        records.append((b"linkpath", link))
        link = _ascii(link)
    if uid > _MAX_ID:
        records.append((b"uid", b"%d" % uid))
        uid = 0
    if gid > _MAX_ID:
        records.append((b"gid", b"%d" % gid))
        gid = 0
    if size > _MAX_NUMBER:
        records.append((b"size", b"%d" % size))
        size = 0
    if not 0 <= mtime <= _MAX_NUMBER:
        records.append((b"mtime", b"%d" % mtime))
        mtime = 0
    if kind is Kind.CHARACTER or kind is Kind.BLOCK:
        device = b"%07o\0%07o\0" % entry.device
    if entry.xattrs and kind is not Kind.HARDLINK:
        # An extended header cannot hold a key with "=" in it.
        records += [(b"SCHILY.xattr." + key, value) for key, value in entry.xattrs if b"=" not in key]

    if not path:
        name = b"./"
    head = _HEADER % (
        name.ljust(100, b"\0"),
        0o777 if kind is Kind.SYMLINK else entry.mode & 0o7777 | type_,  # what Linux says of every link
        uid,
        gid,
        size,
        mtime,
        _TYPE[kind],
        link.ljust(100, b"\0"),
        device,
        prefix.ljust(155, b"\0"),
    )
    return _extended(records) + _with_checksum(head) if records else _with_checksum(head)


def _marker(entry: Entry) -> Entry:
    """Return the file for a deletion or an opaque mark: empty, without owner, mode or time, as by containerd."""
    parent, slash, name = entry.path.rpartition(b"/")
    if entry.kind is Kind.WHITEOUT:
        path = parent + slash + WHITEOUT_PREFIX + name
    else:
        path = entry.path + b"/" + OPAQUE_NAME if entry.path else OPAQUE_NAME
    return Entry(path, Kind.FILE, mode=0)


def _with_checksum(head: bytes) -> bytes:
    """Return ``head`` with its checksum in place of the blanks."""
    # The sum of all bytes: Adler-32's lower half is that sum plus one, modulo 65,521, which 512 ASCII bytes stay below.
    return b"%b%06o\0 %b" % (head[:148], (adler32(head) & 0xFFFF) - 1, head[156:])


def _extended(records: list[tuple[bytes, bytes]]) -> bytes:
    """Return a PAX extended header (POSIX.1-2017, pax, "pax Extended Header")."""
    data = b"".join(_record(key, value) for key, value in sorted(records))
    name = b"PaxHeader".ljust(100, b"\0")
    head = _HEADER % (name, 0o644, 0, 0, len(data), 0, b"x", bytes(100), _NO_DEVICE, bytes(155))
    return _with_checksum(head) + data + _PADDING[len(data) & 511]


def _record(key: bytes, value: bytes) -> bytes:
    r"""Return ``LENGTH KEY=VALUE\n``, where the decimal LENGTH includes itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


def _ascii(name: bytes) -> bytes:
    """Return the form in the ustar header of a name that the extended header has in full."""
    return bytes(byte for byte in name if byte < 128)[:100].rstrip(b"/")


def open_source(entry: Entry) -> int:
    """Return a descriptor of the content of ``entry``."""
    # O_NONBLOCK: a fifo that took the file's place must not hang the build.
    return os.open(entry.source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)


def _small(entry: Entry) -> bytes:
    size = entry.size
    fd = open_source(entry)
    try:
        data = os.read(fd, size + 1)
        if len(data) != size:
            data = _rest(fd, data, size)
    finally:
        os.close(fd)
    if len(data) != size:
        raise changed(entry)
    return data


def _rest(fd: int, data: bytes, size: int) -> bytes:
    """Return ``data`` and what follows it in ``fd``: some file systems return less than requested before the end."""
    while len(data) <= size and (more := os.read(fd, size + 1 - len(data))):
        data += more
    return data


def _copy(entry: Entry, out: Out) -> None:
    left = entry.size
    fd = open_source(entry)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise changed(entry)
        buffer = bytearray(_BUFFER)
        view = memoryview(buffer)
        while left:
            got = os.readv(fd, (view[: min(left, _BUFFER)],))
            if not got:
                raise changed(entry)
            out(view[:got])
            left -= got
        if os.read(fd, 1):
            raise changed(entry)
    finally:
        os.close(fd)


def changed(entry: Entry) -> BuildError:
    """Return the error for a source of ``entry`` that was changed."""
    return BuildError(
        f"{os.fsdecode(entry.path)} changed while it was read",
        why=f"{os.fsdecode(entry.source)} is no longer a regular file of {entry.size} bytes",
        remedy="let nothing write to the build context during a build",
    )
