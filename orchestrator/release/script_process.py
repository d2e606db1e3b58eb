"""The process of a test script: runs it with the image's root file system mounted read-only, until nothing is left.

    python -I script_process.py ROOT PROGRAM [ARGUMENT]...

The mount is in a mount namespace of the script's own, and of a user namespace with the user's own ids where this user
may not mount. Where neither can be made, the files are a copy all the same, which is thrown away afterwards.

When the script ends, or has been told to (SIGTERM), every process that it has left is killed, also one in a session of
its own: this process adopts them (prctl(2), PR_SET_CHILD_SUBREAPER).
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import NoReturn

GRACE = 0.5
"""Seconds that a script has to end after SIGTERM."""


class _Overdue(Exception):
    """The script has not ended when it was told to."""


def main(root: str, command: list[str]) -> NoReturn:
    """Run ``command`` with ``root`` mounted read-only, and exit with its status; 127 if there is no such program."""
    # By its path: -I leaves out the directory that the packages are in, if they are not installed.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from platforms import child_processes, syscalls

    syscalls.adopt_orphans()
    signal.signal(signal.SIGALRM, _overdue)
    signal.signal(signal.SIGTERM, _told)
    script = syscalls.fork(0)
    if script == 0:
        _execute(syscalls, root, command)
    status = 128 + signal.SIGKILL
    try:
        status = _wait(script)
    except _Overdue:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        child_processes.end_all()
    os._exit(status)


def _told(*_: object) -> None:
    """Have the script, which is in the same process group, end soon."""
    signal.setitimer(signal.ITIMER_REAL, GRACE)


def _overdue(*_: object) -> None:
    raise _Overdue


def _wait(script: int) -> int:
    """Return the exit status of the process ``script``, as a shell does; others that end meanwhile are reaped."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == script:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _say(text: str) -> None:
    """Write a line to the script's output, which the display makes safe."""
    os.write(2, f"{text}\n".encode())


def _execute(syscalls: ModuleType, root: str, command: list[str]) -> NoReturn:
    try:
        _own_mounts(syscalls)
        syscalls.mount(root, root, flags=syscalls.MS_BIND)
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
        syscalls.mount_setattr(fd, "", syscalls.AT_EMPTY_PATH, add=syscalls.MOUNT_ATTR_RDONLY)
        os.close(fd)
    except OSError as error:
        _say(f"{root} is a copy that can be written to: {error.strerror}")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        _say(f"{command[0]}: {error.strerror}")
    os._exit(127)


def _own_mounts(syscalls: ModuleType) -> None:
    """Leave the mount namespace for one whose mounts are not seen elsewhere."""
    user, group = os.geteuid(), os.getegid()
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
    except OSError:
        syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
