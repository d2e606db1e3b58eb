"""The system calls of a step in a chroot that its supervisor answers, or that are refused there, with their numbers.

Columns as in ``sandbox.seccomp``: x86_64, i386, aarch64, arm, ppc64le, s390x, riscv64; "-" where there is no such call.

The arguments that a filter can see tell apart most calls that cannot concern /proc, so that these cost nothing: files
that must be new, lstat(2), fstat(2).
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from functools import partial

from executor.sandbox import notified_calls, profile, seccomp
from executor.sandbox.seccomp import ALLOW, AND, DENY, JEQ, JSET, LD, NOTIFY, RET, Line, Rules
from executor.supervised import answered_calls
from executor.supervised.answered_calls import ACCESSING, NAMING, OPENING, READING
from platforms import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

PERMITTING: Final = seccomp.rows(answered_calls.PERMITTING, "chmod", "fchmodat", "fchmodat2")
"""What C libraries make of fchmodat(2) with AT_SYMLINK_NOFOLLOW before Linux 6.6, by names of open files."""
OWNING: Final = seccomp.rows(answered_calls.OWNING, "chown", "fchownat", "chown32")
TRUNCATING: Final = seccomp.rows(answered_calls.SIZING, "truncate", "truncate64")
MARKING: Final = seccomp.rows(answered_calls.ATTRIBUTES, "setxattr", "getxattr", "listxattr", "removexattr")
LINKING: Final = seccomp.rows(answered_calls.MAKING, "linkat")
ON_OPEN_FILES: Final = PERMITTING + OWNING + TRUNCATING + MARKING + LINKING
"""Calls that follow links to a file. (Those that set times are not among them: programs make too many.)"""
LIMITING: Final = """\
prlimit64          302  340  261  369  325  334  261
"""
NOTIFIED: Final = (
    OPENING + READING + ACCESSING + ON_OPEN_FILES + NAMING + LIMITING + notified_calls.LOOKING + notified_calls.MAKING
)
"""All that can be sent to the supervisor."""

SIGNALLING: Final = """\
kill                62   37  129   37   37   37  129
tkill              200  238  130  238  208  237  130
tgkill             234  270  131  268  250  241  131
rt_sigqueueinfo    129  178  138  178  177  178  138
rt_tgsigqueueinfo  297  335  240  363  322  330  240
pidfd_send_signal  424  424  424  424  424  424  424
"""
"""Calls that send signals: handed over where Landlock has no signal scope."""
FORKING: Final = """\
clone               56  120  220  120  120  120  220
fork                57    2    -    2    2    2    -
vfork               58  190    -  190  189  190    -
"""
"""Calls that make processes: handed over there, too, so that none is made when the supervisor has been killed."""
_FCNTL: Final = """\
fcntl               72   55   25   55   55   55   25
fcntl64              -  221    -  221    -    -    -
"""
_OWNING_DESCRIPTORS: Final = (8, 10, 15)
"""F_SETOWN, F_SETSIG and F_SETOWN_EX: whom the kernel signals when there is input, and how (fcntl(2))."""
_IOCTL_OWNING: Final = (0x8901, 0x8902)
"""FIOSETOWN and SIOCSPGRP, which do the same."""
_SCHEDULING: Final = """\
sched_setparam     142  154  118  154  154  154  118
sched_setscheduler 144  156  119  156  156  156  119
sched_setaffinity  203  241  122  241  222  239  122
sched_setattr      314  351  274  380  355  345  274
"""
"""Calls whose first argument is a process. Landlock does not keep them from those of others."""
_PRIORITY: Final = """\
setpriority        141   97  140   97   97   97  140
ioprio_set         251  289   30  314  273  282   30
"""
"""Calls whose second argument is a process, a group or a user."""
_SOCKET: Final = """\
socket              41  359  198  281  326  359  198
"""
_SOCKETCALL: Final = """\
socketcall           -  102    -    -  102  102    -
"""

_KIND: Final = 0xF000  # S_IFMT
_AT_SYMLINK_FOLLOW: Final = 0x400
_AT_FLAGS: Final = {"statx": 2, "newfstatat": 3, "fstatat64": 3}
"""Where the flags of the calls are."""


def rules(*, secrets: bool, network: bool, signals: bool) -> Callable[[str], Rules]:
    """Return the rules of a step for ``seccomp.program``.

    ``secrets``: whether it has files of secrets, whose status is the supervisor's to tell. ``network``: whether it may
    use sockets of the network. ``signals``: whether the supervisor sends its signals.
    """
    return partial(_rules, secrets=secrets, network=network, signals=signals)


def _rules(architecture: str, *, secrets: bool, network: bool, signals: bool) -> Rules:
    found: Rules = _signals(architecture) if signals else {}
    for name, number in seccomp.numbers(NOTIFIED, architecture).items():
        found[number] = _notified(name, secrets)
    if not secrets:
        for name, number in seccomp.numbers(notified_calls.LOOKING, architecture).items():
            if name.startswith(("lstat", "fstat")) and name not in _AT_FLAGS:
                found[number] = ALLOW
    else:
        for name in ("fstat", "fstat64"):
            if (fstat := seccomp.numbers(notified_calls.LOOKING, architecture).get(name)) is not None:
                found[fstat] = ALLOW
    found |= dict.fromkeys(seccomp.numbers(_SCHEDULING, architecture).values(), _only_zero(0))
    found |= dict.fromkeys(seccomp.numbers(_PRIORITY, architecture).values(), _only_zero(1))
    if not network:
        found |= dict.fromkeys(seccomp.numbers(_SOCKET, architecture).values(), _LOCAL_SOCKETS)
        found |= dict.fromkeys(seccomp.numbers(_SOCKETCALL, architecture).values(), _NO_FAMILY)
    return found


def _signals(architecture: str) -> Rules:
    found = dict.fromkeys(seccomp.numbers(SIGNALLING + FORKING, architecture).values(), NOTIFY)
    clone = seccomp.numbers(FORKING, architecture)["clone"]
    found[clone] = seccomp.one_of(profile.CONDITIONAL[architecture][clone], NOTIFY)
    found |= dict.fromkeys(seccomp.numbers(_FCNTL, architecture).values(), seccomp.no_request(_OWNING_DESCRIPTORS))
    ioctl = seccomp.numbers(seccomp.IOCTL, architecture).values()
    return found | dict.fromkeys(ioctl, seccomp.no_request((*seccomp.SUBVOLUMES, *_IOCTL_OWNING)))


_NO_FAMILY: Final[tuple[Line, ...]] = ((RET, 0, 0, seccomp.ERRNO | errno.EAFNOSUPPORT),)
_LOCAL_SOCKETS: Final[tuple[Line, ...]] = (
    (LD, 0, 0, seccomp.argument(0)),
    (JEQ, 0, 1, socket.AF_UNIX),
    *ALLOW,
    *_NO_FAMILY,
)


def _notified(name: str, secrets: bool) -> tuple[Line, ...]:
    if name in ("open", "openat"):
        new = os.O_EXCL | os.O_PATH  # the kernel adds no O_PATH descriptors
        return ((LD, 0, 0, seccomp.argument(1 if name == "open" else 2)), (JSET, 0, 1, new), *ALLOW, *NOTIFY)
    if name in _AT_FLAGS:
        native = syscalls.AT_EMPTY_PATH | (0 if secrets else syscalls.AT_SYMLINK_NOFOLLOW)
        return ((LD, 0, 0, seccomp.argument(_AT_FLAGS[name])), (JSET, 0, 1, native), *ALLOW, *NOTIFY)
    if name.startswith("mknod"):
        mode: Line = (LD, 0, 0, seccomp.argument(2 if name == "mknodat" else 1))
        device = ((AND, 0, 0, _KIND), (JEQ, 1, 0, stat.S_IFCHR), (JEQ, 0, 1, stat.S_IFBLK))
        return (mode, *device, *NOTIFY, *ALLOW)
    if name in ("fchownat", "fchmodat2"):
        native, flags = syscalls.AT_SYMLINK_NOFOLLOW | syscalls.AT_EMPTY_PATH, 4 if name == "fchownat" else 3
        return ((LD, 0, 0, seccomp.argument(flags)), (JSET, 0, 1, native), *ALLOW, *NOTIFY)
    if name == "linkat":
        return ((LD, 0, 0, seccomp.argument(4)), (JSET, 1, 0, _AT_SYMLINK_FOLLOW), *ALLOW, *NOTIFY)
    if name == "prlimit64":
        return ((LD, 0, 0, seccomp.argument(0)), (JEQ, 0, 1, 0), *ALLOW, *NOTIFY)
    return NOTIFY


def _only_zero(argument: int) -> tuple[Line, ...]:
    """Allow a call for the calling process, which 0 stands for, only."""
    return ((LD, 0, 0, seccomp.argument(argument)), (JEQ, 0, 1, 0), *ALLOW, *DENY)
