"""The system calls of a step with a single id that are sent to its supervisor (``owners``), with their numbers.

Columns as in ``seccomp``: x86_64, i386, aarch64, arm, ppc64le, s390x, riscv64; "-" where there is no such call.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

OWNING: Final = """\
chown               92  182    -  182  181  212    -
lchown              94   16    -   16   16  198    -
fchown              93   95   55   95   95  207   55
fchownat           260  298   54  325  289  291   54
chown32              -  212    -  212    -    -    -
lchown32             -  198    -  198    -    -    -
fchown32             -  207    -  207    -    -    -
"""
"""Calls that change owners."""

LOOKING: Final = """\
stat                 4  106    -  106  106  106    -
lstat                6  107    -  107  107  107    -
fstat                5  108   80  108  108  108   80
newfstatat         262    -   79    -  291  293   79
stat64               -  195    -  195    -    -    -
lstat64              -  196    -  196    -    -    -
fstat64              -  197    -  197    -    -    -
fstatat64            -  300    -  327    -    -    -
statx              332  383  291  397  383  379  291
"""
"""Calls that report owners; statx only if the owner, the kind or the mode is requested (its fourth argument)."""

MAKING: Final = """\
mknod              133   14    -   14   14   14    -
mknodat            259  297   33  324  288  290   33
"""
"""Calls that make devices (and other files), depending on the mode."""

MOVING: Final = """\
rename              82   38    -   38   38   38    -
renameat           264  302   38  329  293  295    -
renameat2          316  353  276  382  357  347  276
"""
"""Calls that move a file out of a set-group-id directory."""

ENTERING: Final = """\
chroot             161   61   51   61   61   61   51
"""
"""Calls that change how paths are resolved."""

ALL: Final = OWNING + LOOKING + MAKING + MOVING + ENTERING
