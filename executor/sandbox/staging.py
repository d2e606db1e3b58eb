"""The staging area: a tmpfs that only the launcher can see, in which the root file systems of steps are set up.

It contains what all steps have in common, made once: mount points, device files, the read-only /sys, files for masking.
Each step gets a copy of the launcher's mount namespace and moves the parts that it needs to its root; the rest is
unmounted with the host's tree.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final

from executor.rootfs import moment
from executor.sandbox import starter
from platforms import syscalls

PLACE: Final = "/proc/fs"
"""The mount point of the staging area. Every Linux has this directory, and neither kanifold nor the source of a mount
uses it."""

LOWER: Final = f"{PLACE}/lower"
"""The bottom layer of every root: mount points that an image may lack, so that they are not made in the upper
directory, where they would be part of the step's changes."""
ROOT: Final = f"{PLACE}/root"
DEV: Final = f"{PLACE}/dev"
PROC: Final = f"{PLACE}/proc"
OUTER_PROC: Final = f"{PLACE}/outer-proc"
"""The /proc of the container that kanifold runs in, if a new one cannot be mounted; otherwise it does not exist."""
SYS: Final = f"{PLACE}/sys"
FILES: Final = f"{PLACE}/files"
EMPTY: Final = f"{PLACE}/empty"
DEVICES: Final = f"{PLACE}/devices"
NULL: Final = f"{DEVICES}/null"
STARTER: Final = f"{PLACE}/starter"
"""The first program of the processes of steps (see ``starter``)."""
EMULATORS: Final = f"{PLACE}/emulators"
"""A directory with the emulators that a tracer starts (see ``offer_emulator``)."""

_HIDDEN: Final = "."

DEVICE_NAMES: Final = ("null", "zero", "full", "random", "urandom", "tty")
MASKED: Final = (
    *("acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug"),
    "scsi",
)
"""Masked paths of /proc, as in Docker and containerd."""
MASKED_SYS: Final = ("firmware", "devices/virtual/powercap")
CGROUP: Final = "fs/cgroup"
_OF_SYS: Final = ("sysfs", "cgroup", "cgroup2", "tmpfs", "fuse.lxcfs")
"""File systems that stay visible below /sys. Others report on, and partly control, the whole host: debugfs, tracefs,
securityfs, pstore …; a new /sys, as other builders mount it, has none of them. LXC corrects values by lxcfs."""
_ESCAPED: Final = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))
"""How mountinfo has what separates its words (proc_pid_mountinfo(5)). No codec is loaded where steps are forked."""
READONLY: Final = ("bus", "fs", "irq", "sys", "sysrq-trigger")
"""Read-only paths of /proc."""

NO_PROGRAMS: Final = "its file system is mounted with noexec"
_FIXED: Final = (
    syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
)
_QUIET: Final = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
_TRACING: Final = 2
"""The Landlock ABI version that ``syscalls.landlock_domain`` needs."""


def set_up() -> None:
    """Make the staging area in this process's mount namespace, whose propagation must be private. Raises OSError."""
    syscalls.mount("kanifold", PLACE, "tmpfs", syscalls.MS_NOSUID, "mode=755")
    for directory in (LOWER, ROOT, DEV, PROC, SYS, FILES, EMPTY, DEVICES, EMULATORS):
        os.mkdir(directory, 0o755)
    for directory in ("proc", "sys", "dev", "etc"):
        os.mkdir(f"{LOWER}/{directory}", 0o755)
    for file in ("etc/resolv.conf", "etc/hosts"):
        _touch(f"{LOWER}/{file}")
    for stub in ("etc/resolv.conf", "etc/hosts", "proc", "sys", "dev", "etc"):
        os.utime(
            f"{LOWER}/{stub}", (moment.SECONDS, moment.SECONDS)
        )  # so that a copied-up one is the same in every build

    for name in DEVICE_NAMES:
        _touch(f"{DEVICES}/{name}")
        syscalls.mount(f"/dev/{name}", f"{DEVICES}/{name}", flags=syscalls.MS_BIND)
        # These are files of the host. A device on a read-only mount can be written to, but its mode and owner not set.
        syscalls.mount_setattr(syscalls.AT_FDCWD, f"{DEVICES}/{name}", 0, add=syscalls.MOUNT_ATTR_RDONLY)
    syscalls.mount(EMPTY, EMPTY, flags=syscalls.MS_BIND)
    syscalls.mount_setattr(syscalls.AT_FDCWD, EMPTY, 0, add=_FIXED)
    _touch(STARTER)
    with open(STARTER, "wb") as program:
        program.write(starter.program())
    os.chmod(STARTER, 0o555)
    syscalls.mount(STARTER, STARTER, flags=syscalls.MS_BIND)
    syscalls.mount_setattr(syscalls.AT_FDCWD, STARTER, 0, add=_FIXED & ~syscalls.MOUNT_ATTR_NOEXEC)
    syscalls.mount("/sys", SYS, flags=syscalls.MS_BIND | syscalls.MS_REC)
    syscalls.mount_setattr(syscalls.AT_FDCWD, SYS, syscalls.AT_RECURSIVE, add=_FIXED)
    _mask_mounts(SYS)
    mask_sys(SYS)


def offer_emulator(path: str) -> str:
    """Let all steps execute the program ``path``; return its path in their roots. Raises OSError.

    It is a copy, so that what a step does to it concerns no other job; its mount is read-only. No layer has it, as
    /dev is a mount.
    """
    name = os.path.basename(path)
    copy = f"{EMULATORS}/{name}"
    with open(path, "rb") as original, open(copy, "xb") as file:
        while data := original.read(1 << 20):
            file.write(data)
    os.chmod(copy, 0o555)
    syscalls.mount(copy, copy, flags=syscalls.MS_BIND)
    syscalls.mount_setattr(syscalls.AT_FDCWD, copy, 0, add=_FIXED & ~syscalls.MOUNT_ATTR_NOEXEC)
    return f"/dev/{_HIDDEN}{name}"


def emulators() -> dict[str, str]:
    """Return the programs that were offered, by their paths in the roots of steps."""
    return {f"/dev/{_HIDDEN}{name}": f"{EMULATORS}/{name}" for name in os.listdir(EMULATORS)}


def preflight() -> None:
    """Try what steps need and ``set_up`` does not: an overlay, and a /proc. Raises OSError.

    To be called in a new pid namespace.
    """
    for name in ("upper", "work"):
        os.mkdir(f"{PLACE}/{name}")
    mount_overlay((), f"{PLACE}/upper", f"{PLACE}/work", ROOT)
    syscalls.umount(ROOT, syscalls.MNT_DETACH)
    try:
        mount_proc()
    except PermissionError:
        _keep_outer_proc()
        mount_proc()
    syscalls.umount(PROC, syscalls.MNT_DETACH)


def mount_overlay(layers: tuple[str, ...], upper: str, work: str, target: str) -> None:
    """Mount an overlay of ``layers``, top first, on LOWER, with the upper directory ``upper``.

    Always with ``userxattr``, also for root, so that stores are alike; ``volatile``, as the result of a step is
    discarded after a crash; ``xino``, so that files of layers on other file systems have unique inodes; ``nodev``, as
    device nodes in images are only copied.

    mount(2) accepts a page of options and would parse colons and commas in paths; so directories are passed as numbers
    of open descriptors, with /proc/self/fd as the working directory. This suffices for the kernel's maximum of 500
    layers, and /proc/mounts shows no path of the host to a step. The working directory of this process is lost.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    fds: list[int] = []
    try:
        for path in (upper, work, *layers, LOWER):
            fds.append(os.open(path, flags))
        os.chdir("/proc/self/fd")
        lower = ":".join(map(str, fds[2:]))
        options = f"lowerdir={lower},upperdir={fds[0]},workdir={fds[1]},userxattr,volatile,index=off,xino=on"
        syscalls.mount("overlay", target, "overlay", syscalls.MS_NODEV, options)
    finally:
        os.chdir("/")
        for fd in fds:
            os.close(fd)


def mount_directory(path: str, target: str) -> None:
    """Mount the directory ``path``, with the same options as an overlay: devices in it cannot be opened.

    What its own mount does not allow (programs, set-user-id bits) is allowed, as on an overlay, where the kernel
    permits. Raises OSError if no program could be executed.
    """
    tree = syscalls.open_tree(syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC)
    try:
        syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH, add=syscalls.MOUNT_ATTR_NODEV)
        try:
            syscalls.mount_setattr(
                tree, "", syscalls.AT_EMPTY_PATH, clear=syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC
            )
        except PermissionError:  # locked: a mount of another user namespace
            if os.fstatvfs(tree).f_flag & os.ST_NOEXEC:
                raise OSError(errno.EACCES, NO_PROGRAMS) from None
        syscalls.move_mount(tree, "", syscalls.AT_FDCWD, target, syscalls.MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)


def mount_proc() -> None:
    """Mount a /proc of this process's pid namespace at PROC, or OUTER_PROC if there is one.

    The kernel refuses a new one in a user namespace, with EPERM, where parts of the existing one are hidden by mounts,
    as in containers. In OUTER_PROC, which shows all processes of the container, /proc/self is still the right one.
    """
    try:
        syscalls.mount("proc", PROC, "proc", _QUIET)
    except PermissionError:
        if not shows_outer_processes():
            raise
        syscalls.mount(OUTER_PROC, PROC, flags=syscalls.MS_BIND | syscalls.MS_REC)


def shows_outer_processes() -> bool:
    """Whether steps have OUTER_PROC."""
    return os.path.isdir(OUTER_PROC)


def _keep_outer_proc() -> None:
    """Bind /proc, as it is without the staging area, to OUTER_PROC. Raises OSError.

    What may be read of a process only by those that may trace it (memory, environment, descriptors) is protected by
    Landlock: a step could trace other steps otherwise.
    """
    if syscalls.landlock_version() < _TRACING:
        raise OSError(errno.EPERM, "a new /proc is refused, and without Landlock that of the container is not safe")
    os.mkdir(OUTER_PROC, 0o755)
    syscalls.mount("/proc", OUTER_PROC, flags=syscalls.MS_BIND | syscalls.MS_REC)
    syscalls.umount(f"{OUTER_PROC}/fs", syscalls.MNT_DETACH)


def proc_of_all() -> int:
    """Return a descriptor of a detached /proc of this process's pid namespace and those below it, or of OUTER_PROC."""
    context = syscalls.fsopen("proc")
    try:
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        return syscalls.fsmount(context, _FIXED & ~syscalls.MOUNT_ATTR_RDONLY)
    except PermissionError:
        if not shows_outer_processes():
            raise
        clone = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | syscalls.AT_RECURSIVE
        return syscalls.open_tree(syscalls.AT_FDCWD, OUTER_PROC, clone)
    finally:
        os.close(context)


def mask_proc() -> None:
    """Mask the paths of /proc that reveal or change the host."""
    for name in MASKED:
        path = f"{PROC}/{name}"
        if os.path.exists(path):
            cover(EMPTY if os.path.isdir(path) else NULL, path)
    for name in READONLY:
        path = f"{PROC}/{name}"
        try:
            syscalls.mount(path, path, flags=syscalls.MS_BIND | syscalls.MS_REC)
        except FileNotFoundError:
            continue
        syscalls.mount_setattr(syscalls.AT_FDCWD, path, syscalls.AT_RECURSIVE, add=_FIXED)


def mask_sys(path: str) -> None:
    """As ``mask_proc``, for the /sys at ``path``."""
    for name in MASKED_SYS:
        cover(EMPTY, f"{path}/{name}")


def _mask_mounts(path: str) -> None:
    """Cover what else the host has mounted in the /sys at ``path``."""
    for place in mounted_in(path):
        cover(EMPTY if os.path.isdir(place) else NULL, place)


def mounted_in(path: str) -> list[str]:
    """Return the mounts in the /sys at ``path`` that steps do not see."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        lines = [line.split() for line in file]
    for words in lines:  # proc_pid_mountinfo(5)
        place = os.fsdecode(words[4])
        for escaped, meant in _ESCAPED:
            place = place.replace(escaped, meant)
        kind = words[words.index(b"-") + 1].decode()
        if place.startswith(f"{path}/") and kind not in _OF_SYS:
            found.append(place)
    return found


def hidden_in_sys() -> list[str]:
    """Return the paths in this machine's /sys that steps do not see."""
    return [*(f"/sys/{name}" for name in MASKED_SYS), *mounted_in("/sys")]


def complete_sys(path: str) -> None:
    """Make a new /sys at ``path`` like the one of other steps, except for the network.

    Programs read the memory and processors of their control group there.
    """
    mask_sys(path)
    with contextlib.suppress(FileNotFoundError):
        syscalls.mount(f"{SYS}/{CGROUP}", f"{path}/{CGROUP}", flags=syscalls.MS_BIND | syscalls.MS_REC)


def mount_dev(shm_size: int) -> None:
    """Mount a minimal /dev at DEV, as in the OCI runtime specification (config-linux.md, default devices).

    The devices are separate mounts, so that ``nodev`` applies to devices that the step makes: root may call mknod.
    """
    syscalls.mount("tmpfs", DEV, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=755,size=65536k")
    for name in DEVICE_NAMES:
        _touch(f"{DEV}/{name}")
        syscalls.mount(f"{DEVICES}/{name}", f"{DEV}/{name}", flags=syscalls.MS_BIND)
    for name, text in (
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("core", "/proc/kcore"),
        ("ptmx", "pts/ptmx"),
    ):
        os.symlink(text, f"{DEV}/{name}")
    for name in os.listdir(EMULATORS):
        _touch(f"{DEV}/{_HIDDEN}{name}")
        syscalls.mount(f"{EMULATORS}/{name}", f"{DEV}/{_HIDDEN}{name}", flags=syscalls.MS_BIND)
    for name in ("pts", "shm", "mqueue"):
        os.mkdir(f"{DEV}/{name}", 0o755)
    terminals = "newinstance,ptmxmode=0666,mode=0620"
    quiet = syscalls.MS_NOSUID | syscalls.MS_NOEXEC
    try:
        syscalls.mount("devpts", f"{DEV}/pts", "devpts", quiet, f"{terminals},gid=5")
    except OSError:  # the group tty is not mapped in this user namespace
        syscalls.mount("devpts", f"{DEV}/pts", "devpts", quiet, terminals)
    syscalls.mount("shm", f"{DEV}/shm", "tmpfs", _QUIET, f"mode=1777,size={shm_size}")
    syscalls.mount("mqueue", f"{DEV}/mqueue", "mqueue", _QUIET)


def mount_files() -> None:
    """Mount a tmpfs at FILES, for single files of a step."""
    syscalls.mount("tmpfs", FILES, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=700")


def cover(source: str, target: str) -> None:
    """Bind ``source`` over ``target``, if that exists."""
    with contextlib.suppress(FileNotFoundError):
        syscalls.mount(source, target, flags=syscalls.MS_BIND)


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
