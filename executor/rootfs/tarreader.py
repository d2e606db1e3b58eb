"""Entries of tar archives, read in one pass over an untrusted stream.

The formats are ustar, GNU (long names, base-256 numbers, sparse files), PAX (with sparse files 0.0, 0.1 and 1.0), star
and V7. An archive has to mean the same to Go's ``archive/tar`` *and* to GNU tar. Where the two differ, so that one
archive would hold two different trees, it is refused (as in CVE-2025-62518):

- a PAX ``size`` is the length of the data as well as of the file;
- data after a directory, a symbolic link, a device or a fifo is refused (GNU tar skips it, Go reads headers there);
- a global header that sets names or sizes is refused (GNU tar applies it, Go does not); other global records are
  ignored, as by Docker;
- a long name in both the GNU and the PAX form, or twice, is refused;
- a regular file whose name ends in a slash is refused (GNU tar: a directory; Go: a file), except in V7 archives, where
  it is a directory;
- unknown kinds of entries, volumes and directory dumps are refused, as by containerd.

What is kept in memory is limited: an extended header or long name to 1 MiB (as in Go), a sparse map to 1 MiB or 65,536
regions, a path to 4,095 bytes. Time is linear in the length of the archive.

**Names.** Leading slashes, ``.`` and doubled or trailing slashes are dropped; ``a/../b`` is ``b``, as for containerd. A
name that leads above the root is refused, as by Docker, and so is anything but a directory in place of the root
(umoci's CVE-2021-29136).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final
from zlib import adler32

import msgspec

from executor.rootfs.entry import Entry, Kind
from executor.rootfs.streams import BLOCK, Readable
from platforms.errors import ArchiveError

PATH_LIMIT: Final = 4095
"""Maximum length of a path in Linux (PATH_MAX without its NUL)."""
_SPECIAL_LIMIT: Final = 1 << 20
"""Maximum size in bytes of an extended header, a long name, or a sparse map (Go's maxSpecialFileSize)."""
_REGIONS_LIMIT: Final = 1 << 16
"""Maximum number of regions of an old GNU sparse map."""
_XATTR_LIMIT: Final = 64 << 10
"""Maximum size in bytes of the value of an extended attribute (XATTR_SIZE_MAX)."""
_SIZE_LIMIT: Final = (1 << 63) - 1
_ID_LIMIT: Final = (1 << 32) - 2
"""Maximum user or group id: to chown(2) the next number means "unchanged"."""
_LATEST: Final = (1 << 63) // 1_000_000_000 - 1
"""Seconds: later times, and those before 1970, count as none (containerd's boundTime)."""

_FIELDS: Final = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12s")
_ZERO: Final = bytes(512)
_KINDS: Final = {
    b"0": Kind.FILE,
    b"7": Kind.FILE,
    b"\0": Kind.FILE,
    b"S": Kind.FILE,
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHARACTER,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}
_XATTR: Final = b"SCHILY.xattr."
_SPARSE: Final = b"GNU.sparse."

Copy = Callable[[memoryview], object]
"""Receives the next bytes of a file; the view is valid only during the call."""
Regions = tuple[tuple[int, int], ...]
"""Offset and length of the data of a sparse file, ascending, not overlapping."""
_Extended = dict[bytes, bytes]


class Member:
    """An entry of the archive. Its content can be read once, until the next member is requested."""

    __slots__ = ("_source", "entry", "regions", "stored")

    def __init__(self, entry: Entry, source: _Source, stored: int, regions: Regions | None) -> None:
        self.entry = entry
        """Its ``size`` includes the holes of a sparse file."""
        self.stored = stored
        """Size in bytes of its content in the archive."""
        self.regions = regions
        """Where the stored bytes belong; None if the file is not sparse."""
        self._source = source

    def copy_stored(self, size: int, out: Copy) -> None:
        """Pass the next ``size`` stored bytes to ``out``: all of a plain file, or the next region of a sparse one."""
        self._source.copy(size, out)

    def copy(self, out: Copy) -> None:
        """Pass the content to ``out`` piece by piece, holes as zeros."""
        if self.regions is None:
            self._source.copy(self.stored, out)
            return
        zeros = memoryview(bytes(BLOCK))
        at = 0
        for offset, length in (*self.regions, (self.entry.size, 0)):
            while at < offset:
                step = min(offset - at, BLOCK)
                out(zeros[:step])
                at += step
            self._source.copy(length, out)
            at += length

    def read(self, limit: int) -> bytes:
        """Return the content. Raises ``ArchiveError`` for more than ``limit`` bytes."""
        if self.entry.size > limit:
            raise _broken(self.entry.path, f"{self.entry.size} bytes, where {limit} at most are expected")
        pieces: list[bytes] = []
        self.copy(lambda view: pieces.append(bytes(view)))
        return b"".join(pieces)


def is_header(block: bytes) -> bool:
    """Whether the 512 bytes of ``block`` are a tar header, by which archives are recognised."""
    return len(block) == 512 and block != _ZERO and _checksum_fits(block)


def read(stream: Readable) -> Iterator[Member]:
    """Yield the members of the archive in ``stream``, which is read to its end.

    Raises ``ArchiveError``, with the name of the member, if the archive is damaged, truncated, ambiguous or hostile.
    """
    source = _Source(stream)
    announced = _Announced()
    while (block := source.block()) is not None:
        if block == _ZERO:
            following = source.block()
            if following is not None and following != _ZERO:
                raise ArchiveError("damaged archive", why="a header follows a lone block of zeros")
            break
        if not _checksum_fits(block):
            raise ArchiveError("damaged archive", why="a header's checksum is wrong")
        kind = block[156:157]
        if kind in b"xgLKV":
            _special(kind, block, source, announced)
            continue
        member = _member(block, source, announced)
        announced = _Announced()
        padding = source.begin(member.stored)
        yield member
        source.finish(padding)
    if announced != _Announced():
        raise ArchiveError("truncated archive", why="it ends after a header that announces another")
    source.drain()


class _Announced(msgspec.Struct):
    """What special headers say about the next member."""

    extended: _Extended | None = None
    regions: list[tuple[int, int]] = msgspec.field(default_factory=list)
    name: bytes = b""
    link: bytes = b""


def _special(kind: bytes, block: bytes, source: _Source, announced: _Announced) -> None:
    """Read the special header of ``kind``: extended (``x``), global, GNU long name or link (``L``, ``K``), volume."""
    size = _number(block[124:136], b"")
    if kind == b"V":
        if size:
            raise ArchiveError("unsupported archive", why="a volume label with content")
        return
    if size > _SPECIAL_LIMIT:
        raise ArchiveError("archive refused", why=f"a header of {size} bytes; the limit is {_SPECIAL_LIMIT}")
    data = source.take(size)
    if kind == b"g":
        _check_global(_records(data, []))
    elif kind == b"x":
        if announced.extended is not None:
            raise ArchiveError("ambiguous archive", why="two extended headers in a row")
        announced.extended = _records(data, announced.regions)
    else:
        text = data.partition(b"\0")[0]
        if not text or (announced.name if kind == b"L" else announced.link):
            raise ArchiveError("ambiguous archive", why="two long names in a row, or an empty one")
        if kind == b"L":
            announced.name = text
        else:
            announced.link = text


class _Source:
    """Reads the archive and counts its bytes."""

    __slots__ = ("_at", "_buffer", "_left", "_read")

    def __init__(self, stream: Readable) -> None:
        self._read = stream.read
        self._buffer = b""
        self._at = 0
        self._left = 0
        """Bytes of the present member's content that have not been read."""

    def block(self) -> bytes | None:
        """Return the next header block; None if the archive ends before it."""
        at = self._at
        block = self._buffer[at : at + 512]
        if len(block) == 512:
            self._at = at + 512
            return block
        block = self._take(512)
        if not block:
            return None
        if len(block) < 512:
            raise ArchiveError("truncated archive", why="it ends inside of a header")
        return block

    def take(self, size: int) -> bytes:
        """Return the data of a special header, and skip its padding."""
        data = self._take(size + -size % 512)
        if len(data) < size + -size % 512:
            raise ArchiveError("truncated archive", why="it ends inside of a header")
        return data[:size]

    def _take(self, size: int) -> bytes:
        pieces: list[bytes] = []
        while size:
            piece = self._buffer[self._at : self._at + size]
            if not piece:
                if not self._refill():
                    break
                continue
            self._at += len(piece)
            size -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def _refill(self) -> bool:
        self._buffer, self._at = self._read(BLOCK), 0
        return bool(self._buffer)

    def begin(self, size: int) -> int:
        """Begin the content of a member, of ``size`` bytes; return the argument for ``finish``."""
        self._left = size
        return -size % 512

    def copy(self, size: int, out: Copy) -> None:
        if size > self._left:
            raise ValueError("more content asked for than there is")
        self._left -= size
        while size:
            here = len(self._buffer) - self._at
            if not here:
                if not self._refill():
                    raise ArchiveError("truncated archive", why="it ends inside of a file")
                continue
            step = min(here, size)
            at = self._at
            self._at += step
            size -= step
            out(memoryview(self._buffer)[at : at + step])

    def finish(self, padding: int) -> None:
        """Skip the rest of the content, and the padding."""
        size = self._left + padding
        self._left = 0
        while size:
            here = len(self._buffer) - self._at
            if not here:
                if not self._refill():
                    raise ArchiveError("truncated archive", why="it ends inside of a file")
                continue
            step = min(here, size)
            self._at += step
            size -= step

    def drain(self) -> None:
        """Read to the end of the stream: what follows the end mark is part of its digest."""
        while self._refill():
            pass


def _member(block: bytes, source: _Source, announced: _Announced) -> Member:
    (name, mode, uid, gid, size, mtime, _, flag, link, magic, _, _, major, minor, prefix, trailer) = _FIELDS.unpack(
        block
    )
    name = name.partition(b"\0")[0]
    link = link.partition(b"\0")[0]
    posix, gnu = magic.startswith(b"ustar\0"), magic == b"ustar  \0"
    if prefix[0]:
        if posix:
            if trailer[8:] == b"tar\0":  # star: the prefix is shorter, two times follow it
                prefix = prefix[:131]
            name = prefix.partition(b"\0")[0] + b"/" + name
        elif gnu:
            # Two times. Go before 1.8 wrote a prefix there, and its later readers still look for one; GNU tar does not.
            _time(prefix[:12], name)
            _time(prefix[12:24], name)
    extended, long_name, long_link = announced.extended, announced.name, announced.link
    kind = _KINDS.get(flag)
    if kind is None:
        raise _broken(long_name or name, f"an entry of the unknown kind {flag!r}")

    regions: Regions | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    name, link = long_name or name, long_link or link
    stored = _number(size, name)
    owner, group = _number(uid, name), _number(gid, name)
    seconds = _time(mtime, name)
    mtime_ns = seconds * 1_000_000_000
    real: int | None = None
    if extended is not None:
        if (long_name and b"path" in extended) or (long_link and b"linkpath" in extended):
            raise ArchiveError("ambiguous archive", why=f"two long names for {_shown(name)}")
        name = extended.get(b"path") or name
        link = extended.get(b"linkpath") or link
        stored = _decimal(extended, b"size", stored)
        owner, group = _decimal(extended, b"uid", owner), _decimal(extended, b"gid", group)
        if value := extended.get(b"mtime"):
            mtime_ns = _nanoseconds(value)
        xattrs = _xattrs(extended)
        if any(key.startswith(_SPARSE) for key in extended):
            name, real, regions = _pax_sparse(extended, announced.regions, name)
    if owner > _ID_LIMIT or group > _ID_LIMIT:
        raise _broken(name, f"an owner or group out of range ({owner}:{group})")

    kind = _kind(kind, flag, name, posix or gnu)
    path = clean(name)
    if kind is not Kind.FILE:
        if kind is Kind.HARDLINK and b"size" not in (extended or ()):
            stored = 0  # old archives give the target's size, without data; Go and GNU tar agree on that
        if stored:
            raise _broken(name, f"a {kind.value} with {stored} bytes of data behind it")
        if not path and kind is not Kind.DIRECTORY:
            raise _broken(name, f"a {kind.value} in the place of the root directory")
    elif not path:
        raise _broken(name, "a file in the place of the root directory")
    device = (0, 0)
    if kind is Kind.SYMLINK:
        if not link or len(link) > PATH_LIMIT:
            raise _broken(name, "a symbolic link without a target, or with one too long")
    elif kind is Kind.HARDLINK:
        link = clean(link)
        if not link:
            raise _broken(name, "a hard link to the root directory")
    else:
        link = b""
        if kind is Kind.CHARACTER or kind is Kind.BLOCK:
            device = _number(major, name), _number(minor, name)
            if device[0] >= 1 << 12 or device[1] >= 1 << 20:
                raise _broken(name, f"a device number out of range ({device[0]}:{device[1]})")

    length = stored
    if flag == b"S":
        if regions is not None:
            raise ArchiveError("ambiguous archive", why=f"two sparse maps for {_shown(name)}")
        real, regions = _old_sparse(block, source, name)
    elif regions is not None and kind is not Kind.FILE:
        raise _broken(name, f"a sparse {kind.value}")
    elif real is not None and regions == _MAP_IN_DATA:
        regions, used = _map_in_data(source, stored, name)
        stored -= used
    if regions is not None and real is not None:
        _check_regions(regions, real, stored, name)
        length = real
    entry = Entry(
        path,
        kind,
        _number(mode, name) & 0o7777,
        owner,
        group,
        mtime_ns,
        length,
        link,
        device,
        xattrs,
    )
    return Member(entry, source, stored, regions)


def _kind(kind: Kind, flag: bytes, name: bytes, modern: bool) -> Kind:
    """Return ``kind``, or a directory for V7's form of it: a file whose name ends in a slash."""
    if kind is Kind.FILE and name.endswith(b"/"):
        if flag == b"\0" and not modern:
            return Kind.DIRECTORY
        raise _broken(name, "a file whose name ends in a slash")
    return kind


def clean(name: bytes) -> bytes:
    """Return ``name`` relative to the root, without dots and superfluous slashes; ``b""`` for the root itself.

    Raises ``ArchiveError`` for a name that leads above the root, is too long or has a NUL.
    """
    if len(name) > PATH_LIMIT:
        raise _broken(name, f"a name of {len(name)} bytes; Linux takes {PATH_LIMIT}")
    if b"\0" in name:
        raise _broken(name, "a name with a NUL in it")
    if name and name[0] not in b"./" and b"//" not in name and b"/." not in name:
        return name.rstrip(b"/") if name[-1] == 47 else name
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise _broken(name, "a name that leads out of the root")
            parts.pop()
        elif part and part != b".":
            parts.append(part)
    return b"/".join(parts)


# -- numbers ---------------------------------------------------------------------------------------------------------


def _checksum_fits(block: bytes) -> bool:
    text = block[148:156].strip(b" \0")
    if not text.isdigit():
        return False
    try:
        said = int(text, 8)
    except ValueError:
        return False
    total = (adler32(block) & 0xFFFF) - 1 if block.isascii() else sum(block)  # see tarwriter for Adler-32
    plain = total - sum(block[148:156]) + 8 * 32
    if said == plain:
        return True
    # Some old systems summed signed bytes.
    return not block.isascii() and said == plain - 256 * sum(byte > 127 for byte in block[:148] + block[156:])


def _number(text: bytes, name: bytes) -> int:
    """Return the number in a header: octal digits, or GNU's base 256. Never negative."""
    if text[0] & 0x80:
        if text[0] & 0x40:
            raise _broken(name, "a negative number")
        value = int.from_bytes(text, "big") & ((1 << (8 * len(text) - 1)) - 1)
        if value > _SIZE_LIMIT:
            raise _broken(name, "a number out of range")
        return value
    digits = text.strip(b" \0").partition(b"\0")[0]
    if not digits:
        return 0
    try:
        if digits.isdigit():
            return int(digits, 8)
    except ValueError:
        pass
    raise _broken(name, f"{digits!r} where an octal number belongs")


def _time(text: bytes, name: bytes) -> int:
    """Return seconds since 1970; 0 for times that containerd does not set either."""
    if text[0] & 0xC0 == 0xC0:
        return 0
    seconds = _number(text, name)
    return seconds if seconds <= _LATEST else 0


def _decimal(extended: _Extended, key: bytes, otherwise: int) -> int:
    value = extended.get(key)
    if not value:
        return otherwise
    if not value.isdigit() or len(value) > 19 or int(value) > _SIZE_LIMIT:
        raise ArchiveError("damaged archive", why=f"an extended header's {key.decode()} is {_shown(value)}")
    return int(value)


def _nanoseconds(value: bytes) -> int:
    """Parse a PAX time: decimal seconds with a fraction."""
    whole, dot, fraction = value.partition(b".")
    negative = whole.startswith(b"-")
    if negative:
        whole = whole[1:]
    if not whole.isdigit() or len(whole) > 20 or (dot and fraction and not fraction.isdigit()):
        raise ArchiveError("damaged archive", why=f"an extended header's mtime is {_shown(value)}")
    seconds = int(whole)
    if negative or seconds > _LATEST:
        return 0
    return seconds * 1_000_000_000 + int(fraction[:9].ljust(9, b"0"))


# -- extended headers ------------------------------------------------------------------------------------------------


def _records(data: bytes, sparse: list[tuple[int, int]]) -> _Extended:
    """Return the records of a PAX extended header; those of sparse format 0.0, which repeat, are appended to
    ``sparse``."""
    records: _Extended = {}
    offset: int | None = None
    at, end = 0, len(data)
    while at < end:
        blank = data.find(b" ", at, at + 21)
        digits = data[at:blank]
        if blank < 0 or not digits.isdigit():
            raise ArchiveError("damaged archive", why="an extended header's record has no length")
        length = int(digits)
        following = at + length
        if length < 5 or following > end or following <= blank + 2 or data[following - 1] != 10:
            raise ArchiveError("damaged archive", why="an extended header's record has a wrong length")
        key, equals, value = data[blank + 1 : following - 1].partition(b"=")
        if not equals or not key or b"\0" in key:
            raise ArchiveError("damaged archive", why="an extended header's record has no key")
        at = following
        if key in (b"path", b"linkpath") and b"\0" in value:
            raise ArchiveError("ambiguous archive", why="an extended header's name holds a NUL")
        if key == b"GNU.sparse.offset":
            if offset is not None:
                raise ArchiveError("damaged archive", why="a sparse map's offset without a length")
            offset = _decimal({key: value}, key, -1)
        elif key == b"GNU.sparse.numbytes":
            if offset is None:
                raise ArchiveError("damaged archive", why="a sparse map's length without an offset")
            sparse.append((offset, _decimal({key: value}, key, -1)))
            offset = None
        else:
            records[key] = value
    if offset is not None:
        raise ArchiveError("damaged archive", why="a sparse map's offset without a length")
    return records


def _check_global(records: _Extended) -> None:
    for key in records:
        if key in (b"path", b"linkpath", b"size") or key.startswith(_SPARSE):
            raise ArchiveError("ambiguous archive", why=f"a global header sets every entry's {_shown(key)}")


def _xattrs(extended: _Extended) -> tuple[tuple[bytes, bytes], ...]:
    found = []
    for key, value in extended.items():
        if key.startswith(_XATTR):
            name = key[len(_XATTR) :]
            if not 0 < len(name) <= 255 or len(value) > _XATTR_LIMIT:
                raise ArchiveError("damaged archive", why="an extended attribute that no file can have")
            found.append((name, value))
    return tuple(sorted(found))


# -- sparse files (GNU tar's manual, "Storing Sparse Files") ---------------------------------------------------------

_MAP_IN_DATA: Final[Regions] = ((-1, -1),)
"""Stands for the map of format 1.0 until it has been read."""


def _pax_sparse(
    extended: _Extended, listed: list[tuple[int, int]], name: bytes
) -> tuple[bytes, int | None, Regions | None]:
    """Return the real name, the size and the regions of a sparse file."""
    name = extended.get(b"GNU.sparse.name") or name
    version = extended.get(b"GNU.sparse.major", b""), extended.get(b"GNU.sparse.minor", b"")
    if version == (b"1", b"0"):
        real = _decimal(extended, b"GNU.sparse.realsize", _decimal(extended, b"GNU.sparse.size", -1))
        regions = _MAP_IN_DATA
    elif version in ((b"", b""), (b"0", b"0"), (b"0", b"1")):
        real = _decimal(extended, b"GNU.sparse.size", _decimal(extended, b"GNU.sparse.realsize", -1))
        said = extended.get(b"GNU.sparse.map")
        if said is not None and listed:
            raise ArchiveError("ambiguous archive", why=f"two sparse maps for {_shown(name)}")
        if said:
            numbers = said.split(b",")
            if len(numbers) % 2 or not all(each.isdigit() and len(each) < 20 for each in numbers):
                raise _broken(name, "a damaged sparse map")
            listed = [(int(numbers[at]), int(numbers[at + 1])) for at in range(0, len(numbers), 2)]
        if _decimal(extended, b"GNU.sparse.numblocks", len(listed)) != len(listed):
            raise _broken(name, "a sparse map of another length than it says")
        regions = tuple(listed)
    else:
        raise _broken(name, "a sparse file of an unknown version")
    if real < 0:
        raise _broken(name, "a sparse file without a size")
    return name, real, regions


def _old_sparse(block: bytes, source: _Source, name: bytes) -> tuple[int, Regions]:
    real = _number(block[483:495], name)
    found: list[tuple[int, int]] = []
    table, count, more = block[386:482], 4, block[482]
    while True:
        for at in range(0, count * 24, 24):
            region = table[at : at + 24]
            if not region.strip(b"\0"):
                break
            found.append((_number(region[:12], name), _number(region[12:], name)))
        if not more:
            return real, tuple(found)
        if len(found) > _REGIONS_LIMIT:
            raise _broken(name, f"a sparse map of more than {_REGIONS_LIMIT} regions")
        table, count = source.take(512), 21
        more = table[504]


def _map_in_data(source: _Source, stored: int, name: bytes) -> tuple[Regions, int]:
    """Read the map of format 1.0: decimal numbers, one per line, before the data; first their count; padded to a
    block."""
    text = b""
    wanted: int | None = None
    lines = 0
    pieces: list[bytes] = []
    used = 0
    while wanted is None or lines < wanted:
        if used + 512 > min(stored, _SPECIAL_LIMIT):
            raise _broken(name, "a sparse map that is longer than its file, or than 1 MiB")
        piece = source.take(512)
        used += 512
        pieces.append(piece)
        lines += piece.count(b"\n")
        if wanted is None and lines:
            text = b"".join(pieces).partition(b"\n")[0]
            if not text.isdigit() or len(text) > 7:
                raise _broken(name, "a damaged sparse map")
            wanted = 1 + 2 * int(text)
    numbers = b"".join(pieces).split(b"\n", wanted)[1:wanted]
    if not all(each.isdigit() and len(each) < 20 for each in numbers):
        raise _broken(name, "a damaged sparse map")
    return tuple((int(numbers[at]), int(numbers[at + 1])) for at in range(0, len(numbers), 2)), used


def _check_regions(regions: Regions, real: int, stored: int, name: bytes) -> None:
    at = total = 0
    for offset, length in regions:
        if offset < at or offset + length > real:
            raise _broken(name, "a sparse map whose regions overlap or lie outside of the file")
        at = offset + length
        total += length
    if total != stored:
        raise _broken(name, f"a sparse map of {total} bytes for {stored} bytes of data")


# -- errors ----------------------------------------------------------------------------------------------------------


def _shown(name: bytes) -> str:
    return name[:200].decode(errors="backslashreplace")


def _broken(name: bytes, why: str) -> ArchiveError:
    return ArchiveError(f"archive refused at {_shown(name) or 'its root'}", why=why)
