"""The seccomp filter of a step, as a classic BPF program (Documentation/userspace-api/seccomp_filter.rst).

It does three things. Sync calls succeed at once: the result of a step is discarded after a crash, so waiting for the
disk has no use. Other calls are allowed as in Docker's default profile for the capabilities of a step (``profile``);
the rest fail with EPERM, or with ENOSYS if they are newer than the profile, so that programs fall back to older ones;
btrfs subvolumes cannot be made. And where a step cannot change owners, the calls that would do so, and those that
report them, are sent to a supervisor (``notified_calls``).

The filter sees the host's system calls, also those that qemu makes for an emulated program. x32, which hardly any
kernel supports, is treated as absent.
"""

from __future__ import annotations

import functools
import os
import stat
import struct
import sys

from executor.sandbox import notified_calls, profile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

_ARCHITECTURES: Final = {
    # AUDIT_ARCH_* of linux/audit.h
    "x86_64": 0xC000003E, "i386": 0x40000003, "aarch64": 0xC00000B7, "arm": 0x40000028, "ppc64le": 0xC0000015,
    "s390x": 0x80000016, "riscv64": 0xC00000F3, "loongarch64": 0xC0000102,
}  # fmt: skip
_SAME: Final = {"loongarch64": "riscv64"}
"""Architectures without a column below, and one with the same numbers."""

_SPOKEN: Final = {
    # os.uname().machine: the system call interfaces of its kernel
    "x86_64": ("x86_64", "i386"), "i686": ("i386",), "aarch64": ("aarch64", "arm"), "armv7l": ("arm",),
    "ppc64le": ("ppc64le",), "s390x": ("s390x",), "riscv64": ("riscv64",),
    "loongarch64": ("loongarch64",),
}  # fmt: skip

# Calls by name, with their numbers in the order of _ARCHITECTURES; "-" where an architecture does not have one.
_SYNC: Final = """\
sync               162   36   81   36   36   36   81
fsync               74  118   82  118  118  118   82
fdatasync           75  148   83  148  148  148   83
sync_file_range    277  314   84  341    -  307   84
sync_file_range2     -    -    -    -  308    -    -
syncfs             306  344  267  373  348  338  267
"""
"""Succeed without doing anything."""

_MSYNC: Final = """\
msync               26  144  227  144  144  144  227
"""
"""Succeeds without doing anything if called with MS_SYNC."""

_BECOMING: Final = """\
setuid             105   23  146   23   23  213  146
setuid32             -  213    -  213    -    -    -
setgid             106   46  144   46   46  214  144
setgid32             -  214    -  214    -    -    -
setreuid           113   70  145   70   70  203  145
setreuid32           -  203    -  203    -    -    -
setregid           114   71  143   71   71  204  143
setregid32           -  204    -  204    -    -    -
setresuid          117  164  147  164  164  208  147
setresuid32          -  208    -  208    -    -    -
setresgid          119  170  149  170  169  210  149
setresgid32          -  210    -  210    -    -    -
setgroups          116   81  159   81   81  206  159
setgroups32          -  206    -  206    -    -    -
setfsuid           122  138  151  138  138  215  151
setfsuid32           -  215    -  215    -    -    -
setfsgid           123  139  152  139  139  216  152
setfsgid32           -  216    -  216    -    -    -
"""
"""Succeed without doing anything where there is only one user id."""

EXECUTING: Final = """\
execve              59   11  221   11   11   11  221
execveat           322  358  281  387  362  354  281
"""
"""Start another program."""

_CLONE: Final = """\
clone               56  120  220  120  120  120  220
"""
_CLONE_UNTRACED: Final = 0x00800000
_TRACEABLE: Final = ("x86_64", "i386", "aarch64")
"""The architectures that ``executor.supervised.registers`` knows."""

IOCTL: Final = """\
ioctl               16   54   29   54   54   54   29
"""
SUBVOLUMES: Final = (0x9401, 0x940E, 0x9417, 0x9418)
"""ioctl(2) requests that make btrfs subvolumes and snapshots (linux/btrfs.h), possible in a cache directory. Their
owner can make them read-only, so that they cannot be removed."""

# linux/filter.h, linux/seccomp.h
LD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
JEQ: Final = 0x15
JGE: Final = 0x35
JSET: Final = 0x45
JA: Final = 0x05
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
RET: Final = 0x06
_ALLOW: Final = 0x7FFF0000
_NOTIFY: Final = 0x7FC00000
_TRACE: Final = 0x7FF00000
ERRNO: Final = 0x00050000
_SUCCEED: Final = ERRNO  # errno 0: the call returns 0
_EPERM: Final = ERRNO | 1
_ENOSYS: Final = ERRNO | 38
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

_X32: Final = 0x40000000
_MS_SYNC: Final = 4
_STATX_WATCHED: Final = 0x1B  # STATX_TYPE, STATX_MODE, STATX_UID, STATX_GID
_KIND: Final = 0xF000  # S_IFMT
_REQUEST: Final = 0xFFFF  # kind and number of an ioctl(2), without size and direction
_REACH: Final = 255  # instructions that a conditional jump can skip

Line = tuple[int, int, int, int]
"""An instruction (struct sock_filter): code, jump offsets if true and false, value."""
Rules = dict[int, tuple[Line, ...]]
"""The instructions for calls, by number."""

ALLOW: Final[tuple[Line, ...]] = ((RET, 0, 0, _ALLOW),)
DENY: Final[tuple[Line, ...]] = ((RET, 0, 0, _EPERM),)
ABSENT: Final[tuple[Line, ...]] = ((RET, 0, 0, _ENOSYS),)
SUCCEED: Final[tuple[Line, ...]] = ((RET, 0, 0, _SUCCEED),)
NOTIFY: Final[tuple[Line, ...]] = ((RET, 0, 0, _NOTIFY),)
"""The instructions for a call that is sent to a supervisor."""
TRACE: Final[tuple[Line, ...]] = ((RET, 0, 0, _TRACE),)
"""The instructions for a call before which the thread is stopped for its tracer; without one the call does not
exist."""


def program(
    *,
    confined: bool = True,
    single: bool = False,
    machine: str = "",
    more: Callable[[str], Rules] | None = None,
    traced: str = "",
) -> bytes:
    """Return the filter for this machine (or ``machine``), for ``platforms.syscalls.seccomp_filter``; b"" if unknown.

    ``confined``: False to allow all calls. ``single``: for a user namespace of one id, with the calls that change or
    report owners sent to a supervisor (the filter must be installed with SECCOMP_FILTER_FLAG_NEW_LISTENER). ``more``
    returns rules for an architecture, which apply before all others. ``traced``: the calls that a tracer changes, as a
    table (``EXECUTING``); with them, a clone(2) that would make a process without a tracer.
    """
    spoken = _SPOKEN.get(machine or os.uname().machine, ())
    if not spoken:
        return b""
    code: list[Line] = [(LD, 0, 0, _ARCHITECTURE)]
    for architecture in spoken:
        rules = _rules(architecture, single) | (more(architecture) if more else {})
        verdicts = _actions(architecture, rules, confined, traced if architecture in _TRACEABLE else "")
        block = [(LD, 0, 0, _NUMBER), *_tree(verdicts)]
        code += [(JEQ, 1, 0, _ARCHITECTURES[architecture]), (JA, 0, 0, len(block)), *block]
    code += DENY
    return b"".join(struct.pack("=HBBI", *each) for each in code)


@functools.cache
def calls(table: str, machine: str = "") -> dict[tuple[int, int], tuple[str, str]]:
    """Return the calls of ``table`` by the numbers of a notification: (architecture, number) to names."""
    spoken = _SPOKEN.get(machine or os.uname().machine, ())
    found = ((each, name, number) for each in spoken for name, number in numbers(table, each).items())
    return {(_ARCHITECTURES[each], number): (each, name) for each, name, number in found}


def _rules(architecture: str, single: bool) -> Rules:
    """Return the instructions for the calls that are handled whether or not the profile allows them."""
    rules = dict.fromkeys(numbers(_SYNC, architecture).values(), SUCCEED)
    for number in numbers(_MSYNC, architecture).values():
        rules[number] = ((LD, 0, 0, argument(2)), (JSET, 0, 1, _MS_SYNC), *SUCCEED, *ALLOW)
    if single:
        rules |= _notified(architecture)
        rules |= dict.fromkeys(numbers(_BECOMING, architecture).values(), SUCCEED)
    return rules


def _notified(architecture: str) -> Rules:
    """Return the instructions for the calls that are sent to a supervisor, some only with certain arguments."""
    rules = dict.fromkeys(numbers(notified_calls.ALL, architecture).values(), NOTIFY)
    for name, number in numbers(notified_calls.ALL, architecture).items():
        if name == "statx":
            rules[number] = ((LD, 0, 0, argument(3)), (JSET, 0, 1, _STATX_WATCHED), *NOTIFY, *ALLOW)
        elif name.startswith("mknod"):
            mode: Line = (LD, 0, 0, argument(2 if name == "mknodat" else 1))
            device = ((AND, 0, 0, _KIND), (JEQ, 1, 0, stat.S_IFCHR), (JEQ, 0, 1, stat.S_IFBLK))
            rules[number] = (mode, *device, *NOTIFY, *ALLOW)
    return rules


def _actions(architecture: str, rules: Rules, confined: bool, traced: str) -> list[tuple[int, tuple[Line, ...]]]:
    """Return the call numbers at which the action changes, with the instructions from there on; the first is 0."""
    last = max(profile.LAST[architecture], *rules)
    verdicts = [DENY if confined else ALLOW] * (last + 1)
    private: list[tuple[int, tuple[Line, ...]]] = []
    if confined:
        for each in profile.ALLOWED[architecture].split():
            first, _, end = each.partition("-")
            start, stop = int(first), int(end or first) + 1
            if start > last:  # arm has private calls at much higher numbers
                private += [(start, ALLOW), (stop, ABSENT)]
            else:
                verdicts[start:stop] = [ALLOW] * (stop - start)
        for number, conditions in profile.CONDITIONAL[architecture].items():
            verdicts[number] = one_of(conditions)
        for number in profile.ABSENT.get(architecture, ()):
            verdicts[number] = ABSENT
        for number in numbers(IOCTL, architecture).values():
            verdicts[number] = no_request(SUBVOLUMES)
    for number, what in rules.items():
        verdicts[number] = what
    if traced:
        for number in numbers(traced, architecture).values():
            verdicts[number] = TRACE
        for number in numbers(_CLONE, architecture).values():
            # The tracer clears the flag, and the kernel runs the filter once more.
            flags: tuple[Line, ...] = ((LD, 0, 0, argument(0)), (JSET, 0, 1, _CLONE_UNTRACED))
            verdicts[number] = (*flags, *TRACE, *verdicts[number])
    changes = [(0, verdicts[0])]
    for number, what in enumerate(verdicts):
        if what is not changes[-1][1]:
            changes.append((number, what))
    if confined:
        return [*changes, (last + 1, ABSENT), *private]
    return [*changes, (last + 1, ALLOW), *([(_X32, ABSENT)] if architecture == "x86_64" else [])]


def one_of(conditions: tuple[tuple[int, str, int], ...], then: tuple[Line, ...] = ALLOW) -> tuple[Line, ...]:
    """Allow the call, or do what ``then`` says, when one of the profile's conditions holds. The lower half of arguments
    is compared, as the kernel takes all of these as 32 bits."""
    lines: list[Line] = []
    for index, (which, comparison, value) in enumerate(conditions):
        to_allow = 2 * (len(conditions) - index) - 1
        jump, true = {"=": (JEQ, True), ">=": (JGE, True), "<": (JGE, False), "none": (JSET, False)}[comparison]
        lines.append((LD, 0, 0, argument(which)))
        lines.append((jump, to_allow if true else 0, 0 if true else to_allow, value))
    return (*lines, *DENY, *then)


def no_request(requests: tuple[int, ...]) -> tuple[Line, ...]:
    """Deny an ioctl(2) with one of ``requests``, or an fcntl(2) with one of these commands."""
    tests = tuple((JEQ, len(requests) - index, 0, each) for index, each in enumerate(requests))
    return ((LD, 0, 0, argument(1)), (AND, 0, 0, _REQUEST), *tests, *ALLOW, *DENY)


def _tree(verdicts: list[tuple[int, tuple[Line, ...]]]) -> list[Line]:
    """Return a binary search. On installation the kernel runs the filter for every call number, so it is short and
    flat."""
    if len(verdicts) == 1:
        return list(verdicts[0][1])
    middle = len(verdicts) // 2
    low, high = _tree(verdicts[:middle]), _tree(verdicts[middle:])
    start = verdicts[middle][0]
    if len(low) > _REACH:
        return [(JGE, 0, 1, start), (JA, 0, 0, len(low)), *low, *high]
    return [(JGE, len(low), 0, start), *low, *high]


def argument(index: int) -> int:
    """Return the offset of the lower half of an argument."""
    return _ARGUMENTS + 8 * index + (4 if sys.byteorder == "big" else 0)


def rows(table: str, *names: str) -> str:
    """Return the rows of ``table`` for the calls ``names``."""
    return "".join(row for row in table.splitlines(keepends=True) if row.split()[0] in names)


def numbers(table: str, architecture: str) -> dict[str, int]:
    """Return the calls of ``table`` that ``architecture`` has, with their numbers."""
    column = list(_ARCHITECTURES).index(_SAME.get(architecture, architecture)) + 1
    rows = (line.split() for line in table.splitlines())
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}
