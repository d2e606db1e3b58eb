"""The seccomp filter of steps in the mode ``answered`` (``answered_calls``).

It is the filter of all steps with further rules. A system call that takes a path is sent to the supervisor, or fails; a
call that is unknown fails with ENOSYS. Nothing in the filter depends on the step's memory.
"""

from __future__ import annotations

import errno
import functools
import socket
from functools import partial
from typing import Final

from executor.sandbox import profile, seccomp
from executor.sandbox.seccomp import ABSENT, ALLOW, DENY, NOTIFY, SUCCEED, TRACE, Line, Rules, numbers
from executor.supervised import answered_calls

# linux/prctl.h
_HARMLESS: Final = (4, 24, 28, 47)
"""PR_SET_DUMPABLE, without which the supervisor could not read a process; PR_CAPBSET_DROP, PR_SET_SECUREBITS and
PR_CAP_AMBIENT, which concern privileges that a step does not have."""
# linux/fcntl.h, asm-generic/ioctls.h, asm-generic/sockios.h
_DENIED_COMMANDS: Final = (8, 10, 15, 1024)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX: signals to any process of this user. F_SETLEASE: the supervisor would wait."""
_OWNING_REQUESTS: Final = (0x8901, 0x8902)
"""FIOSETOWN and SIOCSPGRP, the same."""
_INTERNET: Final = (socket.AF_INET, socket.AF_INET6, 17)
"""With AF_PACKET."""
_IOPRIO_WHO_PROCESS: Final = 1
_CLONE_UNTRACED: Final = 0x00800000
"""linux/sched.h: the child is not traced, so that it would outlive its tracer, and could be made faster than killed."""


@functools.cache
def program(*, network: bool, scoped: bool, machine: str = "") -> bytes:
    """Return the filter for this machine; b"" if it is unknown.

    ``network``: whether the step may have sockets of the Internet. ``scoped``: whether Landlock keeps its signals to
    its own processes; else the supervisor does.
    """
    return seccomp.program(more=partial(_rules, network=network, scoped=scoped), machine=machine)


def _rules(architecture: str, *, network: bool, scoped: bool) -> Rules:
    rules: Rules = {}
    for table, lines in (
        (answered_calls.ANSWERED, NOTIFY),
        (answered_calls.STARTING, TRACE),
        (answered_calls.REFUSED, DENY),
        (answered_calls.UNSUPPORTED, _fail(errno.EOPNOTSUPP)),
        (answered_calls.MISSING, ABSENT),
        (answered_calls.WATCHING, _fail(errno.ENOSPC)),
        (answered_calls.LIMITING, (_load(0), *_one_of((0,), ALLOW, NOTIFY))),
    ):
        rules |= dict.fromkeys(numbers(table, architecture).values(), lines)
    if scoped:
        signalling = numbers(answered_calls.SIGNALLING, architecture)
        rules |= {number: ALLOW for name, number in signalling.items() if name != "pidfd_open"}
    own = {"setpriority": 0, "ioprio_set": _IOPRIO_WHO_PROCESS}
    for name, number in numbers(answered_calls.RANKING, architecture).items():
        rules[number] = (_load(0), *_one_of((own[name],), (_load(1), *_one_of((0,), ALLOW, DENY)), DENY))
    internet = ALLOW if network else (_load(0), *_one_of(_INTERNET, _fail(errno.EACCES), ALLOW))
    rules[numbers(answered_calls.CONNECTING, architecture)["socket"]] = (
        _load(0), *_one_of((socket.AF_UNIX,), NOTIFY, internet),
    )  # fmt: skip
    controlling = {
        "prctl": (_load(0), *_one_of(_HARMLESS, SUCCEED, ALLOW)),
        "fcntl": (_load(1), *_one_of(_DENIED_COMMANDS, DENY, ALLOW)),
        "fcntl64": (_load(1), *_one_of(_DENIED_COMMANDS, DENY, ALLOW)),
        "ioctl": seccomp.no_request((*seccomp.SUBVOLUMES, *_OWNING_REQUESTS)),
    }
    for name, number in numbers(answered_calls.CONTROLLING, architecture).items():
        rules[number] = controlling[name]
    for number in numbers(answered_calls.FORKING, architecture).values():
        conditions = profile.CONDITIONAL[architecture][number]
        flags, _, _ = conditions[0]
        rules[number] = (_load(flags), (seccomp.JSET, 0, 1, _CLONE_UNTRACED), *DENY, *seccomp.one_of(conditions))
    return rules


def _fail(number: int) -> tuple[Line, ...]:
    """Return the instructions for a call that fails with the errno ``number``."""
    return ((seccomp.RET, 0, 0, seccomp.ERRNO | number),)


def _load(index: int) -> Line:
    """Return the instruction that loads the lower half of an argument."""
    return (seccomp.LD, 0, 0, seccomp.argument(index))


def _one_of(values: tuple[int, ...], then: tuple[Line, ...], otherwise: tuple[Line, ...]) -> tuple[Line, ...]:
    """Return the instructions ``then`` for a loaded argument that is one of ``values``, else ``otherwise``."""
    tests = tuple((seccomp.JEQ, len(values) - index, 0, each) for index, each in enumerate(values))
    return (*tests, (seccomp.JA, 0, 0, len(then)), *then, *otherwise)
