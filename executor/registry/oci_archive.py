"""Image layouts as tar files: OCI archives, and archives for ``docker load``. The same image gives the same bytes.

Headers have no times and owners; the order depends on the content only. Blobs are verified as they are written.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final

from executor.image.manifest import Descriptor, Manifest
from executor.registry.layout import (
    MARKER,
    BlobSource,
    Layout,
    blob_path,
    disk_errors,
    index_json,
    open_layout,
    verified,
)
from platforms import regular
from platforms.errors import ArchiveError
from platforms.replacing import replacing

_BLOCK: Final = 512
_RECORD: Final = 20 * _BLOCK
_MEMBERS: Final = 100_000
"""Maximum number of members: an image has a few dozen."""
_HEADER_DATA: Final = 64 << 10
"""Maximum size in bytes of a member that describes the next one (pax, GNU long names)."""


def write_archive(out: BinaryIO, roots: Iterable[Descriptor], blobs: Iterable[BlobSource]) -> None:
    """Write an OCI layout with ``roots`` and ``blobs`` as a tar file to ``out``, which need not be seekable."""
    _write(out, {"oci-layout": MARKER, "index.json": index_json(roots)}, blobs)


def write_docker_archive(
    out: BinaryIO, names: Iterable[str], manifest: Manifest, roots: Iterable[Descriptor], blobs: Iterable[BlobSource]
) -> None:
    """Write an archive for ``docker load`` that is an OCI archive as well, as docker has written it since version 25.

    ``names``: the image's (``app:1``); ``manifest``: that of its single platform; ``roots`` and ``blobs`` as for
    ``write_archive``.
    """
    entry = {
        "Config": blob_path(manifest.config.digest),
        "RepoTags": list(names) or None,
        "Layers": [blob_path(layer.digest) for layer in manifest.layers],
    }
    listing = json.dumps([entry], separators=(",", ":")).encode()
    _write(out, {"oci-layout": MARKER, "index.json": index_json(roots), "manifest.json": listing}, blobs)


@contextmanager
def archive_file(path: str) -> Iterator[BinaryIO]:
    """Open a file for an archive, which is renamed to ``path`` on success and removed on failure.

    A pipe or device at ``path`` is written to directly; a link is replaced. Raises ``StoreError`` if the disk fails.
    """
    with disk_errors(path), replacing(path) as file:
        yield file


def read_archive(path: str) -> Layout:
    """Open the OCI layout in the uncompressed tar file ``path``. Blobs are read from the file in place.

    Raises ``ArchiveError`` for a file that is no layout or is damaged.
    """
    try:
        with regular.open_file(path) as file:  # which does not wait for whoever would write to a FIFO
            places = dict(_members(file, path))
    except OSError as error:
        raise ArchiveError(f"cannot read the image archive {path}", why=error.strerror or str(error)) from error

    def open_file(name: str) -> tuple[BinaryIO, int]:
        if name not in places:
            raise FileNotFoundError(f"{name} is not in the archive")
        offset, size = places[name]
        return _FileRange(path, offset, size), size

    return open_layout(path, open_file)


class _FileRange(io.BufferedReader):
    """Reads a part of a file, from ``offset`` on."""

    def __init__(self, path: str, offset: int, size: int) -> None:
        super().__init__(io.FileIO(path))
        self._offset = offset
        self._size = size
        self._left = size
        super().seek(offset)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to ``offset``, counted from the part's beginning; no other way of counting is known."""
        if whence != os.SEEK_SET or offset < 0:
            raise io.UnsupportedOperation("a part of an archive is sought from its beginning")
        at = min(offset, self._size)
        super().seek(self._offset + at)
        self._left = self._size - at
        return at

    def fileno(self) -> int:
        """No descriptor is that of the part alone."""
        raise io.UnsupportedOperation("fileno")

    def read(self, size: int | None = -1, /) -> bytes:
        """Return at most ``size`` bytes, b"" at the end of the part."""
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        data = super().read(wanted)
        self._left -= len(data)
        return data


def _write(out: BinaryIO, files: dict[str, bytes], blobs: Iterable[BlobSource]) -> None:
    written = 0
    for name, data in files.items():
        written += _put(out, _header(name, len(data)), [data])
    by_path = {blob_path(blob.digest): blob for blob in blobs}
    for directory in ("blobs", *sorted({os.path.dirname(path) for path in by_path})):
        written += _put(out, _header(directory, 0, directory=True), [])
    for path, blob in sorted(by_path.items()):
        written += _put(out, _header(path, blob.size), verified(blob))
    # Two empty blocks end the archive, and it fills whole records (POSIX pax, "ustar Interchange Format").
    out.write(bytes(2 * _BLOCK + -(written + 2 * _BLOCK) % _RECORD))


def _put(out: BinaryIO, header: bytes, content: Iterable[bytes]) -> int:
    out.write(header)
    size = 0
    for data in content:
        out.write(data)
        size += len(data)
    padding = -size % _BLOCK
    out.write(bytes(padding))
    return len(header) + size + padding


def _header(name: str, size: int, *, directory: bool = False) -> bytes:
    import tarfile

    info = tarfile.TarInfo(name + "/" if directory else name)
    info.size = size
    info.type = tarfile.DIRTYPE if directory else tarfile.REGTYPE
    info.mode = 0o755 if directory else 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def _members(file: BinaryIO, path: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the regular files of a tar file: name, and offset and size of the content.

    Only names and sizes are evaluated, not links, owners and times.
    """
    end = os.fstat(file.fileno()).st_size
    offset = 0
    long_name = ""
    long_size = -1
    for _ in range(_MEMBERS):
        header = file.read(_BLOCK)
        if len(header) < _BLOCK or not any(header):
            return
        if _checksum(header) != _number(header[148:156]):
            raise ArchiveError(f"cannot read the image archive {path}", why="it is not an uncompressed tar file")
        size = long_size if long_size >= 0 else _number(header[124:136])
        content, kind = offset + _BLOCK, header[156:157]
        if size < 0 or content + size > end:
            raise ArchiveError(f"the image archive {path} is broken", why="a member reaches beyond its end")
        if kind in b"xL":
            if size > _HEADER_DATA:
                raise ArchiveError(f"the image archive {path} is broken", why="a name is absurdly long")
            data = file.read(size)
            if kind == b"L":
                long_name = data.rstrip(b"\0").decode(errors="replace")
            else:
                long_name, long_size = _pax(data)
        else:
            if kind in b"0\0":
                yield (long_name or _name(header)).removeprefix("./"), (content, size)
            long_name, long_size = "", -1
        offset = content + size + -size % _BLOCK
        file.seek(offset)
    raise ArchiveError(f"the image archive {path} is broken", why=f"it has more than {_MEMBERS} members")


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode(errors="replace")


def _number(field: bytes) -> int:
    """Return the value of an octal field, or of GNU's base 256; -1 if it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.replace(b"\0", b" ").strip()
    try:
        return int(text, 8) if text else 0
    except ValueError:
        return -1


def _checksum(header: bytes) -> int:
    return sum(header) - sum(header[148:156]) + 8 * ord(" ")


def _pax(data: bytes) -> tuple[str, int]:
    """Return ``path`` and ``size`` of a pax record ("" and -1 if it has none)."""
    name, size = "", -1
    while data:
        digits = data.partition(b" ")[0]
        length = int(digits) if digits.isdigit() and len(digits) < 10 else 0
        if not len(digits) + 1 < length <= len(data):
            break
        record, data = data[len(digits) + 1 : length], data[length:]
        key, _, value = record.rstrip(b"\n").partition(b"=")
        if key == b"path":
            name = value.decode(errors="replace")
        elif key == b"size" and value.isdigit():
            size = int(value[:19])
    return name, size
