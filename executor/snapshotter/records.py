"""Records of metadata that the kernel refused to set on the files of a directory.

The processes of an ordinary user cannot give files an owner that is not mapped into their user namespace, create
devices, or, on some hosts, set file capabilities. Outside of a user namespace they cannot use files without permissions
for their owner either. Such metadata is stored in the file ``records`` beside the directory:
a line of JSON for each path (``Record``; paths and attributes in base64). It is beside the files and not on them, so
that nothing in an image, and nothing that a step does to its files, can be taken for a record.

The records of a directory are complete: a path without one is as the kernel reports it. In a stack of layers the
topmost directory that has a path decides, as in overlayfs.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from executor.rootfs.entry import Entry, Kind
from platforms import syscalls

PRIVATE_XATTR: Final = b"user.kanifold."
"""The prefix of marks of kanifold, of earlier versions too. They are not part of layers."""
OVERLAY_XATTR: Final = b"user.overlay."
"""The prefix of overlayfs's records under the mount option ``userxattr``."""

RECORDS: Final = "records"
"""The name of the file."""
_ESCAPED: Final = OVERLAY_XATTR + b"overlay."
_TRUSTED: Final = b"trusted."
_ORIGIN: Final = "user.overlay.origin"
"""Set by overlayfs on copied-up files. It cannot be set through an overlay mount."""
_SEVERAL_NAMES: Final = os.fsdecode(PRIVATE_XATTR) + "several-names"
"""Set on files with a record and several names: when overlayfs copies such a file up, it breaks the link and sets no
origin, and its only trace is in the attributes, which it copies."""
_KINDS: Final = {"c": Kind.CHARACTER, "b": Kind.BLOCK}
CAPABILITY: Final = b"security.capability"


class DeviceNumber(msgspec.Struct, frozen=True, array_like=True):
    """A device in whose place there is an empty file: ``c`` or ``b``, major and minor number."""

    letter: str
    major: int
    minor: int


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """The metadata of a path, relative to the directory."""

    path: bytes
    uid: int = 0
    gid: int = 0
    device: DeviceNumber | None = None
    capability: bytes = b""
    """The value of ``security.capability``; b"" if the kernel has it, or there is none."""
    mode: int | None = None
    """The permissions, if the file has more for its owner: those that kanifold needs where it is not root."""


Records = dict[bytes, Record]
Read = Callable[[str], Records]
"""Returns the records of a directory: ``read``, or a cache of it."""

_DECODER: Final[msgspec.json.Decoder[Record]] = msgspec.json.Decoder(Record)
_ENCODER: Final = msgspec.json.Encoder()


def read(directory: str) -> Records:
    """Return the records of ``directory`` by path; empty without a file."""
    try:
        with open(_beside(directory), "rb") as file:
            return {record.path: record for record in map(_DECODER.decode, file)}
    except FileNotFoundError:
        return {}


def write(directory: str, records: Collection[Record]) -> None:
    """Write the records of ``directory``, which has none yet and is complete."""
    if records:
        with open(_beside(directory), "xb") as file:
            file.writelines(_ENCODER.encode(record) + b"\n" for record in records)
        for record in records if sys.platform == "linux" else ():  # elsewhere no step changes the files
            _mark_several_names(directory, record.path)


def rewrite(directory: str, records: Collection[Record]) -> None:
    """Replace the records of ``directory``, a step's own root, by ``records``."""
    beside = _beside(directory)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(beside)
    if records:
        with open(beside, "xb") as file:
            file.writelines(_ENCODER.encode(record) + b"\n" for record in records)


def applied(entry: Entry, record: Record | None) -> Entry:
    """Return ``entry`` with its record applied, without the marks of overlayfs and kanifold."""
    return _with(_without_private(entry) if entry.xattrs else entry, record)


def applied_as_seen(entry: Entry, record: Record | None) -> Entry:
    """As ``applied``, for what a step sees (an overlay mount or plain directory): attributes have their names."""
    kept = tuple(each for each in entry.xattrs if not each[0].startswith((PRIVATE_XATTR, _TRUSTED)))
    return _with(entry if kept == entry.xattrs else replace(entry, xattrs=kept), record)


def _with(entry: Entry, record: Record | None) -> Entry:
    if record is None:
        return entry
    xattrs = entry.xattrs
    if record.capability:
        xattrs = tuple(sorted((dict(xattrs) | {CAPABILITY: record.capability}).items()))
    mode = entry.mode
    if record.mode is not None and mode & ~stat.S_IRWXU == record.mode & ~stat.S_IRWXU:  # else a step has changed it
        mode = record.mode
    entry = replace(entry, mode=mode, uid=record.uid, gid=record.gid, xattrs=xattrs)
    device = record.device
    if device is None or entry.kind is not Kind.FILE or entry.size:
        return entry
    return replace(entry, kind=_KINDS[device.letter], device=(device.major, device.minor), source=b"", stamp=b"")


class Applied(msgspec.Struct, frozen=True):
    """Applies the records of their paths to entries (``rootfs.tree.Meaning``)."""

    of: Callable[[bytes], Record | None]
    how: Callable[[Entry, Record | None], Entry] = applied

    def __call__(self, entry: Entry) -> Entry:
        return self.how(entry, self.of(entry.path))


def _without_private(entry: Entry) -> Entry:
    if not any(key.startswith((PRIVATE_XATTR, OVERLAY_XATTR, _TRUSTED)) for key, _ in entry.xattrs):
        return entry
    kept: dict[bytes, bytes] = {}
    for key, value in entry.xattrs:
        if key.startswith(_ESCAPED):
            kept[OVERLAY_XATTR + key[len(_ESCAPED) :]] = value
        elif not key.startswith((PRIVATE_XATTR, OVERLAY_XATTR, _TRUSTED)):
            kept[key] = value
    return replace(entry, xattrs=tuple(sorted(kept.items())))


class Stack:
    """The records of a stack of directories, top first, each of which is complete."""

    def __init__(self, directories: Sequence[str], recorded: Read = read) -> None:
        layers = [(directory, recorded(directory)) for directory in directories]
        while layers and not layers[-1][1]:  # nobody asks below the last that has any
            layers.pop()
        self._layers = layers
        self._records = {os.fsencode(directory): records for directory, records in layers}
        self._paths = {path for _, records in layers for path in records}

    def __bool__(self) -> bool:
        return bool(self._paths)

    def may_have(self, path: bytes) -> bool:
        """Whether any of the directories has a record of ``path``."""
        return path in self._paths

    def of(self, path: bytes) -> Record | None:
        """Return the record of ``path``, which exists in the union of the directories; no parent of it is a link."""
        if path not in self._paths:
            return None
        return next((each.get(path) for directory, each in self._layers if _status(directory, path) is not None), None)

    def status(self, path: bytes) -> os.stat_result | None:
        """Return the status of ``path`` in the topmost directory with records that has it."""
        return next((found for directory, _ in self._layers if (found := _status(directory, path)) is not None), None)

    def in_layer(self, directory: bytes, path: bytes) -> Record | None:
        """Return the record of ``path`` in ``directory``."""
        return self._records.get(directory, {}).get(path)


def carried(upper: str, below: Stack) -> Iterator[Record]:
    """Yield the records of files that overlayfs copied up from ``below`` into ``upper`` and that kept their paths.

    For an upper directory without records of its changes. A step that changed a file's owner has set one that the
    kernel keeps.
    """
    if not below:
        return
    for path, here, name in walked(upper):
        if (record := below.of(path)) is not None and (copied_up(here, name) or had_several_names(here, name)):
            was = below.status(path)
            status = os.stat(name, dir_fd=here, follow_symlinks=False)
            if was is not None and (status.st_uid, status.st_gid) != (was.st_uid, was.st_gid):
                record = replace(record, uid=status.st_uid, gid=status.st_gid, capability=b"")
            yield record


def walked(directory: str) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield everything below ``directory``, parents before their content, however deep it is.

    Each with its path, a descriptor of its directory, which is valid until the next item, and its name. No other
    process may change the directory.
    """
    top = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    waiting = [b""]
    try:
        while waiting:
            above = waiting.pop()
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            here = syscalls.openat2(top, os.fsdecode(above) or ".", flags, resolve=syscalls.CONFINED)
            try:
                with os.scandir(here) as entries:
                    found = [(os.fsencode(each.name), each.is_dir(follow_symlinks=False)) for each in entries]
                for name, is_directory in found:
                    path = above + b"/" + name if above else name
                    yield path, here, name
                    if is_directory:
                        waiting.append(path)
            finally:
                os.close(here)
    finally:
        os.close(top)


def copied_up(directory: int, name: bytes) -> bool:
    """Whether overlayfs copied up ``name``, in a directory of the upper directory. False for links and pipes."""
    return _has(directory, name, _ORIGIN)


def had_several_names(directory: int, name: bytes) -> bool:
    """Whether overlayfs copied up ``name``, a file with a record and several names in the layers below.

    A step can forge that; so it is used only where a step may give files any owner, or can give none.
    """
    return _has(directory, name, _SEVERAL_NAMES)


def _has(directory: int, name: bytes, attribute: str) -> bool:
    file = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.getxattr(f"/proc/self/fd/{file}", attribute)
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def _mark_several_names(directory: str, path: bytes) -> None:
    status = _status(directory, path)
    if status is None or not stat.S_ISREG(status.st_mode) or status.st_nlink < 2:
        return
    top = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        file = syscalls.openat2(top, os.fsdecode(path), os.O_PATH | os.O_CLOEXEC, resolve=syscalls.CONFINED)
    finally:
        os.close(top)
    try:
        os.setxattr(f"/proc/self/fd/{file}", _SEVERAL_NAMES, b"")
    except PermissionError:  # not root, and the owner may not write
        mode = stat.S_IMODE(status.st_mode)
        os.chmod(f"/proc/self/fd/{file}", mode | stat.S_IWUSR)
        os.setxattr(f"/proc/self/fd/{file}", _SEVERAL_NAMES, b"")
        os.chmod(f"/proc/self/fd/{file}", mode)
    finally:
        os.close(file)


def _status(directory: str, path: bytes) -> os.stat_result | None:
    """Return the status of ``path`` below ``directory``; None if it does not exist, or a parent is a link."""
    parent, _, name = path.rpartition(b"/")
    try:
        top = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            here = syscalls.openat2(
                top, os.fsdecode(parent) or ".", os.O_PATH | os.O_CLOEXEC, resolve=syscalls.CONFINED
            )
        finally:
            os.close(top)
        try:
            return os.stat(name, dir_fd=here, follow_symlinks=False)
        finally:
            os.close(here)
    except OSError:
        return None


def _beside(directory: str) -> str:
    return os.path.join(os.path.dirname(os.path.abspath(directory)), RECORDS)
