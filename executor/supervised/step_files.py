"""The files of a step in a chroot that are not of its image: /proc, /dev, /sys, and what ``RUN --mount`` asks for.

/proc and /sys are directories with the names that programs look for, and with the content of a few files. The
supervisor opens what is really there for the step (``proc_files``). It recognises a file that the step has reached by a
link, such as /var/log/access.log -> /dev/stdout, by its inode number.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from functools import partial
from typing import TYPE_CHECKING, Final, assert_never

import msgspec

from executor.sandbox import network
from executor.sandbox.report import NOT_SET_UP
from executor.sandbox.spec import Bind, BindFd, Mount, ScriptFile, SecretFile, Spec, Tmpfs
from executor.sandbox.staging import DEVICE_NAMES, hidden_in_sys
from executor.sandbox.step_process import RefusedError, hosts_file, normal_target
from executor.store import moved_directories
from executor.supervised.made_devices import MadeDevices
from executor.supervised.mount_table import mount_table
from executor.supervised.placements import PlacedFiles, make_directory
from executor.supervised.proc_files import MACHINE_FILES, MAGIC_LINKS, PROCESS_FILES
from executor.supervised.tree_copies import copy_tree
from platforms import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

_DEV_LINKS: Final = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
)
_PROC_DIRECTORIES: Final = ("self", "self/fd", "self/fdinfo", "self/net", "self/task", "thread-self", "net", "sys")
_PROC_FILES: Final = (
    *map(os.fsdecode, sorted(MACHINE_FILES)),
    *(f"self/{os.fsdecode(each)}" for each in sorted({*PROCESS_FILES, *MAGIC_LINKS, b"mountstats"})),
)
"""Names of files that a step finds in /proc before it has listed a directory there."""
_OPEN_TO_ALL: Final = 0o1777
_SEALS: Final = 0xF
"""F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE: nothing changes a secret."""
_MOST: Final = 0x7FFFF000
"""The most bytes that one call of sendfile(2) copies."""
_RETRY: Final = 0.02
"""Seconds between attempts to get a cache directory that another step has."""


class Answered(msgspec.Struct):
    """What the supervisor answers for, by the inode numbers of files in the root that stand for it."""

    names: dict[int, bytes] = {}
    """Files of /proc and /dev, with the path under which the supervisor knows them."""
    secrets: dict[int, int] = {}
    """Secrets, each with a descriptor of a file in memory."""
    hidden: tuple[bytes, ...] = ()
    """Paths in this machine's /sys that the step does not see."""
    proc: int = -1
    """A descriptor of the root's own /proc."""
    devices: MadeDevices = msgspec.field(default_factory=MadeDevices)
    """The devices that the step makes."""
    held: list[int] = []
    """Descriptors of the files of ``names`` and ``secrets``."""

    def hold(self, path: str) -> int:
        """Keep the file ``path`` open, lest a new file have its inode number when the step has removed it; return that
        number."""
        self.held.append(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
        return os.fstat(self.held[-1]).st_ino


def put_all(placements: PlacedFiles, spec: Spec, cancelled: Callable[[], bool], emulator: str = "") -> Answered:
    """Put everything into the root that ``spec`` needs. Waits until cache directories are free, or ``cancelled``.

    ``emulator``: a program that the step finds at ``emulator_path``. Raises RefusedError.
    """
    answered = Answered()
    table = mount_table(spec)
    system: dict[str, Callable[[PlacedFiles, Answered], None]] = {
        "/proc": partial(_put_proc, table),
        "/dev": _put_dev,
        "/sys": _put_sys,
    }
    if emulator:
        system[emulator_path(emulator)] = partial(_put_emulator, emulator)
    files = {"/etc/resolv.conf": network.resolv_conf(isolated=False), "/etc/hosts": hosts_file(spec)}
    wanted = {normal_target(mount.target): mount for mount in spec.mounts}
    if "/" in wanted:
        raise RefusedError(NOT_SET_UP, "cannot mount over the root directory")
    _hold_caches(spec.mounts, cancelled)
    for target in sorted({*system, *files, *wanted}, key=lambda each: each.count("/")):
        try:
            if target in wanted:
                _put_mount(placements, wanted[target], answered)
            elif target in system:
                system[target](placements, answered)
            else:
                placements.put(_file(placements, files[target], 0o644), target)
        except OSError as error:
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            raise RefusedError(NOT_SET_UP, f"cannot mount on {target}: {what}") from error
    return answered


def _hold_caches(mounts: tuple[Mount, ...], cancelled: Callable[[], bool]) -> None:
    """Lock the cache directories among ``mounts``, which can be in one root at a time, until this process ends. Raises
    RefusedError."""
    caches = [each for each in mounts if isinstance(each, Bind) and not _is_socket(each)]
    _check_apart(caches)
    places = {os.path.dirname(each.source) for each in caches}
    for place in sorted(filter(os.path.isdir, places)):
        hold(place, cancelled)


def _check_apart(caches: list[Bind]) -> None:
    """Check that no directory that is moved into the root has two places there. Raises RefusedError."""
    first: dict[str, Bind] = {}
    for each in caches:
        other = first.setdefault(each.source, each)
        if other is not each and not (other.readonly and each.readonly):
            what = f"cannot mount on {each.target}: the same cache directory is on {other.target}"
            raise RefusedError(NOT_SET_UP, f"{what}, and without mounts it has one place: give it an id of its own")


def hold(directory: str, cancelled: Callable[[], bool]) -> None:
    """Lock ``directory`` until this process ends. Raises RefusedError if the step is ``cancelled`` before."""
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if cancelled():
                raise RefusedError(NOT_SET_UP, "cancelled") from None
            time.sleep(_RETRY)
        else:
            return


def _is_socket(mount: Bind) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return stat.S_ISSOCK(os.lstat(mount.source).st_mode)
    return False


def _put_mount(placements: PlacedFiles, mount: Mount, answered: Answered) -> None:
    match mount:
        case Bind():
            moved_directories.bring_back(mount.source)
            if not os.path.lexists(mount.source):  # lost with the step that had it
                make_directory(mount.source, 0o755, mount.owner)
            if mount.readonly:
                draft = placements.draft()
                copy_tree(mount.source, draft)
                placements.put(draft, mount.target)
            else:
                placements.put(mount.source, mount.target, home=mount.source)
        case BindFd():
            placements.put(_path_of(mount), mount.target)
        case Tmpfs():
            mode = mount.mode if mount.mode is not None else placements.root.mode_of(mount.target)
            draft = placements.draft()
            make_directory(draft, _OPEN_TO_ALL if mode is None else mode, (0, 0))
            placements.put(draft, mount.target)
        case SecretFile():
            draft = _file(placements, b"", mount.mode, (mount.uid, mount.gid))
            answered.secrets[answered.hold(draft)] = _in_memory(mount)
            placements.put(draft, mount.target)
        case ScriptFile():
            placements.put(_file(placements, mount.data, 0o755), mount.target)
        case _:
            assert_never(mount)


def _path_of(mount: BindFd) -> str:
    if not mount.inside.strip("/"):
        return os.readlink(f"/proc/self/fd/{mount.fd}")
    place = syscalls.openat2(mount.fd, mount.inside, os.O_PATH, resolve=syscalls.IN_ROOT)
    try:
        return os.readlink(f"/proc/self/fd/{place}")
    finally:
        os.close(place)


def _in_memory(secret: SecretFile) -> int:
    fd = os.memfd_create("secret", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(secret.data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    os.fchown(fd, secret.uid, secret.gid)
    os.fchmod(fd, secret.mode)
    return fd


def _file(placements: PlacedFiles, data: bytes, mode: int, owner: tuple[int, int] = (0, 0)) -> str:
    path = placements.draft()
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        os.fchown(fd, *owner)
        os.fchmod(fd, mode)
    return path


def _put_proc(table: tuple[bytes, bytes], placements: PlacedFiles, answered: Answered) -> None:
    draft = placements.draft()
    for directory in (draft, *(f"{draft}/{each}" for each in _PROC_DIRECTORIES)):
        make_directory(directory, 0o755, (0, 0))
    first, *others = (f"{draft}/{name}" for name in _PROC_FILES)  # for lstat(2), which the kernel executes
    os.mknod(first, stat.S_IFREG | 0o444)
    for each in others:  # of one file, as that takes a third of the time
        os.link(first, each)
    for name, data in zip(("mounts", "mountinfo"), table, strict=True):
        with open(f"{draft}/self/{name}", "wb") as file:
            file.write(data)
    os.symlink("self/mounts", f"{draft}/mounts")
    for number in range(3):
        path = f"{draft}/self/fd/{number}"
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        answered.names[answered.hold(path)] = b"/proc/self/fd/%d" % number
    answered.proc = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    placements.put(draft, "/proc")


def emulator_path(emulator: str) -> str:
    """Return where in its root a step has a copy of the program ``emulator``."""
    return f"/dev/.{os.path.basename(emulator)}"


def _put_emulator(emulator: str, placements: PlacedFiles, answered: Answered) -> None:
    """Put the emulator where it is, whatever else is mounted on /dev."""
    del answered
    draft = placements.draft()
    _copy_program(emulator, draft)
    placements.put(draft, emulator_path(emulator))


def _put_dev(placements: PlacedFiles, answered: Answered) -> None:
    draft = placements.draft()
    make_directory(draft, 0o755, (0, 0))
    for name in DEVICE_NAMES:
        _make_device(f"{draft}/{name}", os.stat(f"/dev/{name}"))
        if not _opens(f"{draft}/{name}"):  # a volume that is mounted with nodev, or a user namespace
            answered.names[answered.hold(_make_empty(f"{draft}/{name}"))] = f"/dev/{name}".encode()
    for name, text in _DEV_LINKS:
        os.symlink(text, f"{draft}/{name}")
    for name, mode in (("pts", 0o755), ("shm", _OPEN_TO_ALL), ("mqueue", _OPEN_TO_ALL)):
        make_directory(f"{draft}/{name}", mode, (0, 0))
    answered.names[answered.hold(_make_empty(f"{draft}/pts/ptmx"))] = b"/dev/ptmx"
    placements.put(draft, "/dev")


def _copy_program(source: str, path: str) -> None:
    with open(source, "rb") as original, open(path, "xb") as copy:
        if not syscalls.share_content(original.fileno(), copy.fileno()):
            while os.sendfile(copy.fileno(), original.fileno(), None, _MOST):
                pass
        os.fchmod(copy.fileno(), 0o555)


def _make_device(path: str, status: os.stat_result) -> None:
    with contextlib.suppress(PermissionError):
        os.mknod(path, stat.S_IFCHR | 0o666, status.st_rdev)
        os.chmod(path, 0o666)


def _opens(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as error:
        return os.path.basename(path) == "tty" and os.path.lexists(path) and not isinstance(error, PermissionError)
    return True


def _make_empty(path: str) -> str:
    """Make the empty file ``path``, writable for all, in place of what is there; return the path."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    os.fchmod(fd, 0o666)
    os.close(fd)
    return path


def _put_sys(placements: PlacedFiles, answered: Answered) -> None:
    answered.hidden = tuple(map(os.fsencode, hidden_in_sys()))
    draft = placements.draft()
    make_directory(draft, 0o755, (0, 0))
    with contextlib.suppress(OSError):
        for name in os.listdir("/sys"):
            make_directory(f"{draft}/{name}", 0o755, (0, 0))
    placements.put(draft, "/sys")
