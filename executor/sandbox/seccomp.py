"""The system call filter of a step, as a classic BPF program (Documentation/userspace-api/seccomp_filter.rst).

It does three things. Sync calls succeed at once: a step's result is thrown away on a crash anyway, so waiting for the
disk buys nothing. What Docker's default profile keeps from a container stays away: new namespaces (which reach a lot
of kernel code), mounts, kernel keyrings, bpf, io_uring and the like. And where a step cannot change owners, the calls
that would do so are handed to a supervisor.

The filter sees the machine's own calls: an emulated program's go through it as qemu makes them.
"""

from __future__ import annotations

import os
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_ARCHITECTURES: Final = {
    # AUDIT_ARCH_* of linux/audit.h
    "x86_64": 0xC000003E, "i386": 0x40000003, "aarch64": 0xC00000B7, "arm": 0x40000028, "ppc64le": 0xC0000015,
    "s390x": 0x80000016, "riscv64": 0xC00000F3,
}  # fmt: skip

_SPOKEN: Final = {
    # os.uname().machine: the interfaces that its kernel offers to programs
    "x86_64": ("x86_64", "i386"), "i686": ("i386",), "aarch64": ("aarch64", "arm"), "armv7l": ("arm",),
    "ppc64le": ("ppc64le",), "s390x": ("s390x",), "riscv64": ("riscv64",),
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
"""Succeed without doing anything. msync with MS_SYNC is another such, see below."""

_DENIED: Final = """\
acct               163   51   89   51   51   51   89
add_key            248  286  217  309  269  278  217
bpf                321  357  280  386  361  351  280
clock_adjtime      305  343  266  372  347  337  266
clock_adjtime64      -  405    -  405    -    -    -
clock_settime      227  264  112  262  245  259  112
clock_settime64      -  404    -  404    -    -    -
settimeofday       164   79  170   79   79   79  170
stime                -   25    -    -   25    -    -
create_module      174  127    -    -  127  127    -
delete_module      176  129  106  129  129  129  106
finit_module       313  350  273  379  353  344  273
init_module        175  128  105  128  128  128  105
query_module       178  167    -    -  166  167    -
get_kernel_syms    177  130    -    -  130  130    -
io_uring_setup     425  425  425  425  425  425  425
io_uring_enter     426  426  426  426  426  426  426
io_uring_register  427  427  427  427  427  427  427
ioperm             173  101    -    -  101    -    -
iopl               172  110    -    -  110    -    -
kexec_file_load    320    -  294  401  382  381  294
kexec_load         246  283  104  347  268  277  104
keyctl             250  288  219  311  271  280  219
request_key        249  287  218  310  270  279  218
lookup_dcookie     212  253   18  249  235  110   18
mount              165   21   40   21   21   21   40
umount               -   22    -    -   22   22    -
umount2            166   52   39   52   52   52   39
mount_setattr      442  442  442  442  442  442  442
move_mount         429  429  429  429  429  429  429
open_tree          428  428  428  428  428  428  428
fsopen             430  430  430  430  430  430  430
fsconfig           431  431  431  431  431  431  431
fsmount            432  432  432  432  432  432  432
fspick             433  433  433  433  433  433  433
move_pages         279  317  239  344  301  310  239
nfsservctl         180  169   42  169  168  169   42
open_by_handle_at  304  342  265  371  346  336  265
perf_event_open    298  336  241  364  319  331  241
pivot_root         155  217   41  218  203  217   41
quotactl           179  131   60  131  131  131   60
quotactl_fd        443  443  443  443  443  443  443
reboot             169   88  142   88   88   88  142
setns              308  346  268  375  350  339  268
swapon             167   87  224   87   87   87  224
swapoff            168  115  225  115  115  115  225
sysfs              139  135    -  135  135  135    -
_sysctl            156  149    -  149  149  149    -
syslog             103  103  116  103  103  103  116
unshare            272  310   97  337  282  303   97
uselib             134   86    -   86   86   86    -
userfaultfd        323  374  282  388  364  355  282
ustat              136   62    -   62   62   62    -
vhangup            153  111   58  111  111  111   58
vm86                 -  166    -    -  113    -    -
vm86old              -  113    -    -    -    -    -
"""
"""Fail with EPERM, as under Docker's default profile without CAP_SYS_ADMIN."""

_LOOKED_AT: Final = """\
clone               56  120  220  120  120  120  220
clone3             435  435  435  435  435  435  435
msync               26  144  227  144  144  144  227
socket              41  359  198  281  326  359  198
"""
"""Depend on their arguments."""

OWNING: Final = """\
chown               92  182    -  182  181  212    -
lchown              94   16    -   16   16  198    -
fchown              93   95   55   95   95  207   55
fchownat           260  298   54  325  289  291   54
chown32              -  212    -  212    -    -    -
lchown32             -  198    -  198    -    -    -
fchown32             -  207    -  207    -    -    -
"""
"""Go to the supervisor where a step has one mapped id only (see ``owners``)."""

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
"""Succeed without doing anything there: the only user to become is the one that it is."""

# linux/filter.h, linux/seccomp.h
_LD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JEQ: Final = 0x15
_JGE: Final = 0x35
_JSET: Final = 0x45
_JA: Final = 0x05
_RET: Final = 0x06
_ALLOW: Final = 0x7FFF0000
_NOTIFY: Final = 0x7FC00000
_ERRNO: Final = 0x00050000
_SUCCEED: Final = _ERRNO  # "fails" with errno 0, which the caller sees as the return value 0
_EPERM: Final = _ERRNO | 1
_ENOSYS: Final = _ERRNO | 38
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

_NAMESPACES: Final = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_X32: Final = 0x40000000
_MS_SYNC: Final = 4
_AF_VSOCK: Final = 40

_Line = tuple[int, int | str, int | str, int]
"""An instruction whose jumps are numbers of instructions to skip, or the label to go on at."""


def program(*, confined: bool = True, single: bool = False, machine: str = "") -> bytes:
    """The filter for this machine (or ``machine``), for ``platforms.syscalls.seccomp_filter``; b"" where none is known.

    Not ``confined``: without the denials. ``single``: for a user namespace of one id, with the calls that change owners
    handed over (the filter must then be installed with SECCOMP_FILTER_FLAG_NEW_LISTENER).
    """
    spoken = _SPOKEN.get(machine or os.uname().machine, ())
    if not spoken:
        return b""
    code: list[tuple[int, int, int, int]] = [(_LD, 0, 0, _ARCHITECTURE)]
    for architecture in spoken:
        block = _block(architecture, confined, single)
        code += [(_JEQ, 1, 0, _ARCHITECTURES[architecture]), (_JA, 0, 0, len(block)), *block]
    code.append((_RET, 0, 0, _EPERM))
    return b"".join(struct.pack("=HBBI", *each) for each in code)


def names(table: str, machine: str = "") -> dict[tuple[int, int], str]:
    """The calls of ``table`` by the numbers that a notification has: the architecture's and the call's."""
    spoken = _SPOKEN.get(machine or os.uname().machine, ())
    return {(_ARCHITECTURES[each], number): name for each in spoken for name, number in _numbers(table, each).items()}


SHORT_IDS: Final = (_ARCHITECTURES["i386"], _ARCHITECTURES["arm"])
"""Where ``chown``, ``lchown`` and ``fchown`` take ids of 16 bits, and others end in ``32``."""


def _block(architecture: str, confined: bool, single: bool) -> list[tuple[int, int, int, int]]:
    """What to do with the calls of one architecture; ends on every path."""
    looked_at = _numbers(_LOOKED_AT, architecture)
    rules = dict.fromkeys(_numbers(_SYNC, architecture).values(), "succeed")
    rules[looked_at["msync"]] = "msync"
    if confined:
        rules |= dict.fromkeys(_numbers(_DENIED, architecture).values(), "deny")
        rules[looked_at["clone"]] = "clone"
        # clone3's flags lie in memory, where a filter cannot look; C libraries fall back to clone.
        rules[looked_at["clone3"]] = "absent"
        rules[looked_at["socket"]] = "socket"
    if single:
        rules |= dict.fromkeys(_numbers(OWNING, architecture).values(), "notify")
        rules |= dict.fromkeys(_numbers(_BECOMING, architecture).values(), "succeed")
    lines: list[_Line] = [(_LD, 0, 0, _NUMBER)]
    if architecture == "x86_64":
        lines.append((_JGE, "absent", 0, _X32))
    lines += _tree(sorted(rules.items()))
    endings: dict[str, list[_Line]] = {
        "msync": [(_LD, 0, 0, _argument(2)), (_JSET, "succeed", "allow", _MS_SYNC)],
        "clone": [(_LD, 0, 0, _argument(1 if architecture == "s390x" else 0)), (_JSET, "deny", "allow", _NAMESPACES)],
        "socket": [(_LD, 0, 0, _argument(0)), (_JEQ, "deny", "allow", _AF_VSOCK)],
        "allow": [(_RET, 0, 0, _ALLOW)],
        "deny": [(_RET, 0, 0, _EPERM)],
        "succeed": [(_RET, 0, 0, _SUCCEED)],
        "absent": [(_RET, 0, 0, _ENOSYS)],
        "notify": [(_RET, 0, 0, _NOTIFY)],
    }
    labels: dict[str, int] = {}
    for label, ending in endings.items():
        labels[label] = len(lines)
        lines += ending
    return [
        (code, *(labels[jump] - index - 1 if isinstance(jump, str) else jump for jump in (true, false)), value)  # type: ignore[misc]
        for index, (code, true, false, value) in enumerate(lines)
    ]


def _tree(rules: list[tuple[int, str]]) -> list[_Line]:
    """A binary search. Installing the filter makes the kernel run it for every call number: short and flat is fast."""
    if len(rules) == 1:
        number, label = rules[0]
        return [(_JEQ, label, "allow", number)]
    middle = len(rules) // 2
    low, high = _tree(rules[:middle]), _tree(rules[middle:])
    return [(_JGE, len(low), 0, rules[middle][0]), *low, *high]


def _argument(index: int) -> int:
    """The offset of an argument's lower half."""
    return _ARGUMENTS + 8 * index + (4 if sys.byteorder == "big" else 0)


def _numbers(table: str, architecture: str) -> dict[str, int]:
    column = list(_ARCHITECTURES).index(architecture) + 1
    rows = (line.split() for line in table.splitlines())
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}
