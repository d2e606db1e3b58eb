"""Turning a forked process into a step: root file system, privileges, program.

Everything here happens in the step's own process, process 1 of a new pid namespace. It ends in execve or reports why it
could not; see ``prepare``, which is done in advance, and ``become``.

Before names are resolved that the image controls (the working directory, the program, its interpreter), this process
holds nothing that leads to the host: no descriptor, no working directory, and, while the kernel resolves, no executable
(``starter``). The links of /proc would lead there otherwise.

Nothing is imported meanwhile, as that could come from the image: all modules are loaded with this one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import signal
import socket
import stat
from collections.abc import Callable
from typing import Final, NoReturn, assert_never

import msgspec

from executor.sandbox import cgroup, network, roots, staging, targets
from executor.sandbox.report import FD, NOT_EXECUTABLE, NOT_FOUND, NOT_SET_UP, StartReporter, error_text
from executor.sandbox.spec import Bind, BindFd, Mount, ScriptFile, SecretFile, Spec, Tmpfs
from executor.step_options import DEFAULT_SHM_SIZE
from platforms import syscalls
from platforms.descriptors import close_others

CAPABILITIES: Final = (
    syscalls.CAP_CHOWN,
    syscalls.CAP_DAC_OVERRIDE,
    syscalls.CAP_FOWNER,
    syscalls.CAP_FSETID,
    syscalls.CAP_KILL,
    syscalls.CAP_SETGID,
    syscalls.CAP_SETUID,
    syscalls.CAP_SETPCAP,
    syscalls.CAP_NET_BIND_SERVICE,
    syscalls.CAP_NET_RAW,
    syscalls.CAP_SYS_CHROOT,
    syscalls.CAP_MKNOD,
    syscalls.CAP_AUDIT_WRITE,
    syscalls.CAP_SETFCAP,
)
"""The capabilities of root in a container of Docker."""

_WORSE: Final = 500
_WORST: Final = 1000
"""The increment of oom_score_adj of a step over ours, and its maximum (1000 corresponds to all memory)."""

NO_ID: Final = (1 << 32) - 1


TRACED: Final = b"traced"
"""What a tracer answers when it traces the step."""


class RefusedError(Exception):
    """The step cannot be started because of the step or its image: the exit code and the reason."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class UnfitError(Exception):
    """The step cannot be started because this host does not allow it."""


class Foreign(msgspec.Struct, frozen=True):
    """The programs that a step's tracer starts by an emulator."""

    architecture: str
    emulator: str
    """Its path in the root of every step."""


class Rules(msgspec.Struct, frozen=True):
    """What all steps of a zygote have in common."""

    single: bool
    """The user namespace has a single id. Changes of owner by root are handled by a supervisor, and a step that runs as
    another user gets a user namespace in which the single id has the requested number."""
    filters: dict[tuple[bool, bool], bytes]
    """The seccomp filters, by whether the step is insecure, and whether it has a supervisor."""

    network: network.Network
    """The network that an isolated step joins."""
    sniffs: bool
    """Whether CAP_NET_RAW is effective in the host's network."""
    scoped: bool
    """Whether Landlock can keep steps from abstract sockets and processes outside of their domain."""
    sees_others: bool
    """Whether the /proc of steps shows processes that are not theirs."""
    foreign: Foreign | None
    """What tracers start; None if steps have no tracer."""

    def supervised(self, spec: Spec) -> bool:
        return self.single and not spec.uid and not spec.gid


class Beside(msgspec.Struct, frozen=True):
    """The processes beside a step, by sockets."""

    supervisor: socket.socket | None = None
    """It gets the listener of the filter, the root directory and the mount namespace."""
    tracer: socket.socket | None = None
    """It gets the mount namespace, and answers TRACED, or why it cannot trace the step."""

    def descriptors(self) -> tuple[int, ...]:
        return tuple(each.fileno() for each in (self.supervisor, self.tracer) if each is not None)


class Profile(msgspec.Struct, frozen=True):
    """What must be known of a step to prepare a process for it."""

    network: str
    """As in ``Spec``: for ``none`` the process is in a namespace of its own, for ``isolated`` it holds what it
    joins."""
    insecure: bool
    shm_size: int

    @classmethod
    def of(cls, spec: Spec) -> Profile:
        return cls(spec.network, spec.insecure, spec.options.shm_size or DEFAULT_SHM_SIZE)


class PreparedStep(msgspec.Struct, frozen=True):
    """A process that can become a step."""

    proc: int
    """The device number of its /proc."""
    own_proc: int
    """A descriptor of its own directory in /proc."""
    null: int
    """A descriptor of its own /dev/null, open for reading."""
    starter: int
    """A descriptor of the starter; not FD, which the report will be."""


def prepare(shape: Profile) -> PreparedStep:
    """Do what a new process can do before it knows its step. Raises OSError."""
    # 1. The process: killed with its parent, and with default attributes.
    syscalls.die_with_parent()
    os.setsid()
    for each in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)
    os.umask(0o022)
    if shape.network == "none":
        with contextlib.suppress(PermissionError):  # root of a container without CAP_NET_ADMIN
            network.bring_up_loopback()

    # 2. The parts of its root, in the staging tmpfs, independent of any image.
    staging.mount_proc()
    _volunteer()
    proc = os.stat(staging.PROC).st_dev
    own_proc = os.open(f"{staging.PROC}/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if not shape.insecure:
        staging.mask_proc()
    staging.mount_dev(shape.shm_size)
    staging.mount_files()
    null = os.open(f"{staging.DEV}/null", os.O_RDONLY | os.O_CLOEXEC)
    with_any_number = os.open(staging.STARTER, os.O_PATH | os.O_CLOEXEC)
    starter = fcntl.fcntl(with_any_number, fcntl.F_DUPFD_CLOEXEC, FD + 1)
    os.close(with_any_number)
    return PreparedStep(proc, own_proc, null, starter)


def become(
    spec: Spec,
    prepared: PreparedStep,
    output: tuple[int, int],
    rules: Rules,
    beside: Beside,
    report: StartReporter,
) -> NoReturn:
    """Turn this process, prepared for the profile of ``spec``, into the step.

    ``output``: stdout and stderr. Raises RefusedError, UnfitError, and OSError for anything else.
    """
    # 3. Ids with a special meaning: -1 means "unchanged", which is root (CVE-2024-40635).
    for each in (spec.uid, spec.gid, *spec.groups):
        if not 0 <= each < NO_ID:
            raise RefusedError(NOT_SET_UP, f"{each} is no user or group id")

    if spec.cgroup:
        try:
            cgroup.enter(spec.cgroup)
            syscalls.unshare(syscalls.CLONE_NEWCGROUP)  # the group is the root as the step sees it
        except OSError as error:
            raise UnfitError(f"cannot enter the control group {spec.cgroup}: {error.strerror}") from error
    shared = rules.network.join() if spec.network == "isolated" else ""
    own_network = spec.network == "none" or (spec.network == "isolated" and not shared)

    # 4. The parts are moved to their targets, resolved within the root.
    with contextlib.suppress(PermissionError):  # Podman's seccomp profile: it is the container's then
        syscalls.sethostname(spec.hostname)
    try:
        root, written = roots.mount(spec.rootfs)
    except OSError as error:
        raise UnfitError(f"cannot mount {roots.described(spec.rootfs)}: {error.strerror}") from error
    tree = targets.Root(root, written, prepared.proc)
    try:
        for target, attach in _placements(spec, own_network):
            attach(tree, target)
        if rules.single and tree.has_directory(_APT_SETTINGS):
            _file(b'APT::Sandbox::User "root";\n')(tree, f"{_APT_SETTINGS}/zz-one-user")
    finally:
        report.mounted(tree, shared)

    # 5. The new root; the host's tree is unmounted.
    os.fchdir(root)
    _change_root()
    os.chdir("/")

    # 6. Standard streams, and no other descriptor that leads outside.
    stdin = in_memory(spec.stdin) if spec.stdin else prepared.null
    for number, fd in enumerate((stdin, *output)):
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            give_stream(fd, spec.uid)
        os.dup2(fd, number)
    kept = (report.fd, prepared.starter)
    close_others(*kept, prepared.own_proc, *beside.descriptors())
    enter_directory(spec.cwd, prepared.proc)

    # 7. Privileges: the filter while it may be installed, limits, then capabilities and ids, irreversibly.
    supervisor = beside.supervisor
    if beside.tracer is not None:
        mounts = os.open("ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=prepared.own_proc)
        be_traced(beside.tracer, mounts)
        os.close(mounts)
    if rules.single and supervisor is None:
        _renumber(prepared.own_proc, spec.uid, spec.gid)
    if rules.scoped and (rules.sees_others or not spec.insecure):
        syscalls.landlock_scope(syscalls.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | syscalls.LANDLOCK_SCOPE_SIGNAL)
    elif rules.sees_others and not spec.insecure:
        syscalls.landlock_domain()
    if code := rules.filters[spec.insecure, supervisor is not None]:
        if supervisor is None:
            syscalls.seccomp_filter(code)
        else:
            listener = syscalls.seccomp_filter(code, syscalls.SECCOMP_FILTER_FLAG_NEW_LISTENER)
            root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            mounts = os.open("ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=prepared.own_proc)
            socket.send_fds(supervisor, [b"listener"], [listener, root, mounts])
    for name, soft, hard in spec.options.ulimits:
        set_limit(name, soft, hard)
    drop_capabilities(_capabilities(spec.insecure, sniffing=own_network or not rules.sniffs))
    if not rules.single:
        change_user(spec)
    syscalls.die_with_parent()  # again: cleared by the change of ids

    # 8. The program.
    close_others(*kept)
    program = find_program(spec.argv, spec.env)
    report.executing(program)
    _execute(prepared.starter, program, spec.argv, spec.env)


# -- mounts ----------------------------------------------------------------------------------------------------------

_APT_SETTINGS: Final = "/etc/apt/apt.conf.d"
"""apt verifies that it has become the user _apt for downloads. Where no other user exists, that is disabled by a
settings file that only the step sees."""

_Attach = Callable[[targets.Root, str], None]


def _placements(spec: Spec, own_network: bool) -> list[tuple[str, _Attach]]:
    """Return all mounts of the step, parents first; of several for one target, the last."""
    system: dict[str, _Attach] = {
        "/proc": _moving(staging.PROC),
        "/sys": _sys_writable if spec.insecure else _sys_of_own_network if own_network else _SYS,
        "/dev": _moving(staging.DEV),
        "/etc/resolv.conf": _file(network.resolv_conf(spec.network == "isolated" and own_network)),
        "/etc/hosts": _file(hosts_file(spec)),
    }
    placements = {normal_target(target): attach for target, attach in system.items()}
    for mount in spec.mounts:
        target = normal_target(mount.target)
        if target == "/":
            raise RefusedError(NOT_SET_UP, "cannot mount over the root directory")
        placements.pop(target, None)
        placements[target] = _attaching(mount)
        if target == "/dev":  # which hides the programs that are there
            for path, program in staging.emulators().items():
                placements[path] = _attaching(Bind(program, path, readonly=True))
    return sorted(placements.items(), key=lambda each: each[0].count("/"))


def normal_target(target: str) -> str:
    return "/" + "/".join(part for part in target.split("/") if part not in ("", "."))


def _attaching(mount: Mount) -> _Attach:
    def attach(root: targets.Root, target: str) -> None:
        try:
            match mount:
                case Bind():
                    _bind(root, mount)
                case BindFd():
                    _bind_fd(root, mount)
                case Tmpfs():
                    _tmpfs(root, mount)
                case SecretFile():
                    _secret(root, mount)
                case ScriptFile():
                    _secret(root, SecretFile(mount.target, mount.data, mode=0o755))
                case _:
                    assert_never(mount)
        except OSError as error:
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            raise RefusedError(NOT_SET_UP, f"cannot mount on {mount.target}: {what}") from error

    return attach


def _moving(path: str) -> _Attach:
    """Move what is at ``path`` in the staging tmpfs to the target."""

    def attach(root: targets.Root, target: str) -> None:
        try:
            place = root.locate(target, directory=True)
        except OSError as error:
            raise RefusedError(NOT_SET_UP, f"cannot mount on {target}: {error.strerror}") from error
        syscalls.move_mount(syscalls.AT_FDCWD, path, place, "", syscalls.MOVE_MOUNT_T_EMPTY_PATH)
        os.close(place)

    return attach


def _sys_writable(root: targets.Root, target: str) -> None:
    tree = syscalls.open_tree(syscalls.AT_FDCWD, "/sys", _CLONE | syscalls.AT_RECURSIVE)
    _attach(root, tree, target)
    os.close(tree)


_SYS: Final = _moving(staging.SYS)


def _sys_of_own_network(root: targets.Root, target: str) -> None:
    """Mount a /sys of the step's own network, in which /sys/class/net does not show the host's."""
    context = syscalls.fsopen("sysfs")
    try:
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        quiet = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
        tree = syscalls.fsmount(context, quiet)
    except PermissionError:  # in a container that hides parts of /sys, which a new one would show
        _SYS(root, target)
        return
    finally:
        os.close(context)
    syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH, add=syscalls.MOUNT_ATTR_RDONLY)
    shelf = f"{staging.FILES}/sys"
    os.mkdir(shelf)
    syscalls.move_mount(tree, "", syscalls.AT_FDCWD, shelf, syscalls.MOVE_MOUNT_F_EMPTY_PATH)
    os.close(tree)
    staging.complete_sys(shelf)
    _moving(shelf)(root, target)


def _file(data: bytes) -> _Attach:
    """Bind a file in memory, to which the step may write."""

    def attach(root: targets.Root, target: str) -> None:
        mount = _file_in_memory(data, 0o644)
        try:
            _attach(root, mount, target)
        except OSError as error:
            raise RefusedError(NOT_SET_UP, f"cannot mount on {target}: {error.strerror}") from error
        os.close(mount)

    return attach


_CLONE: Final = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | syscalls.AT_NO_AUTOMOUNT


def _bind(root: targets.Root, mount: Bind) -> None:
    flags = _CLONE | syscalls.AT_RECURSIVE | syscalls.AT_SYMLINK_NOFOLLOW
    tree = syscalls.open_tree(syscalls.AT_FDCWD, mount.source, flags)
    _attach(root, tree, mount.target, readonly=mount.readonly)
    os.close(tree)


def _bind_fd(root: targets.Root, mount: BindFd) -> None:
    if not mount.inside.strip("/"):
        _attach(root, mount.fd, mount.target, readonly=mount.readonly)
        return
    shelf = f"{staging.FILES}/{len(os.listdir(staging.FILES))}"
    os.mkdir(shelf)
    syscalls.move_mount(mount.fd, "", syscalls.AT_FDCWD, shelf, syscalls.MOVE_MOUNT_F_EMPTY_PATH)
    resolve = syscalls.IN_ROOT
    part = syscalls.openat2(mount.fd, mount.inside, os.O_PATH, resolve=resolve)
    tree = syscalls.open_tree(part, "", _CLONE | syscalls.AT_RECURSIVE | syscalls.AT_EMPTY_PATH)
    _attach(root, tree, mount.target, readonly=mount.readonly)
    os.close(part)
    os.close(tree)


def _tmpfs(root: targets.Root, mount: Tmpfs) -> None:
    mode = mount.mode if mount.mode is not None else root.mode_of(mount.target)
    context = syscalls.fsopen("tmpfs")
    syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "source", "tmpfs")
    syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "mode", f"{0o1777 if mode is None else mode:o}")
    if mount.size:
        syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "size", str(mount.size))
    syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
    tree = syscalls.fsmount(context, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV)
    os.close(context)
    _attach(root, tree, mount.target)
    os.close(tree)


def _secret(root: targets.Root, mount: SecretFile) -> None:
    tree = _file_in_memory(mount.data, mount.mode, mount.uid, mount.gid)
    _attach(root, tree, mount.target, readonly=True)
    os.close(tree)


def _file_in_memory(data: bytes, mode: int, uid: int = 0, gid: int = 0) -> int:
    """Return a detached mount of one file that only this step can see."""
    path = f"{staging.FILES}/{len(os.listdir(staging.FILES))}"
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        with contextlib.suppress(OSError):  # ids that are not mapped, which the step cannot have either
            os.fchown(fd, uid, gid)
        os.fchmod(fd, mode)
    return syscalls.open_tree(syscalls.AT_FDCWD, path, _CLONE)


def _attach(root: targets.Root, tree: int, target: str, *, readonly: bool = False) -> None:
    """Attach the detached mount ``tree`` at ``target`` in the root."""
    add = syscalls.MOUNT_ATTR_NODEV | (syscalls.MOUNT_ATTR_RDONLY if readonly else 0)
    syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE, add=add)
    place = root.locate(target, directory=stat.S_ISDIR(os.fstat(tree).st_mode))
    flags = syscalls.MOVE_MOUNT_F_EMPTY_PATH | syscalls.MOVE_MOUNT_T_EMPTY_PATH
    syscalls.move_mount(tree, "", place, "", flags)
    os.close(place)


def hosts_file(spec: Spec) -> bytes:
    lines = [("127.0.0.1", f"localhost {spec.hostname}"), ("::1", "localhost ip6-localhost ip6-loopback")]
    lines += [(address, name) for name, address in spec.options.hosts]
    return "".join(f"{address}\t{names}\n" for address, names in lines).encode()


# -- the process -----------------------------------------------------------------------------------------------------


def _volunteer() -> None:
    """Make this process the first that the OOM killer selects (proc_pid_oom_score_adj(5))."""
    fd = os.open(f"{staging.PROC}/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
    os.pwrite(fd, b"%d" % min(_WORST, int(os.pread(fd, 16, 0)) + _WORSE), 0)
    os.close(fd)


def _change_root() -> None:
    """Make the working directory, a mount, the root directory, above which there is nothing.

    Docker's seccomp profile has no pivot_root(2), whatever the capabilities. A root that was moved onto the old one
    hides it, as with an initramfs: no path leads below it, and to unmount it takes CAP_SYS_ADMIN, which only
    insecure steps have.
    """
    try:
        syscalls.pivot_root(".", ".")
    except PermissionError:
        syscalls.mount(".", "/", flags=syscalls.MS_MOVE)
        os.chroot(".")
    else:
        syscalls.umount(".", syscalls.MNT_DETACH)


def enter_directory(cwd: str, proc: int) -> None:
    """Change to ``cwd``; it is made if missing. Magic links of /proc are rejected (CVE-2024-21626)."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    resolve = syscalls.IN_ROOT
    try:
        try:
            fd = syscalls.openat2(root, cwd, os.O_PATH | os.O_DIRECTORY, resolve=resolve)
        except FileNotFoundError:
            fd = targets.Root(root, -1, proc).locate(cwd, directory=True, record=False)
        os.fchdir(fd)
    except OSError as error:
        why = f"cannot change to the working directory {cwd}: {os.strerror(error.errno or 0)}"
        raise RefusedError(NOT_SET_UP, why) from error
    os.close(fd)
    os.close(root)


def in_memory(data: bytes) -> int:
    """Return a descriptor of an unnamed file with ``data``, positioned at its start."""
    fd = os.memfd_create("stdin")
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def give_stream(fd: int, uid: int) -> None:
    """Let ``uid`` open the stream again by /dev/stdout and the like, as runc does."""
    with contextlib.suppress(OSError):
        os.fchown(fd, uid, -1)


def be_traced(tracer: socket.socket, *fds: int) -> None:
    """Send ``fds`` to the tracer and wait until it traces this process: while that has the same privileges.

    Where the Yama security module restricts ptrace(2), the tracer is allowed to, though it is no ancestor. Raises
    UnfitError.
    """
    syscalls.allow_tracers(True)
    socket.send_fds(tracer, [b"ready"], fds)
    answer = tracer.recv(1024)
    syscalls.allow_tracers(False)
    if answer != TRACED:
        raise UnfitError(f"cannot trace the step: {answer.decode(errors='replace') or 'its tracer has died'}")


def set_limit(name: str, soft: int, hard: int) -> None:
    number = getattr(resource, f"RLIMIT_{name.upper()}", None)
    if number is None:
        raise RefusedError(NOT_SET_UP, f"unknown ulimit {name}")
    try:
        resource.setrlimit(number, (soft, hard))
    except (OSError, ValueError) as error:
        raise RefusedError(NOT_SET_UP, f"cannot set the ulimit {name} to {soft}:{hard}: {error}") from error


def _capabilities(insecure: bool, sniffing: bool) -> frozenset[int]:
    """Return the capabilities of a step. CAP_NET_RAW in the host's network would allow to read and forge its
    traffic."""
    if insecure:
        return frozenset(range(syscalls.CAP_LAST))
    return frozenset(CAPABILITIES) - (frozenset() if sniffing else {syscalls.CAP_NET_RAW})


def drop_capabilities(kept: frozenset[int]) -> None:
    """Keep only ``kept`` in the permitted, effective and bounding sets; clear the inheritable and ambient sets."""
    mask = sum(1 << each for each in kept)
    effective, permitted, _ = syscalls.capget()
    syscalls.clear_ambient()
    for capability in range(syscalls.CAP_LAST):
        if capability not in kept:
            try:
                syscalls.drop_bounding(capability)
            except OSError as error:
                if error.errno == errno.EINVAL:  # beyond the last capability of this kernel
                    break
                raise
    syscalls.capset(effective & mask, permitted & mask, 0)


def _renumber(proc: int, uid: int, gid: int) -> None:
    """Enter a user namespace in which our single user is ``uid`` and our single group ``gid``."""
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    for name, number in (("uid_map", uid), ("gid_map", gid)):
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        os.write(fd, b"%d 0 1" % number)
        os.close(fd)


def change_user(spec: Spec) -> None:
    try:
        os.setgroups(spec.groups)
        os.setresgid(spec.gid, spec.gid, spec.gid)
        os.setresuid(spec.uid, spec.uid, spec.uid)
    except OSError as error:
        groups = f" with the groups {', '.join(map(str, spec.groups))}" if spec.groups else ""
        why = f"cannot become user {spec.uid}:{spec.gid}{groups}: {error.strerror}"
        if error.errno == errno.EINVAL:
            why += "; the ids that this user may use do not go that far (see /etc/subuid and /etc/subgid)"
        raise RefusedError(NOT_SET_UP, why) from error


def find_program(argv: tuple[str, ...], env: tuple[str, ...]) -> str:
    """Return the path to execute. Raises RefusedError, with Docker's message, if there is none."""
    if not argv or not argv[0]:
        raise RefusedError(NOT_FOUND, "no command given")
    name = argv[0]
    path = name if "/" in name else _look_up(name, environment(env).get("PATH", ""))
    try:
        mode = _mode(path)
    except OSError as error:
        raise RefusedError(NOT_FOUND, f'exec: "{name}": stat {path}: {error_text(error.errno or 0)}') from error
    if stat.S_ISDIR(mode):
        raise RefusedError(NOT_EXECUTABLE, f'exec: "{name}": is a directory')
    if not os.access(path, os.X_OK):
        raise RefusedError(NOT_EXECUTABLE, f'exec: "{name}": permission denied')
    return path


def _look_up(name: str, path: str) -> str:
    there = ""
    for directory in path.split(":"):
        candidate = f"{directory or '.'}/{name}"
        try:
            mode = _mode(candidate)
        except OSError:
            continue
        if not stat.S_ISDIR(mode):
            if os.access(candidate, os.X_OK):
                return candidate
            there = there or candidate
    if there:
        raise RefusedError(NOT_EXECUTABLE, f'exec: "{name}": {there}: permission denied')
    raise RefusedError(NOT_FOUND, f'exec: "{name}": executable file not found in $PATH')


def _mode(path: str) -> int:
    """Return the mode of the file at ``path``; magic links of /proc are rejected with ELOOP."""
    fd = syscalls.openat2(syscalls.AT_FDCWD, path, os.O_PATH, resolve=syscalls.RESOLVE_NO_MAGICLINKS)
    try:
        return os.fstat(fd).st_mode
    finally:
        os.close(fd)


def _execute(starter: int, program: str, argv: tuple[str, ...], env: tuple[str, ...]) -> NoReturn:
    """execve ``program`` by the starter, which reports its failure. Raises RefusedError if it cannot be started."""
    try:
        os.execve(starter, (program, *argv), environment(env))
    except OSError as error:
        raise RefusedError(NOT_EXECUTABLE, f"exec {program}: {error_text(error.errno or 0)}") from error
    except ValueError as error:
        why = f"exec {program}: an argument or a variable cannot be passed to a program: {error}"
        raise RefusedError(NOT_EXECUTABLE, why) from error


def start_program(program: str, spec: Spec) -> NoReturn:
    """execve ``program`` where nothing of the host can be reached by it. Raises RefusedError if it cannot be
    started."""
    try:
        os.execve(program, spec.argv, environment(spec.env))
    except OSError as error:
        code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        raise RefusedError(code, f"exec {program}: {error_text(error.errno or 0)}") from error
    except ValueError as error:
        why = f"exec {program}: an argument or a variable cannot be passed to a program: {error}"
        raise RefusedError(NOT_EXECUTABLE, why) from error


def environment(env: tuple[str, ...]) -> dict[str, str]:
    return dict(each.partition("=")[::2] for each in env)
