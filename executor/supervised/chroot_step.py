"""Turning a forked process into a step in a chroot: root directory, privileges, program.

The step is confined in several ways, each of which is enough to keep it from the executor's files and memory:

- It lacks CAP_SYS_CHROOT, without which it cannot leave its root, and by which the executor has more capabilities than
  it: the kernel lets nobody trace a process with more, nor read what only tracing processes may (ptrace(2)).
- Landlock keeps it from opening any file outside of its root, from tracing processes that are not its own, and from
  sending them signals. Before Linux 6.12 signals go through the supervisor (``signals``).
- Its seccomp filter is Docker's, for the capabilities that it has.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import stat
from typing import TYPE_CHECKING, Final, NoReturn

from executor.sandbox import cgroup, seccomp, step_process
from executor.sandbox.isolation import SUPERVISED
from executor.sandbox.network import SCOPES
from executor.sandbox.report import NOT_SET_UP, StartReporter
from executor.sandbox.spec import SecretFile
from executor.sandbox.step_process import CAPABILITIES, NO_ID, RefusedError
from executor.supervised import chroot_calls
from platforms import syscalls
from platforms.descriptors import close_others

if TYPE_CHECKING:
    from executor.sandbox.spec import Spec

KEPT: Final = frozenset(CAPABILITIES) - {syscalls.CAP_SYS_CHROOT, syscalls.CAP_NET_RAW, syscalls.CAP_MKNOD}
"""The capabilities of a step. CAP_NET_RAW in the container's network would allow to read and forge its traffic.
Without mounts a device that a step has made could be opened, so the supervisor makes them (``Supervisor``)."""
_OWN_SCOPES: Final = syscalls.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | syscalls.LANDLOCK_SCOPE_SIGNAL
_WORSE: Final = 500
_WORST: Final = 1000
"""The increment of oom_score_adj of a step over ours, and its maximum (1000 corresponds to all memory)."""


def filter_of(spec: Spec, *, traced: bool = False) -> bytes:
    """Return the seccomp filter of the step ``spec``; ``traced``: for one with a tracer."""
    secrets = any(isinstance(each, SecretFile) for each in spec.mounts)
    return _filter(secrets=secrets, network=spec.network != "none", signals=not has_scopes(), traced=traced)


def prepare(*, traced: bool = False) -> None:
    """Make the filter of most steps, so that processes which are forked from this one have it; ``traced`` as above."""
    _filter(secrets=False, network=True, signals=not has_scopes(), traced=traced)


@functools.cache
def _filter(*, secrets: bool, network: bool, signals: bool, traced: bool) -> bytes:
    rules = chroot_calls.rules(secrets=secrets, network=network, signals=signals)
    return seccomp.program(more=rules, traced=seccomp.EXECUTING if traced else "")


def has_scopes() -> bool:
    """Whether Landlock can keep signals and abstract sockets in a domain."""
    return syscalls.landlock_version() >= SCOPES


def become(
    spec: Spec,
    root: int,
    output: tuple[int, int],
    supervisor: socket.socket,
    tracer: socket.socket | None,
    report: StartReporter,
) -> NoReturn:
    """Turn this process into the step ``spec`` in the directory ``root``.

    ``output``: stdout and stderr. ``supervisor``: a socket for the listener of the filter. ``tracer``: one to its
    tracer, if it has one. Raises RefusedError, and OSError where the host does not allow it.
    """
    # 1. The process: killed with its parent, with default attributes, and the first that the OOM killer selects.
    syscalls.die_with_parent()
    os.setsid()
    signal.set_wakeup_fd(-1)
    for each in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(each, signal.SIG_DFL)
    os.umask(0o022)
    _volunteer()
    if spec.cgroup:
        cgroup.enter(spec.cgroup)
    for number in (spec.uid, spec.gid, *spec.groups):  # -1 means "unchanged", which is root (CVE-2024-40635)
        if not 0 <= number < NO_ID:
            raise RefusedError(NOT_SET_UP, f"{number} is no user or group id")
    code = filter_of(spec, traced=tracer is not None)

    # 2. Root directory and standard streams, and no other descriptor that leads outside.
    os.fchdir(root)
    os.chroot(".")
    os.chdir("/")
    stdin = step_process.in_memory(spec.stdin) if spec.stdin else _null()
    for number, fd in enumerate((stdin, *output)):
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            step_process.give_stream(fd, spec.uid)
        os.dup2(fd, number)
    close_others(report.fd, supervisor.fileno(), *([tracer.fileno()] if tracer else []))
    step_process.enter_directory(spec.cwd, -1)
    if tracer is not None:
        step_process.be_traced(tracer)
        tracer.close()

    # 3. Privileges, irreversibly; the filter last, as the supervisor answers from then on.
    syscalls.no_new_privileges()
    syscalls.landlock_confine(_OWN_SCOPES if has_scopes() else 0)
    for name, soft, hard in spec.options.ulimits:
        step_process.set_limit(name, soft, hard)
    step_process.drop_capabilities(KEPT)
    step_process.change_user(spec)
    syscalls.die_with_parent()  # again: cleared by the change of ids
    program = step_process.find_program(spec.argv, spec.env)
    listener = syscalls.seccomp_filter(code, SUPERVISED)
    socket.send_fds(supervisor, [b"listener"], [listener])
    os.close(listener)
    supervisor.close()

    # 4. The program.
    step_process.start_program(program, spec)


def _null() -> int:
    """Return a descriptor of the root's own /dev/null, or of one without content where devices cannot be opened."""
    with contextlib.suppress(OSError):
        return os.open("/dev/null", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    return step_process.in_memory(b"")


def _volunteer() -> None:
    fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
    os.pwrite(fd, b"%d" % min(_WORST, int(os.pread(fd, 16, 0)) + _WORSE), 0)
    os.close(fd)
