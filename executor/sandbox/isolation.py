"""Isolation modes: determining which one this host allows, and entering it.

In the order in which they are tried:

    namespaces   as root: mount, pid, ipc, uts and cgroup namespaces
    mapped       as an ordinary user: the same within a user namespace, with the user's range of subordinate ids
    single       as an ordinary user without such a range: one id only; changes of ownership are recorded, not made
    chroot       as root of a container without any of these: a chroot with a supervisor (``executor.supervised``)
    answered     as any user, without any privilege: a supervisor answers the system calls that take a path

A user can ask for one (``requested``). ``enter`` changes this process irreversibly and requires it to have a single
thread, so it is called first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import struct
from collections.abc import Callable
from enum import StrEnum
from typing import Final

import msgspec

from platforms import mount_namespace, syscalls, threads
from platforms.errors import EnvironmentUnfit, UsageError


class IsolationMode(StrEnum):
    """The modes, in the order in which they are tried."""

    NAMESPACES = "namespaces"
    MAPPED = "mapped"
    SINGLE = "single"
    CHROOT = "chroot"
    ANSWERED = "answered"


SUPERVISED_MODES: Final = (IsolationMode.CHROOT, IsolationMode.ANSWERED)
"""Those in which neither this process nor a step mounts anything (``executor.supervised``)."""


class Isolation(msgspec.Struct, frozen=True):
    """The isolation of this process after ``enter``."""

    mode: IsolationMode
    uid_limit: int
    """The ids from 0 up to this one, exclusive, exist: files can belong to them and steps can run as them."""
    why: tuple[str, ...] = ()
    """For each earlier mode, its name and why it was not taken: ``mapped: …``."""


VARIABLE: Final = "KANIFOLD_ISOLATION"
_YAMA: Final = "/proc/sys/kernel/yama/ptrace_scope"
_UNTRACEABLE: Final = {
    "2": "as root of the host: sysctl kernel.yama.ptrace_scope=1",
    "3": "have the host start with kernel.yama.ptrace_scope=1, as it cannot be lowered later",
}
"""Its values with which an unprivileged process traces no other, and the remedies."""
_NEEDED: Final = 1 << syscalls.CAP_SYS_ADMIN | 1 << syscalls.CAP_SETUID | 1 << syscalls.CAP_CHOWN
_CHROOT_NEEDS: Final = {
    "CAP_SYS_CHROOT": syscalls.CAP_SYS_CHROOT,
    "CAP_CHOWN": syscalls.CAP_CHOWN,
    "CAP_DAC_OVERRIDE": syscalls.CAP_DAC_OVERRIDE,
    "CAP_FOWNER": syscalls.CAP_FOWNER,
    "CAP_SETUID": syscalls.CAP_SETUID,
    "CAP_SETGID": syscalls.CAP_SETGID,
    "CAP_KILL": syscalls.CAP_KILL,
}
_TRACEABLE: Final = ("x86_64", "aarch64")
_ALL_IDS: Final = (1 << 32) - 1
_NEWER: Final = "run on Linux 5.19 or later (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)"
_CONFINING: Final = 2
"""The Landlock ABI version in which files may be moved to other directories."""
SUPERVISED: Final = syscalls.SECCOMP_FILTER_FLAG_NEW_LISTENER | syscalls.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
"""The flags of the filter of a step with a supervisor."""
_ALLOW_ALL: Final = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
"""A filter of one instruction (linux/filter.h): BPF_RET SECCOMP_RET_ALLOW."""
_CONFINED: Final = (
    "let it have no AppArmor profile that denies mounts, as the usual ones do: securityContext.appArmorProfile.type: "
    "Unconfined (Kubernetes), --security-opt apparmor=unconfined (Docker)"
)
_FILE_CAPABILITIES: Final = (
    "in a container: setcap cap_setuid=ep {uid} && setcap cap_setgid=ep {gid} && chmod u-s {uid} {gid}, and let "
    "programs gain privileges (Kubernetes: allowPrivilegeEscalation)"
)
_HELPERS: Final = (
    "apt-get install uidmap (Debian, Ubuntu), dnf install shadow-utils (Fedora), apk add shadow-subids (Alpine)"
)
NO_MODE: Final = "run as root, or as an ordinary user where user namespaces are allowed"
_FILTERED: Final = (
    "let the container have a seccomp profile that allows user namespaces and mounts, as Podman's does; or none, which "
    "is no privilege: securityContext.seccompProfile.type: Unconfined (Kubernetes), --security-opt seccomp=unconfined "
    "(Docker); or as root CAP_SYS_ADMIN"
)


class ModeUnavailableError(Exception):
    """Why a mode cannot be used, and the remedy."""

    def __init__(self, why: str, remedy: str = NO_MODE) -> None:
        super().__init__(why)
        self.why = why
        self.remedy = remedy


def requested(name: str = "") -> IsolationMode | None:
    """Return the mode called ``name``; for "", that of ``$KANIFOLD_ISOLATION``. None for the first one that works.

    Raises UsageError for a name that no mode has.
    """
    name = name or os.environ.get(VARIABLE, "")
    if name in ("", "auto"):
        return None
    try:
        return IsolationMode(name)
    except ValueError:
        raise UsageError(
            f"no isolation mode is called {name!r}", remedy=f"use auto, {', '.join(IsolationMode)}"
        ) from None


def enter(name: str = "") -> Isolation:
    """Move this process to the first mode that works, or the one ``requested``. Mounts that it makes are private then.

    In the modes ``mapped`` and ``single`` it is root afterwards, in its own user namespace. Raises EnvironmentUnfit
    when no mode works, or when this process has several threads.
    """
    threads.check_single("isolate build steps here")
    wanted = requested(name)
    skipped: list[str] = []
    for mode in (wanted,) if wanted else IsolationMode:
        try:
            limit = climb(mode)
        except ModeUnavailableError as unusable:
            skipped.append(f"{mode}: {unusable.why}")
            remedy = unusable.remedy
        else:
            return Isolation(mode, limit, tuple(skipped))
    raise EnvironmentUnfit("cannot isolate build steps here", why="; ".join(skipped), remedy=remedy)


# -- climbing --------------------------------------------------------------------------------------------------------


def climb(mode: IsolationMode) -> int:
    """Move this process to ``mode``; return how many ids there are. Raises ModeUnavailableError."""
    return _MODES[mode]()


def _namespaces() -> int:
    if os.geteuid() != 0:
        raise ModeUnavailableError("this is not root")
    if syscalls.capget()[0] & _NEEDED != _NEEDED:
        raise ModeUnavailableError("root here lacks capabilities: CAP_SYS_ADMIN, CAP_SETUID and CAP_CHOWN are needed")
    _enter_mount_namespace()
    return id_limit()


def _mapped() -> int:
    """Enter a user namespace whose ids from 1 on are the user's subordinate ids, written by the set-user-id helpers.

    Root of a container that may set ids needs no helper: it maps all ids that it has.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        held = syscalls.capget()[0]
        if not held & 1 << syscalls.CAP_SETUID or not held & 1 << syscalls.CAP_SETGID:
            raise ModeUnavailableError("root here lacks CAP_SETUID or CAP_SETGID")
        _enter_user_namespace(map_identity)
        return id_limit()

    helpers = {kind: find(f"new{kind}map") for kind in ("uid", "gid")}
    for kind, helper in helpers.items():
        if not helper:
            raise ModeUnavailableError(f"there is no new{kind}map", _HELPERS)
    ranges = {kind: _subordinate(f"/etc/sub{kind}", uid) for kind in helpers}
    for kind, found in ranges.items():
        if not found:
            remedy = f"as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {_name(uid)}"
            raise ModeUnavailableError(f"this user has no range of ids in /etc/sub{kind}", remedy)

    def write(pid: int) -> None:
        for kind, own in (("uid", uid), ("gid", gid)):
            line = [0, own, 1]
            first = 1
            for start, count in ranges[kind]:
                line += [first, start, count]
                first += count
            try:
                _run([helpers[kind], str(pid), *map(str, line)])
            except OSError as error:
                remedy = _FILE_CAPABILITIES.format(**helpers)
                raise ModeUnavailableError(f"a user namespace: {error}", remedy) from error

    _enter_user_namespace(write)
    return id_limit()


def _single() -> int:
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 and not syscalls.capget()[0] & 1 << syscalls.CAP_SETFCAP:  # user_namespaces(7), Linux 5.12
        raise ModeUnavailableError("root here lacks CAP_SETFCAP", "run as an ordinary user")
    if _ptrace_scope() == "3":  # ptrace(2); then nobody reads the memory of another process
        raise ModeUnavailableError(
            "owners cannot be recorded where kernel.yama.ptrace_scope is 3",
            "set it to 2 or less when the host starts; it cannot be lowered later",
        )

    def write(pid: int) -> None:
        write_map(f"/proc/{pid}/setgroups", "deny")
        write_map(f"/proc/{pid}/uid_map", f"0 {uid} 1")
        write_map(f"/proc/{pid}/gid_map", f"0 {gid} 1")

    _enter_user_namespace(write)
    return 1


def _chroot() -> int:
    """Check what steps in a chroot need; nothing is entered."""
    if os.geteuid() != 0:
        raise ModeUnavailableError("this is not root", unfit_remedy())
    held = syscalls.capget()[0]
    if lacking := [name for name, each in _CHROOT_NEEDS.items() if not held & 1 << each]:
        raise ModeUnavailableError(f"root here lacks {', '.join(lacking)}", unfit_remedy())
    if syscalls.landlock_version() < _CONFINING:
        why = "there is no Landlock that keeps steps from other processes (Linux 5.19 with Landlock enabled)"
        raise ModeUnavailableError(why, unfit_remedy())
    if why := in_child(_confine):
        raise ModeUnavailableError(why, unfit_remedy())
    scope = _ptrace_scope()
    if scope == "3" or (scope == "2" and not held & 1 << syscalls.CAP_SYS_PTRACE):
        why = f"the memory of steps cannot be read where kernel.yama.ptrace_scope is {scope}"
        raise ModeUnavailableError(why, _UNTRACEABLE[scope])
    return id_limit()


def _confine() -> None:
    """Do what a step in a chroot does to itself. Raises OSError."""
    os.chroot("/")
    syscalls.no_new_privileges()
    syscalls.landlock_confine(0)
    syscalls.seccomp_filter(_ALLOW_ALL, SUPERVISED)


def _answered() -> int:
    """Check what steps need whose path calls are answered, and give up all capabilities, where there are any.

    With them the files of layers would get owners and permissions that keep a step's supervisor, which has none, away.
    """
    if os.uname().machine not in _TRACEABLE:
        raise ModeUnavailableError(f"the registers of {os.uname().machine} are not known", unfit_remedy())
    for check, what in ((_trace, "tracing a process"), (_listen, "a seccomp filter with a listener")):
        if why := in_child(check):
            remedy = _NEWER if check is _listen and os.strerror(errno.EINVAL) in why else unfit_remedy()
            if check is _trace and (scope := _ptrace_scope()) in _UNTRACEABLE:
                why += f" (kernel.yama.ptrace_scope is {scope})"
                remedy = _UNTRACEABLE[scope] if remedy == NO_MODE else f"{remedy}; or {_UNTRACEABLE[scope]}"
            raise ModeUnavailableError(f"{what}: {why}", remedy)
    syscalls.capset(0, 0, 0)
    return _ALL_IDS


def _ptrace_scope() -> str:
    """Return whom Yama lets trace others (ptrace(2), "/proc/sys/kernel/yama/ptrace_scope"); "" without Yama."""
    with contextlib.suppress(OSError):
        return _read(_YAMA).strip()
    return ""


def _listen() -> None:
    """Install the filter of a step. Raises OSError: EINVAL before Linux 5.19."""
    syscalls.no_new_privileges()
    syscalls.seccomp_filter(_ALLOW_ALL, SUPERVISED)


def _trace() -> None:
    """Trace a child, and read its memory. Raises OSError."""
    waiting, release = os.pipe()
    child = syscalls.fork(0)
    if child == 0:
        os.close(release)
        os.read(waiting, 1)
        os._exit(0)
    try:
        syscalls.ptrace(syscalls.PTRACE_SEIZE, child, 0, syscalls.PTRACE_O_EXITKILL)
        os.close(os.open(f"/proc/{child}/mem", os.O_RDWR | os.O_CLOEXEC))
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(waiting)
        os.close(release)


def in_child(function: Callable[[], None]) -> str:
    """Call ``function`` in a child of this process; return its OSError, or ""."""
    read, write = os.pipe()
    child = syscalls.fork(0)
    if child == 0:
        try:
            function()
        except OSError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8", errors="replace") as answer:
        why = answer.read()
    os.waitpid(child, 0)
    return why


_MODES: Final[dict[IsolationMode, Callable[[], int]]] = {
    IsolationMode.NAMESPACES: _namespaces,
    IsolationMode.MAPPED: _mapped,
    IsolationMode.SINGLE: _single,
    IsolationMode.CHROOT: _chroot,
    IsolationMode.ANSWERED: _answered,
}


def _enter_user_namespace(write: Callable[[int], None]) -> None:
    """Enter a user namespace whose id maps are written by ``write``, and a mount namespace in it.

    The namespace is made by a child and entered when it is complete, so that a map which cannot be written leaves this
    process as it was (without a map, all files belong to nobody and overlay returns EACCES). Maps of more than one id
    must be written from outside.
    """
    read, hold = os.pipe()
    try:
        try:
            child = syscalls.fork(syscalls.CLONE_NEWUSER)
        except OSError as error:
            raise ModeUnavailableError(f"a user namespace: {error.strerror}", _user_namespaces_remedy(error)) from error
        if child == 0:
            os.close(hold)
            os.read(read, 1)  # until the parent is done or has died
            os._exit(0)
        try:
            write(child)
            namespace = os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            try:
                syscalls.setns(namespace, syscalls.CLONE_NEWUSER)
            finally:
                os.close(namespace)
        except OSError as error:
            raise ModeUnavailableError(f"a user namespace: {error}", _user_namespaces_remedy(error)) from error
        finally:
            os.close(hold)
            hold = -1
            os.waitpid(child, 0)
    finally:
        os.close(read)
        if hold != -1:
            os.close(hold)
    _enter_mount_namespace()


def _enter_mount_namespace() -> None:
    """Enter a new mount namespace with private propagation."""
    try:
        mount_namespace.enter_mount_namespace()
    except OSError as error:
        raise ModeUnavailableError(f"a mount namespace: {error}", _user_namespaces_remedy(error)) from error


def map_identity(pid: int) -> None:
    """Map all ids that this process has to themselves in the user namespace of process ``pid``. Raises OSError."""
    for kind in ("uid", "gid"):
        lines = (line.split() for line in _read(f"/proc/self/{kind}_map").splitlines())
        write_map(f"/proc/{pid}/{kind}_map", "\n".join(f"{first} {first} {count}" for first, _, count in lines))


def write_map(path: str, text: str) -> None:
    """Write a file of /proc with a single write(2), as the kernel requires (user_namespaces(7))."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def id_limit() -> int:
    """Return how many consecutive ids from 0 this user namespace maps: users or groups, whichever are fewer."""
    limits = []
    for kind in ("uid", "gid"):
        limit = 0
        for first, _, count in sorted(
            tuple(map(int, line.split())) for line in _read(f"/proc/self/{kind}_map").splitlines()
        ):
            if first == limit:
                limit += count
        limits.append(limit)
    return min(limits)


# -- remedies ----------------------------------------------------------------------------------------------------------


def _user_namespaces_remedy(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "as root: sysctl user.max_user_namespaces=15000 (0, or too few, are allowed now)"
    return unfit_remedy()


def unfit_remedy() -> str:
    """Return the remedy for a host that forbids mounting in own namespaces: the setting that forbids it, if known."""
    for setting, forbidding, allowing in (
        ("user.max_user_namespaces", "0", "15000"),
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ):
        try:
            if _read(f"/proc/sys/{setting.replace('.', '/')}").strip() == forbidding:
                return f"as root: sysctl {setting}={allowing} (it is {forbidding} now)"
        except OSError:
            continue
    found = []
    with contextlib.suppress(OSError):
        if "\nSeccomp:\t2\n" in _read("/proc/self/status"):  # proc_pid_status(5)
            found.append(_FILTERED)
    with contextlib.suppress(OSError, ValueError):  # without AppArmor
        if _read("/proc/self/attr/apparmor/current").strip().endswith("(enforce)"):
            found.append(_CONFINED)
    return "; ".join(found) or NO_MODE


# -- helpers of the ordinary user ------------------------------------------------------------------------------------


def _subordinate(path: str, uid: int) -> list[tuple[int, int]]:
    """Return the (first id, count) ranges of a user in /etc/subuid or /etc/subgid (subuid(5)), by name or number."""
    try:
        lines = _read(path).splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        owner, _, numbers = line.partition(":")
        first, _, count = numbers.partition(":")
        if owner in (_name(uid), str(uid)) and first.isdigit() and count.isdigit() and int(count):
            found.append((int(first), int(count)))
    return found


def _name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def find(program: str) -> str:
    """Return the absolute path of ``program`` on PATH or in the directories of system programs; "" if there is none."""
    for directory in (*os.environ.get("PATH", "").split(":"), "/usr/bin", "/usr/sbin", "/bin", "/sbin"):
        path = f"{directory}/{program}"
        if directory.startswith("/") and os.access(path, os.X_OK):
            return path
    return ""


def _run(argv: list[str]) -> None:
    """Run a helper program. Raises OSError with its stderr when it fails."""
    read, write = os.pipe()
    child = os.posix_spawn(argv[0], argv, {}, file_actions=[(os.POSIX_SPAWN_DUP2, write, 2)])
    os.close(write)
    with open(read, encoding="utf-8", errors="replace") as said:
        words = said.read().strip()
    _, status = os.waitpid(child, 0)
    if status:
        ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        raise OSError(errno.EPERM, words or f"ended with {ended}", argv[0])


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
