"""Entries applied to a directory, for ``unpack`` and ``materialise``.

There are two ways with one interface. ``Lower`` fills a new directory that becomes a lower directory of an overlayfs
mount with ``userxattr``: deletions are character devices 0/0, hidden directories have ``user.overlay.opaque``. Where
the file system takes no such device (an overlay), deletions are empty files with ``user.overlay.whiteout`` (Linux 6.8).
``Merged`` changes an existing tree (an overlay mount of the layers below, or a plain directory): deletions delete.

An entry cannot

- leave the tree (see ``walker``);
- imitate overlayfs's own marks: ``user.overlay.X`` is stored as ``user.overlay.overlay.X``, which overlayfs shows under
  its real name (Linux 6.7) or hides (before); ``trusted.*`` is dropped, as by containerd; a character device 0/0
  becomes a placeholder;
- imitate kanifold's own marks: ``user.kanifold.*`` is dropped.

What the kernel refuses to an unprivileged user namespace is recorded (see ``records``): an owner that is not mapped; a
device, for which there is an empty file; a file capability. For an ordinary user outside of one, whose id stands for
root's, and for root without capabilities, permissions are recorded too that would lock the owner out. The caller writes
these records beside the directory.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, Self, TypedDict, TypeVar

from msgspec.structs import replace

from executor.rootfs import moment
from executor.rootfs.entry import Entry, Kind
from executor.rootfs.walker import DIRECTORY, Walker, remove
from executor.snapshotter.records import CAPABILITY, OVERLAY_XATTR, PRIVATE_XATTR, DeviceNumber, Record
from platforms import syscalls
from platforms.descriptors import change_mode
from platforms.errors import ArchiveError, EnvironmentUnfit

CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags for a new file."""
_OPAQUE: Final = "user.overlay.opaque"
_WHITEOUT: Final = "user.overlay.whiteout"
_ORIGIN: Final = "user.overlay.origin"
_UNSUPPORTED: Final = frozenset({errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.EINVAL})
"""Errors of a file system, or a user namespace, that does not support an extended attribute."""
HARMLESS: Final = frozenset({(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0)})
"""The character devices that every container has: null, zero, full, random, urandom, tty."""
REFUSED: Final = frozenset({errno.EPERM, errno.EINVAL})
"""Errors for an owner that is not mapped into this user namespace."""

Xattrs = tuple[tuple[bytes, bytes], ...]
Fill = Callable[[int], object]
"""Writes the content of a file to a descriptor."""


class _Refused(TypedDict, total=False):
    """What the kernel refused: the owner, a device, a file capability; permissions that are not those of the file."""

    owner: bool
    device: DeviceNumber
    capability: bytes
    mode: int


_T = TypeVar("_T")


class Applier(Protocol):
    """Applies entries to a directory."""

    def apply(self, entry: Entry, fill: Fill) -> None:
        """Create ``entry``, replacing what exists at its path; ``fill`` is called for a FILE."""
        ...

    def finish(self) -> None:
        """Set the metadata of directories, which has to come last."""
        ...


class _Destination:
    """The common part of both ways."""

    _needed_of_directories = stat.S_IRUSR | stat.S_IXUSR
    _needed_of_files = stat.S_IRUSR
    """The permissions that an ordinary user needs to do what root can without them."""

    def __init__(self, directory: str) -> None:
        self._devices = True
        """Whether all devices are made, and not recorded only."""
        self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._parents = Walker(self._root, self)
        self._targets = Walker(self._root, _Existing())
        self._own = self._uid, self._gid = os.geteuid(), os.getegid()
        self._opens_all = syscalls.opens_all()
        """Whether permissions do not matter to this process."""
        self._walks = Walker(self._root, _NoLinks())
        self._stale = False
        self._directories: dict[bytes, Entry] = {}
        self._implicit: set[bytes] = set()
        self.incomplete = False
        """Whether a part of the layer needs the layers below: a hard link to one of their files, which was left out, or
        a root directory that hides their content, for which overlayfs has no mark."""
        self._records: dict[bytes, Record] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors."""
        if self._root >= 0:
            self._forget()
            os.close(self._root)
            self._root = -1

    @property
    def records(self) -> tuple[Record, ...]:
        """What the kernel refused. Complete after ``finish``."""
        return tuple(self._records.values())

    @property
    def implicit(self) -> tuple[bytes, ...]:
        """Directories without an entry (so far), created for what is in them."""
        return tuple(sorted(self._implicit))

    @property
    def given(self) -> frozenset[bytes]:
        """Directories that were made or had an entry (so far): their metadata is what the entries say."""
        return frozenset(self._directories)

    def _forget(self) -> None:
        """Close the walkers' descriptors, because directories may have been replaced."""
        self._stale = False
        for walker in (self._parents, self._targets, self._walks):
            walker.close()

    # -- what the walker asks ----------------------------------------------------------------------------------------

    def missing(self, fd: int, name: bytes, real: bytes) -> int:
        """Create a parent directory without an entry (so far) as Docker and containerd do: root's, mode 0755."""
        os.mkdir(name, 0o700, dir_fd=fd)
        self._directories[real] = Entry(real, Kind.DIRECTORY, 0o755, mtime_ns=moment.NANOSECONDS)
        self._implicit.add(real)
        return os.open(name, DIRECTORY, dir_fd=fd)

    def blocked(self, fd: int, name: bytes, real: bytes) -> bytes | None:
        """Follow links; anything else cannot have content."""
        try:
            return os.readlink(name, dir_fd=fd)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        raise ArchiveError(
            f"archive refused at {os.fsdecode(real)}", why="it is a parent directory, but not a directory"
        )

    def entered(self, fd: int, real: bytes) -> None:
        """Nothing to do."""

    # -- entries -----------------------------------------------------------------------------------------------------

    def apply(self, entry: Entry, fill: Fill) -> None:
        """Create ``entry``, replacing what exists at its path; ``fill`` is called for a FILE."""
        if self._stale:
            self._forget()
        kind = entry.kind
        if kind is Kind.OPAQUE:
            self._hide(self._parents.enter(entry.path), self._parents.real)
            return
        if not entry.path:
            return  # the root's own metadata is the mount's business, as for containerd and Docker
        parent, _, name = entry.path.rpartition(b"/")
        fd = self._parents.enter(parent)
        if kind is Kind.WHITEOUT:
            self._delete(fd, name, self._real(name))
            return
        if kind is Kind.FILE:
            self._file(fd, name, entry, fill)
        elif kind is Kind.DIRECTORY:
            self._directory(fd, name, entry)
        elif kind is Kind.HARDLINK:
            self._hard_link(fd, name, entry)
        elif kind is Kind.SYMLINK:
            self._make(fd, name, lambda: os.symlink(entry.link, name, dir_fd=fd))
            self._note(self._real(name), entry, self._set_metadata_of_name(fd, name, entry))
        elif kind is Kind.FIFO:
            self._make(fd, name, lambda: os.mkfifo(name, 0o600, dir_fd=fd))
            self._note(self._real(name), entry, self._set_metadata_of_name(fd, name, entry))
        else:
            self._device(fd, name, entry)
        self._applied(self._real(name))

    def _real(self, name: bytes) -> bytes:
        return self._parents.real + b"/" + name if self._parents.real else name

    def _applied(self, real: bytes) -> None:
        pass

    def _hide(self, fd: int, real: bytes) -> None:
        raise NotImplementedError

    def _delete(self, parent: int, name: bytes, real: bytes) -> None:
        raise NotImplementedError

    def _make(self, parent: int, name: bytes, make: Callable[[], _T]) -> _T:
        """Create something at ``name``, deleting what is there."""
        try:
            return make()
        except FileExistsError:
            self._clear(parent, name)
            return make()

    def _clear(self, parent: int, name: bytes) -> None:
        """Delete what is at ``name``."""
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        self._stale = self._stale or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)
        remove(parent, name)

    def _file(self, parent: int, name: bytes, entry: Entry, fill: Fill) -> None:
        try:
            fd = os.open(name, CREATE, 0o600, dir_fd=parent)
        except FileExistsError:
            self._clear(parent, name)
            fd = os.open(name, CREATE, 0o600, dir_fd=parent)
        try:
            if entry.size:
                fill(fd)
            self._note(self._real(name), entry, self._set_metadata(fd, entry))
        finally:
            os.close(fd)

    def _directory(self, parent: int, name: bytes, entry: Entry) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            self._make_directory_of(parent, name)
        real = self._real(name)
        self._directories[real] = entry
        self._implicit.discard(real)

    def _make_directory_of(self, parent: int, name: bytes) -> None:
        """Create a directory where something exists; an existing directory keeps its content."""
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            self._clear(parent, name)
            os.mkdir(name, 0o700, dir_fd=parent)

    def _hard_link(self, parent: int, name: bytes, entry: Entry) -> None:
        above, _, target = entry.link.rpartition(b"/")
        try:
            if self._stale:
                self._targets.close()
            source = self._targets.enter(above)
            status = os.stat(target, dir_fd=source, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            status = None
        real = self._targets.real + b"/" + target if self._targets.real else target
        if status is None or self._is_deletion(real, status):
            self._lacks(parent, name, entry)
            return
        if stat.S_ISDIR(status.st_mode):
            raise ArchiveError(f"archive refused at {os.fsdecode(entry.path)}", why="it is a hard link to a directory")
        if entry.link == entry.path:
            return
        try:
            os.link(target, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            here = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if (here.st_dev, here.st_ino) == (status.st_dev, status.st_ino):
                return
            self._clear(parent, name)
            try:
                os.link(target, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:  # the target went with what stood in the link's place
                self._lacks(parent, name, entry)
                return
        self._share(self._real(name), real)

    def _is_deletion(self, real: bytes, status: os.stat_result) -> bool:
        return False

    def _lacks(self, parent: int, name: bytes, entry: Entry) -> None:
        raise ArchiveError(
            f"archive refused at {os.fsdecode(entry.path)}",
            why=f"it is a hard link to {os.fsdecode(entry.link)}, which does not exist",
        )

    def _makes(self, entry: Entry) -> bool:
        """Whether the device ``entry`` is to be made, and not recorded only."""
        return self._devices or (entry.kind is Kind.CHARACTER and entry.device in HARMLESS)

    def _device(self, parent: int, name: bytes, entry: Entry) -> None:
        letter, kind = ("c", stat.S_IFCHR) if entry.kind is Kind.CHARACTER else ("b", stat.S_IFBLK)
        if (entry.kind is not Kind.CHARACTER or entry.device != (0, 0)) and self._makes(entry):
            device = os.makedev(*entry.device)
            try:
                self._make(parent, name, lambda: os.mknod(name, kind | 0o600, device, dir_fd=parent))
            except PermissionError:
                pass
            else:
                self._note(self._real(name), entry, self._set_metadata_of_name(parent, name, entry))
                return
        fd = self._make(parent, name, lambda: os.open(name, CREATE, 0o600, dir_fd=parent))
        try:
            refused = self._set_metadata(fd, entry)
        finally:
            os.close(fd)
        self._note(self._real(name), entry, refused | {"device": DeviceNumber(letter, *entry.device)})

    # -- metadata ----------------------------------------------------------------------------------------------------

    def _note(self, real: bytes, entry: Entry, refused: _Refused) -> None:
        """Record what the kernel ``refused`` of ``entry``, which is at ``real``, if anything."""
        self._records.pop(real, None)
        if refused:
            device, capability, mode = refused.get("device"), refused.get("capability", b""), refused.get("mode")
            self._records[real] = Record(real, entry.uid, entry.gid, device, capability, mode)

    def _share(self, real: bytes, other: bytes) -> None:
        """Copy the record of the file ``other`` for ``real``, its new name."""
        self._records.pop(real, None)
        if other in self._records:
            self._records[real] = replace(self._records[other], path=real)

    def _set_owner(self, entry: Entry, chown: Callable[[int, int], None]) -> _Refused:
        """Set the owner by ``chown``; return whether that was refused."""
        refused: _Refused = {}
        uid, gid = entry.uid, entry.gid
        if self._own[0]:  # not root: its own ids stand for root's
            if uid or gid:
                refused["owner"] = True
            uid, gid = self._own
        if uid != self._uid or gid != self._gid:
            try:
                chown(uid, gid)
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
                refused["owner"] = True
        return refused

    def _set_metadata(self, fd: int, entry: Entry) -> _Refused:
        """Set owner, extended attributes, mode and time, in this order: chown clears set-user-id bits and capabilities.

        Returns what the kernel refused.
        """
        refused = self._set_owner(entry, partial(os.chown, fd))
        if entry.xattrs and (capability := self._set_xattrs(fd, entry.xattrs)):
            refused["capability"] = capability
        mode = entry.mode
        if not self._opens_all:
            needed = self._needed_of_directories if entry.kind is Kind.DIRECTORY else self._needed_of_files
            if mode & needed != needed:
                refused["mode"], mode = mode, mode | needed
        os.fchmod(fd, mode)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        return refused

    def _set_metadata_of_name(self, parent: int, name: bytes, entry: Entry) -> _Refused:
        """As ``_set_metadata``, for links, fifos and devices, which are not opened."""
        refused = self._set_owner(entry, partial(os.chown, name, dir_fd=parent, follow_symlinks=False))
        for key, value in entry.xattrs:
            if not key.startswith((b"user.", b"trusted.")):
                try:
                    os.setxattr(b"/proc/self/fd/%d/%b" % (parent, name), key, value, follow_symlinks=False)
                except OSError as error:
                    if error.errno not in _UNSUPPORTED:
                        raise
        if entry.kind is not Kind.SYMLINK:
            change_mode(name, entry.mode, parent)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)
        return refused

    def _set_xattrs(self, fd: int, xattrs: Xattrs) -> bytes:
        """Set ``xattrs``; return the file capability if the kernel refused it."""
        refused = b""
        for key, value in xattrs:
            if key.startswith((b"trusted.", PRIVATE_XATTR)):
                continue
            try:
                os.setxattr(fd, self._stored_name(key), value)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                if key == CAPABILITY:
                    refused = value
        return refused

    def _stored_name(self, key: bytes) -> bytes:
        return key

    def finish(self) -> None:
        """Set the metadata of directories, which creating their content would have changed."""
        self._forget()
        for real in sorted(self._directories):
            try:
                fd = self._walks.enter(real)
            except (FileNotFoundError, NotADirectoryError):
                continue  # replaced by a later entry
            entry = self._directories[real]
            self._note(real, entry, self._set_metadata(fd, entry))


class Lower(_Destination):
    """A new, empty directory that becomes a lower directory of overlayfs."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self._deleted_in: set[bytes] = set()
        self._marks: dict[bytes, set[bytes]] = {}
        """Names of files that mark deletions, by the directory that they are in."""
        # What overlayfs shows of the topmost layer's root. Also takes off a set-group-id bit, which would be inherited.
        os.fchmod(self._root, 0o755)

    def blocked(self, fd: int, name: bytes, real: bytes) -> bytes | None:
        """As the base class, but a deletion is replaced: what is created below it replaces what it deletes."""
        if not self._is_deletion(real, os.stat(name, dir_fd=fd, follow_symlinks=False)):
            return super().blocked(fd, name, real)
        os.unlink(name, dir_fd=fd)
        self._applied(real)
        new = self.missing(fd, name, real)
        try:
            os.setxattr(new, _OPAQUE, b"y")
        finally:
            os.close(new)
        return None

    def _is_deletion(self, real: bytes, status: os.stat_result) -> bool:
        if stat.S_ISCHR(status.st_mode):
            return status.st_rdev == 0
        directory, _, name = real.rpartition(b"/")
        return name in self._marks.get(directory, ())

    def _applied(self, real: bytes) -> None:
        if self._marks:
            directory, _, name = real.rpartition(b"/")
            self._marks.get(directory, set()).discard(name)

    def _hide(self, fd: int, real: bytes) -> None:
        if real:
            self._make_opaque(fd, real)
        else:
            self.incomplete = True

    def _delete(self, parent: int, name: bytes, real: bytes) -> None:
        """Mark ``name`` as deleted from the lower layers. What this layer itself has there stays (image-spec layer.md,
        Whiteouts).

        In a directory that no lower layer has, overlayfs would show the mark itself, unless the directory counts as
        copied up (fs/overlayfs/inode.c, OVL_WHITEOUTS).
        """
        if self._parents.real not in self._deleted_in:
            os.setxattr(parent, _ORIGIN, b"")
            self._deleted_in.add(self._parents.real)
        try:
            try:
                os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent)
            except PermissionError:
                self._delete_by_attribute(parent, name, real)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                self._mark_opaque(parent, name)

    def _delete_by_attribute(self, parent: int, name: bytes, real: bytes) -> None:
        """``_delete`` by an empty file, in directories that are marked to have such (overlayfs.rst, Whiteouts)."""
        if self._is_opaque(parent):
            return  # nothing of the lower layers is left in it
        fd = os.open(name, CREATE, 0o600, dir_fd=parent)
        try:
            os.setxattr(fd, _WHITEOUT, b"")
        finally:
            os.close(fd)
        for directory in (parent, self._root):
            os.setxattr(directory, _OPAQUE, b"x")
        self._marks.setdefault(real.rpartition(b"/")[0], set()).add(name)

    def _is_opaque(self, directory: int) -> bool:
        try:
            return os.getxattr(directory, _OPAQUE) == b"y"
        except OSError:
            return False

    def _make_directory_of(self, parent: int, name: bytes) -> None:
        deleted = self._is_deletion(self._real(name), os.stat(name, dir_fd=parent, follow_symlinks=False))
        super()._make_directory_of(parent, name)
        if deleted:
            self._mark_opaque(parent, name)

    def _mark_opaque(self, parent: int, name: bytes) -> None:
        fd = os.open(name, DIRECTORY, dir_fd=parent)
        try:
            self._make_opaque(fd, self._real(name))
        finally:
            os.close(fd)

    def _make_opaque(self, fd: int, real: bytes) -> None:
        """Hide what the lower layers have in a directory. Files in it that mark deletions would be shown now."""
        os.setxattr(fd, _OPAQUE, b"y")
        for name in self._marks.pop(real, ()):
            os.unlink(name, dir_fd=fd)

    def _lacks(self, parent: int, name: bytes, entry: Entry) -> None:
        self.incomplete = True

    def _stored_name(self, key: bytes) -> bytes:
        return OVERLAY_XATTR + b"overlay." + key[len(OVERLAY_XATTR) :] if key.startswith(OVERLAY_XATTR) else key


class Merged(_Destination):
    """An existing tree to which a layer is applied: deletions delete what is not of this layer."""

    _needed_of_directories = stat.S_IRWXU

    def __init__(self, directory: str, *, devices: bool = True) -> None:
        """``devices``: False where devices can be opened: then only HARMLESS ones are made, and others recorded."""
        super().__init__(directory)
        self._devices = devices
        self._uid = self._gid = -1  # a set-group-id directory passes its group on, so owners are always set
        self._of_layer: set[bytes] = set()
        self._hidden: set[bytes] = set()
        self._times: dict[bytes, int] = {}
        self.links: dict[bytes, bytes] = {}
        """Hard links to what is not of this layer, each with the path of the file: it has the metadata of that."""
        self.entered(self._root, b"")

    def entered(self, fd: int, real: bytes) -> None:
        """Store the time of a directory that only gets new content: in a union of layers it would not change."""
        self._of_layer.add(real)
        if real not in self._times:
            self._times[real] = os.fstat(fd).st_mtime_ns

    def blocked(self, fd: int, name: bytes, real: bytes) -> bytes | None:
        """Follow links of this layer. Anything of lower layers is replaced by a directory, as in a union."""
        if real in self._of_layer:
            return super().blocked(fd, name, real)
        self._clear(fd, name)
        os.close(self.missing(fd, name, real))
        return None

    def _note(self, real: bytes, entry: Entry, refused: _Refused) -> None:
        self.links.pop(real, None)
        super()._note(real, entry, refused)

    def _share(self, real: bytes, other: bytes) -> None:
        super()._share(real, other)
        self.links.pop(real, None)
        if other in self.links:
            self.links[real] = self.links[other]
        elif other not in self._of_layer:
            self.links[real] = other

    def _applied(self, real: bytes) -> None:
        self._of_layer.add(real)

    def _hide(self, fd: int, real: bytes) -> None:
        if self._hidden_above(real):
            return
        waiting = [real]
        while waiting:
            here = waiting.pop()
            self._hidden.add(here)
            at = self._walks.enter(here)
            for each in os.listdir(at):
                name = os.fsencode(each)
                path = here + b"/" + name if here else name
                if path not in self._of_layer:
                    self._clear(at, name)
                elif path not in self._hidden and stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                    waiting.append(path)

    def _hidden_above(self, real: bytes) -> bool:
        """Whether ``real`` has nothing of the layers below, because it or a parent was hidden before."""
        if real in self._hidden or b"" in self._hidden:
            return True
        at = real.find(b"/")
        while at >= 0:
            if real[:at] in self._hidden:
                return True
            at = real.find(b"/", at + 1)
        return False

    def _delete(self, parent: int, name: bytes, real: bytes) -> None:
        try:
            mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if real not in self._of_layer:
            self._clear(parent, name)
        elif stat.S_ISDIR(mode):
            self._hide(parent, real)

    def finish(self) -> None:
        """Set the metadata of the layer's directories, and restore the times of others."""
        super().finish()
        for real in sorted(self._times.keys() - self._directories.keys()):
            try:
                fd = self._walks.enter(real)
            except (FileNotFoundError, NotADirectoryError):
                continue
            os.utime(fd, ns=(self._times[real], self._times[real]))


class HandedOver(Merged):
    """A directory of the user. Nothing is recorded of its files, so they have the permissions that entries say."""

    _needed_of_directories = _needed_of_files = 0


class _Existing:
    """Walks through what exists, links included, and creates nothing."""

    def missing(self, fd: int, name: bytes, real: bytes) -> int:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(real))

    def blocked(self, fd: int, name: bytes, real: bytes) -> bytes | None:
        try:
            return os.readlink(name, dir_fd=fd)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fsdecode(real)) from error
            raise

    def entered(self, fd: int, real: bytes) -> None:
        pass


class _NoLinks(_Existing):
    """Walks through directories only, not through links."""

    def blocked(self, fd: int, name: bytes, real: bytes) -> bytes | None:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fsdecode(real))


def without_attributes(what: str) -> EnvironmentUnfit:
    """Return the error of a store that cannot keep the records of layers."""
    return EnvironmentUnfit(
        what,
        why="the file system takes no extended attributes of users",
        remedy="put the store on another one (on tmpfs they need Linux 6.6)",
    )
