"""Containers as CI jobs run in, made by runc on this machine, to try kanifold in.

A container's root is an overlay on this machine's own root file system, so it has the same programs, or on that of an
image; what is written to it is thrown away. It has Docker's masked and read-only paths, capabilities and devices, its
seccomp profile (``executor.sandbox.profile``) or Podman's (from its Debian package), and this machine's network.
``/box`` is a directory of this machine, as a volume is.

    ci/containers                      lists the environments
    ci/containers NAME COMMAND...      runs a command in one; as root
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from executor.sandbox import profile

BOX = "/box"
PODMAN_PROFILE = Path("/usr/share/containers/seccomp.json")
DEFAULT = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
        "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
    )
)  # fmt: skip
"""Docker's default capabilities."""
_SYS_ADMIN = (*DEFAULT, "CAP_SYS_ADMIN")
_WITH_SYS_ADMIN = (
    "bpf", "clone", "clone3", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "lookup_dcookie", "mount",
    "mount_setattr", "move_mount", "open_tree", "perf_event_open", "quotactl", "quotactl_fd", "setdomainname",
    "sethostname", "setns", "syslog", "umount", "umount2", "unshare",
)  # fmt: skip
"""What Docker's profile allows in addition to a container with CAP_SYS_ADMIN."""
_MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap",
    "/sys/firmware",
)  # fmt: skip
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_ARCHES = {
    "x86_64": (0xC000003E, "SCMP_ARCH_X86_64", "SCMP_ARCH_X86"),
    "aarch64": (0xC00000B7, "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
}
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_COMPARISONS = {"=": "SCMP_CMP_EQ", "<": "SCMP_CMP_LT", ">=": "SCMP_CMP_GE", "none": "SCMP_CMP_MASKED_EQ"}


@dataclass(frozen=True)
class Environment:
    """A kind of container."""

    name: str
    meaning: str
    user: int = 0
    capabilities: tuple[str, ...] = DEFAULT
    profile: str = "docker"
    """``docker``, ``podman``, or "" for none."""
    gains: bool = True
    """Whether programs can gain privileges (no_new_privs is off)."""
    readonly: bool = False
    own_ids: bool = False
    """Whether it is in a user namespace of its own. Its ids are those of this machine."""
    joined: str = ""
    """The user namespace that it is in then, a file of nsfs (``/proc/PID/ns/user``); "" for a new one."""


ENVIRONMENTS = {
    each.name: each
    for each in (
        Environment("docker-root", "`docker run IMAGE`; Kubernetes with RuntimeDefault"),
        Environment("docker-user", "`docker run --user 1000 --security-opt no-new-privileges`", 1000, gains=False),
        Environment("k8s-restricted", "Kubernetes' `restricted`, read-only root", 1000, (), gains=False, readonly=True),
        Environment("k8s-drop-all", "root without capabilities, under RuntimeDefault", capabilities=(), gains=False),
        Environment("k8s-root", "Kubernetes without a seccomp profile, its default", profile=""),
        Environment("k8s-user", "the same as user 1000, with newuidmap", 1000, profile=""),
        Environment("podman-root", "`podman run IMAGE` (root's)", profile="podman"),
        Environment("podman-user", "`podman run --user 1000`, with newuidmap", 1000, profile="podman"),
        Environment("k8s-userns", "Kubernetes with `hostUsers: false`", own_ids=True),
        Environment("k8s-userns-sys-admin", "the same with CAP_SYS_ADMIN", capabilities=_SYS_ADMIN, own_ids=True),
        Environment("docker-sys-admin", "`docker run --cap-add SYS_ADMIN IMAGE`", capabilities=_SYS_ADMIN),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Root:
    """What a container's root is an overlay on, and where it has its volume."""

    path: Path = Path("/")
    volume: str = BOX
    options: tuple[str, ...] = ()
    """Options of the volume's mount: ``noexec``, ``nodev`` …"""


class UnavailableError(Exception):
    """Why no container can be made here."""


@dataclass
class Created:
    """A container whose command has not begun. Its first process, ``pid``, is a child of this one."""

    pid: int
    fifo: Path
    returncode: int | None = None

    def start(self) -> None:
        """Begin the command, as ``runc start`` would."""
        self.fifo.read_bytes()  # what the first process opens for writing before it executes the command


def run(
    environment: Environment,
    command: Sequence[str],
    box: Path,
    *,
    root: Root = Root(),
    variables: Mapping[str, str] = {},
    seen: Sequence[Path] = (),
    timeout: float | None = None,
    **how: Any,
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` in a new container, with ``box`` as its volume; ``how`` is for ``subprocess``.

    ``seen``: directories of this machine that it sees at the same place, read-only. Raises ``UnavailableError``.
    """
    with _bundle(environment, command, box, root, variables, seen) as place:
        return subprocess.run(
            _runc(place, root, "run"),
            check=False, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=timeout, **how,
        )  # fmt: skip


@contextlib.contextmanager
def created(
    environment: Environment,
    command: Sequence[str],
    box: Path,
    *,
    root: Root = Root(),
    variables: Mapping[str, str] = {},
    seen: Sequence[Path] = (),
    output: IO[bytes],
) -> Iterator[Created]:
    """A container as ``run`` makes it, whose command is begun by the caller; it is killed at the end of the context.

    The caller waits for its first process (wait4(2)).
    """
    with _bundle(environment, command, box, root, variables, seen) as place:
        written = place / "pid"
        _adopt_orphans(True)  # the container, when runc has ended
        try:
            subprocess.run(
                _runc(place, root, "create", "--pid-file", str(written)),
                check=True, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        finally:
            _adopt_orphans(False)
        yield Created(int(written.read_text()), place / "state" / place.name / "exec.fifo")


def _adopt_orphans(whether: bool) -> None:
    """Let orphaned descendants of this process become its children, or not (prctl(2))."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(whether), 0, 0, 0):
        raise UnavailableError(f"PR_SET_CHILD_SUBREAPER: {os.strerror(ctypes.get_errno())}")


@contextlib.contextmanager
def _bundle(
    environment: Environment,
    command: Sequence[str],
    box: Path,
    root: Root,
    variables: Mapping[str, str],
    seen: Sequence[Path],
) -> Iterator[Path]:
    """A directory, in the one of temporary files, with a bundle for runc and what the container writes."""
    if os.geteuid() != 0:
        raise UnavailableError("needs root")
    for program in ("runc", "unshare"):
        if shutil.which(program) is None:
            raise UnavailableError(f"{program} is not installed (ci/packages installs it on Debian, as root)")
    if environment.user:
        os.chown(box, environment.user, environment.user)
    with tempfile.TemporaryDirectory(prefix="kanifold-container.") as name:
        place = Path(name)
        place.chmod(0o755)
        for directory in ("upper", "work", "root", "bundle", "state"):
            (place / directory).mkdir()
        (place / "upper").chmod(0o755)
        if root.path == Root().path:
            _prepare(place / "upper", environment)
        config = _config(
            environment, command, place / "root", _bind(box, root.volume, "rw", *root.options), variables, seen
        )
        (place / "bundle/config.json").write_text(json.dumps(config))
        try:
            yield place
        finally:
            subprocess.run(
                ["runc", "--root", str(place / "state"), "delete", "--force", place.name],
                check=False,
                capture_output=True,
            )


def _runc(place: Path, root: Root, *words: str) -> list[str]:
    """The command that mounts the container's root and calls runc with ``words`` and the container's name.

    Nothing stays mounted: the overlay is in a mount namespace that ends with runc, or with the container.
    """
    script = (
        "place=$0 lower=$1; shift; mount -t overlay overlay "
        '-o "lowerdir=$lower,upperdir=$place/upper,workdir=$place/work" "$place/root" && '
        'exec runc --root "$place/state" "$@"'
    )
    around = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, str(place), str(root.path)]
    return [*around, *words, "--bundle", str(place / "bundle"), place.name]


def _prepare(upper: Path, environment: Environment) -> None:
    """Write what a container has in its own root: a user with subordinate ids, and helpers that may map them."""
    (upper / "etc").mkdir()
    (upper / "usr/bin").mkdir(parents=True)
    (upper / "tmp").mkdir(mode=0o1777)
    (upper / "tmp").chmod(0o1777)
    os.setxattr(upper / "tmp", "trusted.overlay.opaque", b"y")
    for kind in ("uid", "gid"):
        (upper / f"etc/sub{kind}").write_text("1000:100000:65536\n")
    if not environment.profile or environment.profile == "podman":
        for program, capability in (("newuidmap", 7), ("newgidmap", 6)):
            found = shutil.which(program)
            if found is not None:
                copy = upper / "usr/bin" / program
                shutil.copyfile(found, copy)
                copy.chmod(0o755)
                # linux/capability.h: struct vfs_cap_data, revision 2, effective
                os.setxattr(copy, "security.capability", struct.pack("<5I", 0x02000001, 1 << capability, 0, 0, 0))


def _config(
    environment: Environment,
    command: Sequence[str],
    root: Path,
    volume: dict[str, Any],
    variables: Mapping[str, str],
    seen: Sequence[Path],
) -> dict[str, Any]:
    """Return the config.json of the OCI runtime specification."""
    held = list(environment.capabilities)
    effective = held if environment.user == 0 else []
    variables = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": volume["destination"],
        "LC_ALL": "C.UTF-8", **variables,
    }  # fmt: skip
    quiet = ["nosuid", "noexec", "nodev"]
    mounts = [
        _mount("/proc", "proc", *quiet),
        _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        _mount("/dev/mqueue", "mqueue", *quiet),
        _mount("/dev/shm", "tmpfs", *quiet, "mode=1777", "size=65536k"),
        # A user namespace cannot mount the sysfs of this machine's network.
        _bind(Path("/sys"), "/sys", *quiet, "ro") if environment.own_ids else _mount("/sys", "sysfs", *quiet, "ro"),
        _bind(Path("/etc/resolv.conf"), "/etc/resolv.conf", "ro"),
        # Before what may be below it.
        *([_mount("/tmp", "tmpfs", "nosuid", "nodev", "mode=1777")] if environment.readonly else []),
        volume,
        *(_bind(each, str(each), "ro") for each in seen),
    ]
    if not environment.own_ids:
        mounts.append(_mount("/sys/fs/cgroup", "cgroup", *quiet, "relatime", "ro"))
    linux: dict[str, Any] = {
        "namespaces": [{"type": each} for each in ("mount", "pid", "ipc", "uts")],
        "maskedPaths": _MASKED,
        "readonlyPaths": _READONLY,
        "rootfsPropagation": "rprivate",
    }
    if environment.profile:
        linux["seccomp"] = seccomp(environment)
    if environment.own_ids:
        linux["namespaces"].append({"type": "user"} | ({"path": environment.joined} if environment.joined else {}))
        linux["uidMappings"] = linux["gidMappings"] = [{"containerID": 0, "hostID": 0, "size": 65536}]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "cwd": volume["destination"],
            "args": list(command),
            "env": [f"{name}={value}" for name, value in variables.items()],
            "user": {"uid": environment.user, "gid": environment.user},
            "capabilities": {"bounding": held, "effective": effective, "permitted": effective},
            "noNewPrivileges": not environment.gains,
        },
        "root": {"path": str(root), "readonly": environment.readonly},
        "hostname": "container",
        "mounts": mounts,
        "linux": linux,
    }


def _mount(target: str, kind: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": kind, "options": list(options)}


def _bind(source: Path, target: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": "bind", "source": str(source), "options": ["rbind", "rprivate", *options]}


# -- seccomp ---------------------------------------------------------------------------------------------------------


def seccomp(environment: Environment) -> dict[str, Any]:
    """Return the profile of ``environment`` as the OCI runtime specification has it."""
    machine = os.uname().machine
    if machine not in _ARCHES:
        raise UnavailableError(f"no seccomp profile for {machine}")
    token, *names = _ARCHES[machine]
    rules = list(_podman(environment) if environment.profile == "podman" else _docker(environment, machine, token))
    return {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": names, "syscalls": rules}


def _docker(environment: Environment, machine: str, token: int) -> Iterator[dict[str, Any]]:
    more = _WITH_SYS_ADMIN if "CAP_SYS_ADMIN" in environment.capabilities else ()
    allowed: list[str] = []
    for each in profile.ALLOWED[machine].split():
        first, _, last = each.partition("-")
        allowed += filter(None, (_name(token, number) for number in range(int(first), int(last or first) + 1)))
    yield {"names": [*allowed, *more], "action": "SCMP_ACT_ALLOW"}
    for number, conditions in profile.CONDITIONAL[machine].items():
        if (name := _name(token, number)) and name not in more:
            for index, comparison, value in conditions:
                argument = {"index": index, "op": _COMPARISONS[comparison], "value": value, "valueTwo": 0}
                yield {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [argument]}
    if absent := [name for number in profile.ABSENT.get(machine, ()) if (name := _name(token, number)) not in more]:
        yield {"names": absent, "action": "SCMP_ACT_ERRNO", "errnoRet": 38}


def _name(token: int, number: int) -> str:
    """Return the name of a system call; "" if this libseccomp, which runc asks too, does not know it."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_char_p
    found: bytes | None = library.seccomp_syscall_resolve_num_arch(ctypes.c_uint32(token), number)
    return found.decode() if found else ""


def _podman(environment: Environment) -> Iterator[dict[str, Any]]:
    if not PODMAN_PROFILE.exists():
        raise UnavailableError(f"no {PODMAN_PROFILE} (Debian: golang-github-containers-common, with podman)")
    held = set(environment.capabilities)
    native = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    for rule in json.loads(PODMAN_PROFILE.read_text())["syscalls"]:
        wanted, unwanted = rule.get("includes") or {}, rule.get("excludes") or {}
        if not set(wanted.get("caps") or ()) <= held or set(unwanted.get("caps") or ()) & held:
            continue
        if (wanted.get("arches") and native not in wanted["arches"]) or native in (unwanted.get("arches") or ()):
            continue
        kept = {key: rule[key] for key in ("names", "action", "errnoRet", "args") if rule.get(key) is not None}
        if kept["action"] != "SCMP_ACT_ERRNO":
            kept.pop("errnoRet", None)
        yield kept


def main(words: Sequence[str]) -> int:
    if not words:
        width = max(map(len, ENVIRONMENTS))
        print("\n".join(f"{name:<{width}}  {each.meaning}" for name, each in ENVIRONMENTS.items()))
        return 0
    if words[0] not in ENVIRONMENTS:
        print(f"no such environment: {words[0]}", file=sys.stderr)
        return 2
    box = Path(tempfile.mkdtemp(prefix="kanifold-box."))
    box.chmod(box.stat().st_mode | stat.S_IROTH | stat.S_IXOTH)
    try:
        seen = [each for each in (Path(sys.prefix), Path(__file__).resolve().parents[1]) if each != Path("/usr")]
        return run(ENVIRONMENTS[words[0]], words[1:] or ["sh"], box, seen=seen).returncode
    except UnavailableError as error:
        print(f"ci/containers: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(box, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
