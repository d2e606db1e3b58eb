"""File systems that are read below one directory descriptor: a stage's layers, an image, or a build context.

Paths are ``bytes`` relative to the root. ``resolve`` follows symbolic links as if the tree were the root directory, so
a link cannot lead out. Afterwards the kernel is told to follow none (``RESOLVE_NO_SYMLINKS``), so a path that changes
in between cannot either.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from executor.rootfs.entry import KIND_OF_MODE, Entry, Kind
from platforms import syscalls
from platforms.errors import BuildError, EnvironmentUnfit
from platforms.pathwalk import TooManyLinks, resolve

if TYPE_CHECKING:
    from executor.protocol import ContextPattern

_SOME: Final = 512
"""Number of entries of a directory that are read together."""

_NO_CONTENT: Final = b"/dev/null"
"""The source of the empty file in place of a socket."""

Hides = Callable[[bytes, bool], bool]
"""Whether a path (and whether it is a directory) is hidden."""
Meaning = Callable[[Entry], Entry]
"""Returns what an entry that was read from the disk stands for."""
Stamp = Callable[[os.stat_result], bytes]
"""Returns the stat signature of a file, which changes whenever its content does."""


class TreeOptions(msgspec.Struct, frozen=True):
    """How a tree shows its files."""

    hides: Hides | None = None
    owner: tuple[int, int] | None = None
    """The (uid, gid) of all files; None: those on disk."""
    stamp: Stamp | None = None
    """Called for files that may change (``Entry.stamp``)."""
    meaning: Meaning | None = None
    """Translates entries if the kernel refused to set their metadata, or they have marks that are not part of them."""


class Tree:
    """A file system. Owns ``fd``, an open directory, whose host path is ``prefix``."""

    def __init__(self, fd: int, prefix: bytes, options: TreeOptions) -> None:
        self._fd = fd
        self._prefix = prefix
        self._hides = options.hides
        self._owner = options.owner
        self._stamp = options.stamp
        self._meaning = options.meaning

    def close(self) -> None:
        """Close the descriptor, and with it a detached mount."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def expect(self, pattern: ContextPattern) -> None:
        """Called before paths that match ``pattern`` are looked up. Nothing is to be done for files of this machine."""

    def version(self, pattern: ContextPattern) -> str:
        """Return a name for all that a look-up of ``pattern`` finds; "" if there is none, as for files of this
        machine."""
        return ""

    def fetch(self, entries: Iterable[Entry]) -> None:
        """Called before the content of ``entries`` is read, which are of this tree and have digests."""

    def host_path(self, path: bytes) -> bytes:
        """Return the host path of ``path``, valid as long as the tree is open."""
        return self._prefix + b"/" + path if path else self._prefix

    def lstat(self, path: bytes) -> os.stat_result | None:
        """Return the status of ``path`` itself, whose parents must not be links; None if it does not exist."""
        found = self._lstat(path)
        if found is None or (self._hides is not None and path and self._hides(path, stat.S_ISDIR(found.st_mode))):
            return None
        return found

    def _lstat(self, path: bytes) -> os.stat_result | None:
        if not path:
            return os.fstat(self._fd)
        try:
            if b"/" not in path:
                return os.stat(path, dir_fd=self._fd, follow_symlinks=False)
            if sys.platform != "linux":
                return self._lstat_below(path)
            fd = syscalls.openat2(
                self._fd,
                os.fsdecode(path),
                os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC,
                resolve=syscalls.BENEATH,
            )
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def _lstat_below(self, path: bytes) -> os.stat_result:
        parent, _, name = path.rpartition(b"/")
        fd = self.open(parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return os.stat(name, dir_fd=fd, follow_symlinks=False)
        finally:
            os.close(fd)

    def resolve(self, path: bytes, *, follow_last: bool = True) -> bytes:
        """Return ``path`` without links, dots and doubled slashes; components that do not exist are kept."""
        try:
            return resolve(path, self._link_at, follow_last=follow_last)
        except TooManyLinks as error:
            raise BuildError(f"too many symbolic links in /{os.fsdecode(path)}") from error

    def _link_at(self, path: bytes) -> bytes | None:
        found = self.lstat(path)
        return self.readlink(path) if found is not None and stat.S_ISLNK(found.st_mode) else None

    def readlink(self, path: bytes) -> bytes:
        """Return the text of the symbolic link ``path``."""
        return os.readlink(path, dir_fd=self._fd)

    def names(self, path: bytes) -> list[bytes]:
        """Return the names in the directory ``path``, sorted bytewise."""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = sorted(os.fsencode(name) for name in os.listdir(fd))
        finally:
            os.close(fd)
        if self._hides is None:
            return names
        prefix = path + b"/" if path else b""
        return [name for name in names if self.lstat(prefix + name) is not None]

    def open(self, path: bytes, flags: int = os.O_RDONLY) -> int:
        """Return a descriptor of ``path``, which must not be a link."""
        return syscalls.openat2(
            self._fd,
            os.fsdecode(path) or ".",
            flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK,
            resolve=syscalls.CONFINED,
        )

    def read(self, path: bytes, limit: int) -> bytes | None:
        """Return the content of the regular file at ``path`` (links are followed within the tree); None if there is
        none.

        Raises ``BuildError`` if it is larger than ``limit`` bytes or not a regular file.
        """
        real = self.resolve(path)
        found = self.lstat(real)
        if found is None:
            return None
        name = f"/{os.fsdecode(path)}"
        if not stat.S_ISREG(found.st_mode):
            raise BuildError(f"{name} is not a regular file")
        with os.fdopen(self.open(real), "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise BuildError(f"{name} exceeds {limit} bytes")
        return data

    def entry(self, path: bytes) -> Entry | None:
        """Return the entry of ``path``; None if it does not exist.

        A socket, which layers cannot hold, is an empty file, as for BuildKit.
        """
        found = self.lstat(path)
        return None if found is None else self._entry(path, found)

    def entries(self, path: bytes) -> Iterator[Entry]:
        """Yield the entries of the directory ``path``, sorted bytewise by name.

        They are read a few hundred at a time: memory holds the names, and no descriptor is open in between.
        """
        above = path + b"/" if path else b""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = sorted(map(os.fsencode, os.listdir(fd)))
            found = self._some(fd, above, names[:_SOME])
        finally:
            os.close(fd)
        yield from found
        for start in range(_SOME, len(names), _SOME):
            fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                found = self._some(fd, above, names[start : start + _SOME])
            finally:
                os.close(fd)
            yield from found

    def _some(self, fd: int, above: bytes, names: Sequence[bytes]) -> list[Entry]:
        """Return the entries ``names`` of the directory ``fd``, whose path with a trailing slash is ``above``."""
        found: list[Entry] = []
        for name in names:
            below = above + name
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if self._hides is None or not self._hides(below, stat.S_ISDIR(status.st_mode)):
                found.append(self._entry(below, status))
        return found

    def _entry(self, path: bytes, found: os.stat_result) -> Entry:
        mode = found.st_mode
        kind = KIND_OF_MODE.get(stat.S_IFMT(mode), Kind.FILE)
        host = _NO_CONTENT if stat.S_ISSOCK(mode) else self.host_path(path)
        device = kind is Kind.CHARACTER or kind is Kind.BLOCK
        uid, gid = self._owner or owner(found)
        entry = Entry(
            path,
            kind,
            stat.S_IMODE(mode),
            uid,
            gid,
            found.st_mtime_ns,
            found.st_size if kind is Kind.FILE else 0,
            self.readlink(path) if kind is Kind.SYMLINK else b"",
            (os.major(found.st_rdev), os.minor(found.st_rdev)) if device else (0, 0),
            _xattrs(host) if self._owner is None and (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) else (),
            host if kind is Kind.FILE else b"",
            (found.st_dev, found.st_ino) if found.st_nlink > 1 and kind is not Kind.DIRECTORY else (0, 0),
            stamp=self._stamp(found) if self._stamp is not None and stat.S_ISREG(mode) else b"",
        )
        return entry if self._meaning is None else self._meaning(entry)


def open_directory(
    path: str | bytes,
    *,
    hides: Hides | None = None,
    owner: tuple[int, int] | None = None,
    stamp: Stamp | None = None,
    meaning: Meaning | None = None,
) -> Tree:
    """Open the tree below an existing directory.

    With ``owner``, a (uid, gid), all files belong to that owner and have no extended attributes, as in a user's working
    directory.
    """
    path = os.fsencode(path)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return Tree(fd, path, TreeOptions(hides, owner, stamp, meaning))


def owner(status: os.stat_result) -> tuple[int, int]:
    """Return the (uid, gid) that a file of the store has in an image: that of ``status``.

    Outside of a user namespace the files of an ordinary user are root's, as they are seen in one. Raises
    ``EnvironmentUnfit`` for those of other ids, which mean something in a user namespace only.
    """
    uid, gid = status.st_uid, status.st_gid
    if not uid or not (own := os.geteuid()):
        return uid, gid
    if uid != own:
        raise EnvironmentUnfit(
            "cannot tell whose files these are",
            why=f"files in the store belong to user {uid}, from builds in a user namespace",
            remedy="build with another store (--root, KANIFOLD_ROOT)",
        )
    return 0, 0


def _xattrs(host: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return the attributes that layers hold (``user.*`` and capabilities), which are Linux's."""
    if sys.platform != "linux":
        return ()
    try:
        names = os.listxattr(host, follow_symlinks=False)
        if not names:
            return ()
        found = []
        for name in sorted(names):
            if name.startswith("user.") or name == "security.capability":
                found.append((os.fsencode(name), os.getxattr(host, name, follow_symlinks=False)))
    except OSError:
        return ()
    return tuple(found)
