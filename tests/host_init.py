"""Process 1 of a host of ``hosts.py``: makes its mounts, becomes the reaper of its processes, and ends with its stdin.

    host_init.py outer FOLDER ROOT DISK NAME [UNSHARE OPTION...]

``FOLDER`` has what is the host's own: ``etc`` (files that replace those in /etc), ``run`` and ``home``. ``ROOT`` is the
directory of its root file system, "" for this machine's, and ``DISK`` the size of a file system for /home, "" for none.
The first line of stdin says that ids are mapped and interfaces are there; ``ready`` on stdout that the host is up.
Standard library only: it runs with any Python.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

MNT_DETACH = 2  # linux/fs.h


def outer(folder: Path, root: str, disk: str, name: str, *spaces: str) -> None:
    """In a mount namespace of this machine's user namespace: only here an overlay has all of its attributes."""
    new = folder / "root"
    if root:
        for each in ("root", "upper", "work"):
            (folder / each).mkdir()
        parts = f"lowerdir={root},upperdir={folder}/upper,workdir={folder}/work"
        _run("mount", "-t", "overlay", "overlay", "-o", parts, str(new))
    # A shell waits until ids are mapped: before that not every Python can be read.
    waiting = ["sh", "-c", 'read -r _ && exec "$@"', "sh", sys.executable, "-I", __file__]
    parameters = ["inner", str(folder), str(new) if root else "", disk, name]
    os.execvp("unshare", ["unshare", *spaces, "--fork", "--kill-child", "--", *waiting, *parameters])


def inner(folder: Path, root: str, disk: str, name: str) -> None:
    """In all namespaces of the host."""
    if root:
        _run("mount", "--rbind", root, root)  # what came from outside cannot become a root
        for each in ("dev", "sys"):
            _run("mount", "--rbind", f"/{each}", f"{root}/{each}")
    _run("mount", "-t", "proc", "proc", f"{root}/proc")
    if (folder / "handler").exists():
        binfmt = f"{root}/proc/sys/fs/binfmt_misc"
        _run("mount", "-t", "binfmt_misc", "none", binfmt)
        Path(binfmt, "register").write_text((folder / "handler").read_text())
    if disk:
        _run("mount", "-t", "tmpfs", "-o", f"size={disk}", "home", f"{root}/home")
        _run("cp", "-a", f"{folder}/home/.", f"{root}/home")
    else:
        _run("mount", "--bind", f"{folder}/home", f"{root}/home")
    _run("mount", "--bind", f"{folder}/run", f"{root}/run")
    for each in (folder / "etc").iterdir():
        target = Path(f"{root}/etc/{each.name}")
        if not target.exists():
            target.touch()
        _run("mount", "--bind", str(each), str(target))
    _run("hostname", name)
    if root:
        libc = ctypes.CDLL(None, use_errno=True)
        os.chdir(root)
        _run("pivot_root", ".", "proc")  # over /proc, until that is gone
        os.chroot(".")
        if libc.umount2(b"/proc", MNT_DETACH):  # the new root may lack the program
            raise OSError(ctypes.get_errno(), "umount2")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    print("ready", flush=True)
    threading.Thread(target=_until_told).start()
    while True:
        signal.sigwait({signal.SIGCHLD})
        while _reap():
            pass


def _until_told() -> None:
    sys.stdin.read()
    os._exit(0)


def _reap() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return False


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    which, place, *rest = sys.argv[1:]
    (outer if which == "outer" else inner)(Path(place), *rest)
