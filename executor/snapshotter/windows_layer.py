"""Layers of Windows images, in the form in which BuildKit writes them on Linux (util/winlayers).

The file system is below ``Files/``; ``Hives/`` has changes to the registry, of which there are none here. Attributes,
times of creation and security descriptors are records of the extended header, as in the archives of Windows' own
container tools (hcsshim, go-winio/backuptar). What else a base's archive has, its registry and its utility virtual
machine, is not read: the base's blobs are part of the image as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from msgspec.structs import replace

from executor.rootfs import moment, tarwriter
from executor.rootfs.entry import Entry, Kind
from executor.snapshotter.unpack import layer_entry

_FILES: Final = b"Files/"
_ATTRIBUTES: Final = b"MSWINDOWS.fileattr"
_DESCRIPTOR: Final = b"MSWINDOWS.rawsd"
_CREATED: Final = b"LIBARCHIVE.creationtime"

_DIRECTORY: Final = (b"16", 0o040000)
"""FILE_ATTRIBUTE_DIRECTORY, and the type of a directory in st_mode."""
_FILE: Final = (b"32", 0o100000)
"""FILE_ATTRIBUTE_ARCHIVE, and the type of a regular file."""

# Security descriptors (MS-DTYP 2.4.6) in Base64, with the owner BUILTIN\Administrators and the group SYSTEM, who have
# all rights; users may read and execute.
# O:BAG:SYD:(A;OICI;FA;;;BA)(A;OICI;FA;;;SY)(A;;FA;;;BA)(A;OICIIO;GA;;;CO)(A;OICI;0x1200a9;;;BU)(A;CI;LC;;;BU)
#           (A;CI;DC;;;BU)
_OF_DIRECTORIES: Final = (
    b"AQAEgBQAAAAkAAAAAAAAADAAAAABAgAAAAAABSAAAAAgAgAAAQEAAAAAAAUSAAAAAgCoAAcAAAAAAxgA/wEfAAECAAAAAAAFIAAAACACAAAAAxQA"
    b"/wEfAAEBAAAAAAAFEgAAAAAAGAD/AR8AAQIAAAAAAAUgAAAAIAIAAAALFAAAAAAQAQEAAAAAAAMAAAAAAAMYAKkAEgABAgAAAAAABSAAAAAhAgAA"
    b"AAIYAAQAAAABAgAAAAAABSAAAAAhAgAAAAIYAAIAAAABAgAAAAAABSAAAAAhAgAA"
)
# O:BAG:SYD:(A;;FA;;;BA)(A;;FA;;;SY)(A;;0x1200a9;;;BU)
_OF_FILES: Final = (
    b"AQAEgBQAAAAkAAAAAAAAADAAAAABAgAAAAAABSAAAAAgAgAAAQEAAAAAAAUSAAAAAgBMAAMAAAAAABgA/wEfAAECAAAAAAAFIAAAACACAAAAABQA"
    b"/wEfAAEBAAAAAAAFEgAAAAAAGACpABIAAQIAAAAAAAUgAAAAIQIAAA=="
)


def arranged(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield ``Hives``, ``Files``, and ``entries`` below ``Files``."""
    for name in (b"Hives", b"Files"):
        yield Entry(name, Kind.DIRECTORY, mode=0, mtime_ns=moment.NANOSECONDS)
    for entry in entries:
        if entry.path:
            link = _FILES + entry.link if entry.kind is Kind.HARDLINK else entry.link
            yield replace(entry, path=_FILES + entry.path, link=link)


def header(entry: Entry) -> bytes:
    """Return the header of an entry of the archive."""
    records = [(_CREATED, b"%d.0" % (entry.mtime_ns // 1_000_000_000))]
    if entry.kind in (Kind.SYMLINK, Kind.HARDLINK):
        return tarwriter.header(entry, records)
    directory = entry.kind is Kind.DIRECTORY
    attributes, type_ = _DIRECTORY if directory else _FILE
    records.append((_ATTRIBUTES, attributes))
    if entry.path.startswith(_FILES):
        records.append((_DESCRIPTOR, _OF_DIRECTORIES if directory else _OF_FILES))
    return tarwriter.header(entry, records, type_)


def meant(entry: Entry) -> Entry | None:
    """Return the meaning of ``entry``: it is part of the file system only below ``Files``."""
    if not entry.path.startswith(_FILES):
        return None
    link = entry.link.removeprefix(_FILES)
    return layer_entry(replace(entry, path=entry.path.removeprefix(_FILES), link=link))
