"""Control groups of steps (cgroup v2): limits of memory, processes and CPU.

A step with limits, or with a parent group, gets a control group of its own, which the executor makes before it is
started and removes when it has ended; the step's process enters it before anything of the image is accessed. The group
is made in the nearest one, from this process's own upwards, where this process has permission and the kernel delegates
the controllers. For an ordinary user that is what systemd has delegated. cgroup v1 is not supported.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final

from platforms.errors import EnvironmentUnfit

ROOT: Final = "/sys/fs/cgroup"
_MOUNTS: Final = "/proc/self/mountinfo"
_OWN: Final = "/proc/self/cgroup"
_PREFIX: Final = "kanifold-"
REMEDY: Final = (
    "as an ordinary user: systemd-run --user --scope -p Delegate=yes kanifold …; in a container: have a writable "
    f"cgroup v2 at {ROOT}; or build without --resource and --cgroup-parent"
)


@contextlib.contextmanager
def group(parent: str, wanted: tuple[tuple[str, str], ...]) -> Iterator[str]:
    """Make a group with ``make`` for the length of the block; "" when nothing is requested. Raises EnvironmentUnfit."""
    if not parent and not wanted:
        yield ""
        return
    made = make(parent, wanted)
    try:
        yield made
    finally:
        remove(made)


def make(parent: str, wanted: tuple[tuple[str, str], ...]) -> str:
    """Make a group below ``parent`` ("": the nearest where it is possible), write the files ``wanted``, return its
    path.

    Raises EnvironmentUnfit.
    """
    controllers = {name.partition(".")[0] for name, _ in wanted}
    top, own = _hierarchy()
    reasons: list[str] = []
    for place in (f"{top}/{parent}",) if parent else _upwards(top, own):
        try:
            if parent:
                _descend(top, parent, controllers)
            if reason := _delegate(place, controllers):
                reasons.append(reason)
                continue
            _remove_stale(place)
            return _create(place, wanted)
        except OSError as error:
            reasons.append(f"{error.filename or place}: {error.strerror}")
    raise _unfit("; ".join(dict.fromkeys(reasons)))


def probe() -> str:
    """Try whether steps can be limited in memory and processes. Returns "", or why not."""
    try:
        remove(make("", (("memory.max", "max"), ("pids.max", "max"))))
    except EnvironmentUnfit as unfit:
        return unfit.problem.why
    return ""


def enter(group: str) -> None:
    """Move this process into ``group``. Raises OSError."""
    _write(f"{group}/cgroup.procs", "0")


def killed(group: str) -> bool:
    """Whether the kernel has killed a process in ``group`` for lack of memory; False if there is no such group."""
    with contextlib.suppress(OSError), open(f"{group}/memory.events", encoding="ascii") as events:
        for line in events:
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count) > 0
    return False


def remove(group: str) -> None:
    """Remove ``group``; its processes must have ended."""
    with contextlib.suppress(OSError):
        os.rmdir(group)


# -- where -----------------------------------------------------------------------------------------------------------


def _hierarchy() -> tuple[str, str]:
    """Return the mount point of cgroup v2, and the path of our own group in it: "" or starting with a slash."""
    with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            fields, _, rest = line.partition(" - ")
            if rest.startswith("cgroup2 "):
                top = fields.split()[4]
                break
        else:
            raise _unfit("there is no cgroup v2 here")
    own = ""
    with open(_OWN, encoding="utf-8", errors="surrogateescape") as groups:
        for line in groups:
            if line.startswith("0::"):
                own = line[3:].rstrip("\n").rstrip("/")
    if ".." in own.split("/"):  # outside of our cgroup namespace
        own = ""
    return top, own


def _upwards(top: str, own: str) -> list[str]:
    """Return the directory of our own group and of its parents, up to the root."""
    parts = own.split("/")
    return [top + "/".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _descend(top: str, parent: str, controllers: set[str]) -> None:
    """Make the group ``parent`` if necessary, with its ancestors delegating ``controllers``. Raises OSError."""
    place = top
    for name in parent.split("/"):
        _delegate(place, controllers)
        place = f"{place}/{name}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(place)


def _delegate(place: str, controllers: set[str]) -> str:
    """Delegate ``controllers`` to the groups in ``place``. Returns which are not available, as a sentence, or "".

    Raises OSError.
    """
    if missing := controllers - set(_read(f"{place}/cgroup.controllers")):
        return f"{place} has no controller {', '.join(sorted(missing))}"
    for controller in sorted(controllers - set(_read(f"{place}/cgroup.subtree_control"))):
        _write(f"{place}/cgroup.subtree_control", f"+{controller}")
    return ""


def _create(place: str, wanted: tuple[tuple[str, str], ...]) -> str:
    for number in range(1 << 16):
        group = f"{place}/{_PREFIX}{os.getpid()}-{number}"
        try:
            os.mkdir(group)
        except FileExistsError:
            continue
        try:
            for name, text in wanted:
                _write(f"{group}/{name}", text)
        except OSError:
            remove(group)
            raise
        return group
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)


def _remove_stale(place: str) -> None:
    """Remove groups that killed executors have left. One with processes cannot be removed."""
    for name in os.listdir(place):
        pid = name.removeprefix(_PREFIX).partition("-")[0]
        if name.startswith(_PREFIX) and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            remove(f"{place}/{name}")


def _read(path: str) -> list[str]:
    with open(path, encoding="ascii") as file:
        return file.read().split()


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = f"{path} ({text})"
        raise
    finally:
        os.close(fd)


def _unfit(why: str) -> EnvironmentUnfit:
    return EnvironmentUnfit("cannot bound the resources of steps here", why=why, remedy=REMEDY)
