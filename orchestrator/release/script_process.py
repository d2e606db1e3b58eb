"""The process of a test script: mounts the image's root file system read-only over itself, and executes the script.

    python -I script_process.py ROOT PROGRAM [ARGUMENT]...

The mount is in a mount namespace of the script's own, and of a user namespace with the user's own ids where this user
may not mount. Where neither can be made, the files are a copy all the same, which is thrown away afterwards.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType


def main(root: str, command: list[str]) -> None:
    """Execute ``command`` with ``root`` mounted read-only. Exits with 127 if there is no such program."""
    # By its path: -I leaves out the directory that the packages are in, if they are not installed.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from platforms import syscalls

    try:
        _own_mounts(syscalls)
        syscalls.mount(root, root, flags=syscalls.MS_BIND)
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
        syscalls.mount_setattr(fd, "", syscalls.AT_EMPTY_PATH, add=syscalls.MOUNT_ATTR_RDONLY)
        os.close(fd)
    except OSError as error:
        print(f"{root} is a copy that can be written to: {error.strerror}", file=sys.stderr, flush=True)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
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
