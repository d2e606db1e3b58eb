"""A Python that is as on a Mac, as far as a program can tell from within: run this file with one and its arguments.

    python tests/mac_python.py kanifold build .
    python tests/mac_python.py -c 'import orchestrator.command'

``sys.platform`` is ``darwin``. What Python's documentation says is not available on macOS is missing from its modules,
as are the calls that only Linux has from the C library, /proc and /sys. Processes that it starts are ordinary ones.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import sys
import types
from typing import Any

MISSING = {
    "os": (
        "sched_getaffinity", "sched_setaffinity", "sched_getparam", "sched_getscheduler", "sched_setscheduler", "pipe2",
        "splice", "copy_file_range", "memfd_create", "eventfd", "eventfd_read", "eventfd_write", "pidfd_open", "setns",
        "unshare", "getxattr", "setxattr", "listxattr", "removexattr", "posix_fadvise", "posix_fallocate", "getrandom",
        "getresuid", "setresuid", "getresgid", "setresgid", "fdatasync", "waitid", "O_PATH", "O_TMPFILE", "O_DIRECT",
        "O_NOATIME", "O_LARGEFILE", "O_RSYNC", "P_PIDFD", "XATTR_CREATE", "XATTR_REPLACE", "MFD_CLOEXEC", "SCHED_BATCH",
        "SCHED_IDLE", "CLONE_NEWNS", "CLONE_NEWUSER", "CLONE_NEWPID", "RWF_APPEND",
    ),
    "socket": (
        "SOCK_CLOEXEC", "SOCK_NONBLOCK", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "SO_PEERCRED", "SCM_CREDENTIALS",
        "MSG_CMSG_CLOEXEC", "SO_PASSCRED", "TCP_USER_TIMEOUT",
    ),
    "signal": ("pidfd_send_signal", "sigtimedwait", "sigwaitinfo", "SIGRTMIN", "SIGRTMAX", "SIGPWR"),
    "select": ("epoll", "EPOLLIN", "EPOLLOUT", "EPOLLERR", "EPOLLHUP"),
    "fcntl": ("F_ADD_SEALS", "F_GET_SEALS", "F_SETPIPE_SZ", "F_GETPIPE_SZ", "F_SEAL_WRITE", "F_OFD_SETLK"),
    "resource": ("prlimit", "RLIMIT_NICE", "RLIMIT_RTPRIO", "RLIMIT_SIGPENDING", "RLIMIT_MSGQUEUE"),
}  # fmt: skip
CALLS = (
    "prctl", "unshare", "setns", "mount", "umount2", "pivot_root", "capset", "capget", "splice", "memfd_create",
    "pidfd_open", "sync_file_range", "syncfs", "personality", "sched_setaffinity", "fallocate", "setresuid",
)  # fmt: skip
"""Functions that the C library of macOS does not have."""


class _Library(ctypes.PyDLL):
    def __getattr__(self, name: str) -> Any:
        if name in CALLS or name == "syscall":
            raise AttributeError(f"dlsym(RTLD_DEFAULT, {name}): symbol not found")
        return super().__getattr__(name)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(("/proc/", "/sys/")):
        raise FileNotFoundError(2, "No such file or directory", arguments[0])


def pretend() -> None:
    """Make this process a Mac's."""
    for name, attributes in MISSING.items():
        module = __import__(name)
        for each in attributes:
            if hasattr(module, each):
                delattr(module, each)
    sys.modules.pop("selectors", None)  # it looks for what select has when it is loaded
    sys.platform = "darwin"
    proxies = types.ModuleType("_scproxy")  # which urllib has there
    proxies._get_proxies = dict  # type: ignore[attr-defined]
    proxies._get_proxy_settings = dict  # type: ignore[attr-defined]
    sys.modules["_scproxy"] = proxies
    kernel = os.uname_result(("Darwin", "mac", "24.0.0", "Darwin Kernel Version 24.0.0", "arm64"))
    os.uname = lambda: kernel
    ctypes.PyDLL = ctypes.CDLL = _Library  # type: ignore[misc]
    sys.addaudithook(_refuse)


if __name__ == "__main__":
    del sys.argv[0]
    sys.path[0] = ""
    pretend()
    if sys.argv[0] == "-c":
        program = sys.argv.pop(1)
        exec(program, {"__name__": "__main__"})
    else:
        sys.argv[0] = "kanifold"
        runpy.run_module("orchestrator", run_name="__main__", alter_sys=True)
