"""Perl for steps that make any system call: the layer with it, and the numbers of calls that it has no function for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
from sandbox_process import Node, SandboxProcess

PERL = shutil.which("perl") or ""
_NUMBERS = """\
capset            126  91
chdir              80  49
chroot            161  51
clone              56 220
faccessat2        439 439
fchdir             81  50
fchmodat          268  53
fchmodat2         452 452
fchownat          260  54
fcntl              72  25
getxattr          191   8
inotify_add_watch 254  27
io_uring_setup    425 425
kcmp              312 272
kill               62 129
linkat            265  37
execve             59 221
listxattr         194  11
mknodat           259  33
mmap                9 222
mount             165  40
name_to_handle_at 303 264
newfstatat        262  79
nosuch            999 999
open_by_handle_at 304 265
open_tree         428 428
openat            257  56
openat2           437 437
pidfd_open        434 434
pivot_root        155  41
pread64            17  67
prlimit64         302 261
process_vm_readv  310 270
process_vm_writev 311 271
ptrace            101 117
readlinkat        267  78
removexattr       197  14
renameat2         316 276
rt_sigqueueinfo   129 138
sched_setaffinity 203 122
setns             308 268
setpriority       141 140
setxattr          188   5
setxattrat        463 463
tgkill            234 131
truncate           76  45
unlinkat          263  35
unshare           272  97
userfaultfd       323 282
"""
_COLUMNS = {"x86_64": 1, "aarch64": 2}
NUMBERS = {
    words[0]: int(words[_COLUMNS[os.uname().machine]])
    for words in map(str.split, _NUMBERS.splitlines())
    if os.uname().machine in _COLUMNS
}
NEEDED = [
    pytest.mark.skipif(not PERL, reason="no perl (Debian: perl-base)"),
    pytest.mark.skipif(not NUMBERS, reason="system call numbers of this machine are not known here"),
]
"""Marks of tests with such steps."""


def layer(sandbox: SandboxProcess) -> str:
    """Plant a layer with perl and its libraries."""
    libraries = subprocess.run(["ldd", PERL], check=True, capture_output=True, text=True).stdout
    nodes: dict[str, Node] = {"bin/perl": ("x", "755", PERL)}
    for path in re.findall(r"(/\S+)", libraries):
        nodes[path[1:]] = ("x", "755", path)
    return sandbox.plant(nodes)
