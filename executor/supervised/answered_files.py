"""What a step in the mode ``answered`` sees besides its root: /proc, /dev, /sys, and its mounts, as a table of paths.

In the root, each of them is covered by an empty file or directory without any permission while the step runs
(``placements``), where the resolution of paths by the kernel ends (``file_view``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING, Final, assert_never

from executor.sandbox import network
from executor.sandbox.report import NOT_SET_UP
from executor.sandbox.spec import Bind, BindFd, Mount, ScriptFile, SecretFile, Spec, Tmpfs
from executor.sandbox.staging import hidden_in_sys
from executor.sandbox.step_process import RefusedError, hosts_file, normal_target
from executor.snapshotter.records import DeviceNumber
from executor.supervised.file_metadata import FileMetadata
from executor.supervised.file_view import MountedFile, failure
from executor.supervised.path_calls import DEVICES
from executor.supervised.step_context import PTS
from platforms import syscalls

if TYPE_CHECKING:
    from executor.supervised.file_metadata import MetadataTable
    from executor.supervised.placements import PlacedFiles

_LINKS: Final = (
    ("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"), ("core", "/proc/kcore"), ("ptmx", "pts/ptmx"),
)  # fmt: skip
_PATH: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_TO_ALL: Final = 0o1777
_SEALS: Final = 0xF
"""F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE."""


class AnsweredFiles:
    """The mounts of a step whose private directory is ``place``."""

    def __init__(self, root: str, place: str, table: MetadataTable, placements: PlacedFiles) -> None:
        self.mounts = [MountedFile(b"", os.fsencode(root))]
        self.covered: set[tuple[int, int]] = set()
        self.devices: set[tuple[int, int]] = set()
        """The files of /dev, which stand for devices of this host."""
        self._root = root
        self._place = place
        self._table = table
        self._placements = placements
        self._drafts = 0
        self._placeholders: list[tuple[int, int]] = []
        """Descriptors of what is covered, and the permissions that it gets back."""

    def put_all(self, spec: Spec) -> None:
        """Prepare everything that ``spec`` needs. Raises RefusedError."""
        wanted: dict[str, Mount] = {}
        for mount in spec.mounts:
            target = normal_target(mount.target)
            if target == "/":
                raise RefusedError(NOT_SET_UP, "cannot mount over the root directory")
            wanted[target] = mount
        files = {"/etc/resolv.conf": network.resolv_conf(isolated=False), "/etc/hosts": hosts_file(spec)}
        system = {"/proc": self._proc, "/dev": self._dev, "/sys": self._sys}
        for target in sorted({*system, *files, *wanted}, key=lambda each: each.count("/")):
            try:
                if target in wanted:
                    self._put(target, wanted[target])
                elif target in system:
                    system[target](target)
                else:
                    self._attach(target, self._file(files[target]))
            except OSError as error:
                what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
                raise RefusedError(NOT_SET_UP, f"cannot mount on {target}: {what}") from error

    def _put(self, target: str, mount: Mount) -> None:
        match mount:
            case Bind():
                self._own(mount.source, *mount.owner)
                self._attach(target, mount.source, readonly=mount.readonly)
            case BindFd():
                fd = mount.fd
                if mount.inside.strip("/"):
                    fd = syscalls.openat2(fd, mount.inside, os.O_PATH, resolve=syscalls.IN_ROOT)
                for layer in mount.layers:
                    self._table.load(layer)
                self._attach(target, os.readlink(f"/proc/self/fd/{fd}"), readonly=mount.readonly)
            case Tmpfs():
                mode = mount.mode if mount.mode is not None else self._placements.root.mode_of(mount.target)
                self._attach(target, self._directory(_OPEN_TO_ALL if mode is None else mode))
            case SecretFile():
                self._attach_secret(target, mount)
            case ScriptFile():
                self._attach(target, self._file(mount.data, 0o755), readonly=True)
            case _:
                assert_never(mount)

    # -- sources -------------------------------------------------------------------------------------------------------

    def _draft(self) -> str:
        self._drafts += 1
        return f"{self._place}/{self._drafts}"

    def _directory(self, mode: int) -> str:
        path = self._draft()
        os.mkdir(path)
        os.chmod(path, mode | stat.S_IRWXU)
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            self._table.set(os.stat(path), FileMetadata(permissions=mode))
        return path

    def _file(self, data: bytes, mode: int = 0o644) -> str:
        path = self._draft()
        with open(path, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
        return path

    def _own(self, path: str, uid: int, gid: int) -> None:
        if uid or gid:
            self._table.set(os.lstat(path), FileMetadata(uid, gid))

    # -- targets -------------------------------------------------------------------------------------------------------

    def _attach(self, target: str, source: str, *, readonly: bool = False) -> None:
        kind = os.lstat(source).st_mode
        shown = self._cover(target, directory=stat.S_ISDIR(kind))
        self.mounts.append(MountedFile(shown, os.fsencode(source), readonly=readonly))

    def _attach_secret(self, target: str, secret: SecretFile) -> None:
        fd = os.memfd_create("secret", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(fd, secret.data)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        self._table.set(os.fstat(fd), FileMetadata(secret.uid, secret.gid, secret.mode))
        shown = self._cover(target, directory=False)
        self.mounts.append(MountedFile(shown, b"/proc/self/fd/%d" % fd, readonly=True, fd=fd))

    def _cover(self, target: str, *, directory: bool) -> bytes:
        """Put a placeholder at ``target``, which is made if it is missing; return its path without links."""
        above = self._covering(target)
        if above is not None:
            return self._cover_within(above, target, directory=directory)
        place = self._placements.root.locate(target, directory=directory)
        host = os.readlink(f"/proc/self/fd/{place}")
        os.close(place)
        shown = host.removeprefix(self._root)
        if (above := self._covering(shown)) is not None:
            return self._cover_within(above, shown, directory=directory)
        draft = self._placements.draft()
        _make_placeholder(draft, directory=directory)
        self._placements.put(draft, shown)
        self._note(os.open(host, _PATH), directory=directory)
        return os.fsencode(shown.strip("/"))

    def _covering(self, target: str) -> MountedFile | None:
        """Return the mount that ``target`` is in; None for the root."""
        found = [each for each in self.mounts[1:] if target.startswith(f"/{os.fsdecode(each.target)}/")]
        return max(found, key=lambda each: len(each.target), default=None)

    def _cover_within(self, above: MountedFile, target: str, *, directory: bool) -> bytes:
        """As ``_cover``, in the mount ``above``. Other steps may exchange names there: no link is followed."""
        *parts, name = target.removeprefix(f"/{os.fsdecode(above.target)}/").split("/")
        here = os.dup(above.fd)
        try:
            for part in parts:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=here)
                below = os.open(part, _PATH | os.O_DIRECTORY, dir_fd=here)
                os.close(here)
                here = below
            with contextlib.suppress(FileExistsError):
                _make_placeholder(name, directory=directory, dir_fd=here)
            self._note(os.open(name, _PATH, dir_fd=here), directory=directory)
        finally:
            os.close(here)
        return os.fsencode(target.strip("/"))

    def _note(self, fd: int, *, directory: bool) -> None:
        """Let the file or directory ``fd`` be covered, and close it in ``uncover``. Raises OSError if it is none."""
        status = os.fstat(fd)
        self._placeholders.append((fd, stat.S_IMODE(status.st_mode) | stat.S_IRWXU))
        if stat.S_ISLNK(status.st_mode) or stat.S_ISDIR(status.st_mode) is not directory:
            raise failure(errno.ENOTDIR if directory else errno.EISDIR)
        os.chmod(f"/proc/self/fd/{fd}", 0)
        self.covered.add((status.st_dev, status.st_ino))

    def uncover(self) -> None:
        """Give what was covered its permissions again; a directory without any could not be moved."""
        for fd, mode in self._placeholders:
            with contextlib.suppress(OSError):  # a link, which was not covered
                os.chmod(f"/proc/self/fd/{fd}", mode)
            os.close(fd)

    # -- /proc, /dev, /sys ---------------------------------------------------------------------------------------------

    def _proc(self, target: str) -> None:
        os.mkdir(f"{self._place}/proc")
        os.chmod(f"{self._place}/proc", 0o755)
        self._attach(target, f"{self._place}/proc")

    def _sys(self, target: str) -> None:
        if not os.path.isdir("/sys"):
            return
        self._attach(target, "/sys", readonly=True)
        empty = {True: self._directory(0o755), False: self._file(b"")}
        for path in hidden_in_sys():
            if os.path.lexists(path):
                source = os.fsencode(empty[os.path.isdir(path)])
                self.mounts.append(MountedFile(os.fsencode(path[1:]), source, readonly=True))

    def _dev(self, target: str) -> None:
        top, pts = self._directory(0o755), f"{self._place}/{PTS}"
        os.mkdir(f"{top}/pts")
        for path, mode in ((f"{top}/shm", _OPEN_TO_ALL), (f"{top}/mqueue", _OPEN_TO_ALL), (pts, 0o755)):
            os.mkdir(path)
            os.chmod(path, mode)
        for name, text in _LINKS:
            os.symlink(text, f"{top}/{name}")
        for (letter, major, minor), name in DEVICES.items():
            path = f"{pts if name == 'ptmx' else top}/{name}"
            with open(path, "xb") as file:
                os.fchmod(file.fileno(), 0o666)
                status = os.fstat(file.fileno())
                self.devices.add((status.st_dev, status.st_ino))
                self._table.set(status, FileMetadata(device=DeviceNumber(letter, major, minor)))
        self._attach(target, top)
        self._attach(f"{target}/pts", pts)


def _make_placeholder(path: str, *, directory: bool, dir_fd: int | None = None) -> None:
    if directory:
        os.mkdir(path, 0o755, dir_fd=dir_fd)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=dir_fd))
