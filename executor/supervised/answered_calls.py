"""The system calls of steps in the mode ``answered``: which are sent to the supervisor, and which are refused.

No call that takes a path may be left to the kernel, which would look it up in the executor's files. Columns as in
``seccomp``: x86_64, i386, aarch64, arm, ppc64le, s390x, riscv64; "-" where there is no such call.
"""

from __future__ import annotations

from executor.sandbox.notified_calls import LOOKING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

OPENING: Final = """\
open                  2     5     -     5     5     5     -
openat              257   295    56   322   286   288    56
openat2             437   437   437   437   437   437   437
creat                85     8     -     8     8     8     -
"""
"""Calls that open a path."""

ACCESSING: Final = """\
access               21    33     -    33    33    33     -
faccessat           269   307    48   334   298   300    48
faccessat2          439   439   439   439   439   439   439
"""
"""Calls that report what the caller may do with a file."""

READING: Final = """\
readlink             89    85     -    85    85    85     -
readlinkat          267   305    78   332   296   298    78
"""
"""Calls that read a symbolic link."""

ENTERING: Final = """\
getcwd               79   183    17   183   182   183    17
chdir                80    12    49    12    12    12    49
fchdir               81   133    50   133   133   133    50
umask                95    60   166    60    60    60   166
"""
"""Calls about the working directory, and the file mode creation mask, which threads share with it."""

MAKING: Final = """\
mkdir                83    39     -    39    39    39     -
mkdirat             258   296    34   323   287   289    34
mknod               133    14     -    14    14    14     -
mknodat             259   297    33   324   288   290    33
symlink              88    83     -    83    83    83     -
symlinkat           266   304    36   331   295   297    36
link                 86     9     -     9     9     9     -
linkat              265   303    37   330   294   296    37
"""
"""Calls that make a name."""

REMOVING: Final = """\
rmdir                84    40     -    40    40    40     -
unlink               87    10     -    10    10    10     -
unlinkat            263   301    35   328   292   294    35
"""
"""Calls that remove a name."""

MOVING: Final = """\
rename               82    38     -    38    38    38     -
renameat            264   302    38   329   293   295     -
renameat2           316   353   276   382   357   347   276
"""
"""Calls that move a name."""

PERMITTING: Final = """\
chmod                90    15     -    15    15    15     -
fchmod               91    94    52    94    94    94    52
fchmodat            268   306    53   333   297   299    53
fchmodat2           452   452   452   452   452   452   452
"""
"""Calls that change permissions."""

OWNING: Final = """\
chown                92   182     -   182   181   212     -
lchown               94    16     -    16    16   198     -
fchown               93    95    55    95    95   207    55
fchownat            260   298    54   325   289   291    54
chown32               -   212     -   212     -     -     -
lchown32              -   198     -   198     -     -     -
fchown32              -   207     -   207     -     -     -
"""
"""Calls that change owners."""

DATING: Final = """\
utime               132    30     -     -    30    30     -
utimes              235   271     -   269   251   313     -
futimesat           261   299     -   326   290   292     -
utimensat           280   320    88   348   304   315    88
utimensat_time64      -   412     -   412     -     -     -
"""
"""Calls that set times."""

SIZING: Final = """\
truncate             76    92    45    92    92    92    45
truncate64            -   193     -   193     -     -     -
statfs              137    99    43    99    99    99    43
statfs64              -   268     -   266   252   265     -
"""
"""Calls that truncate by path, or report a file system."""

ATTRIBUTES: Final = """\
setxattr            188   226     5   226   209   224     5
lsetxattr           189   227     6   227   210   225     6
fsetxattr           190   228     7   228   211   226     7
getxattr            191   229     8   229   212   227     8
lgetxattr           192   230     9   230   213   228     9
fgetxattr           193   231    10   231   214   229    10
listxattr           194   232    11   232   215   230    11
llistxattr          195   233    12   233   216   231    12
flistxattr          196   234    13   234   217   232    13
removexattr         197   235    14   235   218   233    14
lremovexattr        198   236    15   236   219   234    15
fremovexattr        199   237    16   237   220   235    16
"""
"""Calls about extended attributes."""

IDENTIFYING: Final = """\
getuid              102    24   174    24    24   199   174
geteuid             107    49   175    49    49   201   175
getgid              104    47   176    47    47   200   176
getegid             108    50   177    50    50   202   177
getresuid           118   165   148   165   165   209   148
getresgid           120   171   150   171   170   211   150
getgroups           115    80   158    80    80   205   158
setuid              105    23   146    23    23   213   146
setgid              106    46   144    46    46   214   144
setreuid            113    70   145    70    70   203   145
setregid            114    71   143    71    71   204   143
setresuid           117   164   147   164   164   208   147
setresgid           119   170   149   170   169   210   149
setfsuid            122   138   151   138   138   215   151
setfsgid            123   139   152   139   139   216   152
setgroups           116    81   159    81    81   206   159
getuid32              -   199     -   199     -     -     -
geteuid32             -   201     -   201     -     -     -
getgid32              -   200     -   200     -     -     -
getegid32             -   202     -   202     -     -     -
getresuid32           -   209     -   209     -     -     -
getresgid32           -   211     -   211     -     -     -
getgroups32           -   205     -   205     -     -     -
setuid32              -   213     -   213     -     -     -
setgid32              -   214     -   214     -     -     -
setreuid32            -   203     -   203     -     -     -
setregid32            -   204     -   204     -     -     -
setresuid32           -   208     -   208     -     -     -
setresgid32           -   210     -   210     -     -     -
setfsuid32            -   215     -   215     -     -     -
setfsgid32            -   216     -   216     -     -     -
setgroups32           -   206     -   206     -     -     -
capget              125   184    90   184   183   184    90
capset              126   185    91   185   184   185    91
"""
"""Calls that report or change the credentials of the caller."""

CONNECTING: Final = """\
socket               41   359   198   281   326   359   198
socketpair           53   360   199   288   333   360   199
connect              42   362   203   283   328   362   203
bind                 49   361   200   282   327   361   200
"""
"""Calls that make sockets of AF_UNIX, and those that take the address of a socket."""

SIGNALLING: Final = """\
kill                 62    37   129    37    37    37   129
tkill               200   238   130   238   208   237   130
tgkill              234   270   131   268   250   241   131
rt_sigqueueinfo     129   178   138   178   177   178   138
rt_tgsigqueueinfo   297   335   240   363   322   330   240
pidfd_open          434   434   434   434   434   434   434
"""
"""Calls that send a signal to the process, or the thread, that argument 0 names."""

LIMITING: Final = """\
prlimit64           302   340   261   369   325   334   261
sched_setparam      142   154   118   154   154   154   118
sched_setscheduler   144   156   119   156   156   156   119
sched_setaffinity   203   241   122   241   222   239   122
sched_setattr       314   351   274   380   355   345   274
"""
"""Calls that change how the process that argument 0 names is run. Unless that is 0, the caller, they are sent to the
supervisor."""

RANKING: Final = """\
setpriority         141    97   140    97    97    97   140
ioprio_set          251   289    30   314   273   282    30
"""
"""Refused (EPERM) unless the caller itself is meant."""

WATCHING: Final = """\
inotify_add_watch   254   292    27   317   276   285    27
"""
"""Fails with ENOSPC, so that programs look at intervals."""

STARTING: Final = """\
execve               59    11   221    11    11    11   221
execveat            322   358   281   387   362   354   281
"""
"""Calls that the tracer replaces."""

FORKING: Final = """\
clone                56   120   220   120   120   120   220
"""
"""Refused (EPERM) for a process without a tracer."""

CONTROLLING: Final = """\
prctl               157   172   167   172   171   172   167
fcntl                72    55    25    55    55    55    25
fcntl64               -   221     -   221     -     -     -
ioctl                16    54    29    54    54    54    29
"""
"""Calls that succeed without doing anything, or are refused, for some of their requests."""

REFUSED: Final = """\
ptrace              101    26   117    26    26    26   117
process_vm_readv    310   347   270   376   351   340   270
process_vm_writev   311   348   271   377   352   341   271
kcmp                312   349   272   378   354   343   272
get_robust_list     274   312   100   339   299   305   100
chroot              161    61    51    61    61    61    51
open_by_handle_at   304   342   265   371   346   336   265
"""
"""Calls that fail with EPERM: they reach other processes, or files by other means than a path."""

UNSUPPORTED: Final = """\
name_to_handle_at   303   341   264   370   345   335   264
"""
"""Calls that fail with EOPNOTSUPP."""

MISSING: Final = """\
mq_open             240   277   180   274   262   271   180
mq_unlink           241   278   181   275   263   272   181
socketcall            -   102     -     -   102   102     -
statmount           457   457   457   457   457   457   457
listmount           458   458   458   458   458   458   458
setxattrat          463   463   463   463   463   463   463
getxattrat          464   464   464   464   464   464   464
listxattrat         465   465   465   465   465   465   465
removexattrat       466   466   466   466   466   466   466
"""
"""Calls that fail with ENOSYS, as on an older kernel."""

NAMING: Final = """\
uname                63   122   160   122   122   122   160
"""
"""Calls that report the host name."""

ANSWERED: Final = (
    OPENING + LOOKING + ACCESSING + READING + ENTERING + MAKING + REMOVING + MOVING + PERMITTING + OWNING + DATING
    + SIZING + ATTRIBUTES + IDENTIFYING + NAMING + CONNECTING + SIGNALLING + LIMITING
)  # fmt: skip
"""Calls that are sent to the supervisor, all or with certain arguments."""
