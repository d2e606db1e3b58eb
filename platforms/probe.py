"""Testing, in a forked child, whether the kernel runs programs of an architecture: natively, with an emulator that
is registered in a user namespace, or with one that a tracer starts.

The functions return why not, "" when it works. The child only makes system calls and never returns; what it changes
(namespaces, mounts, handlers) ends with it.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import warnings
from collections.abc import Callable
from typing import Final, NoReturn

from platforms import binfmt, elf

_ARGUMENTS: Final = ("kanifold", "1", "2", "3", "4", "5", "6")
"""Their number is the exit status of ``elf.program``. An emulator that does not support the flags that it was
registered with passes one more or one less."""

_RETURN_TRACE: Final = b"\x06\0\0\0\0\0\xf0\x7f"
"""A seccomp filter that has every call traced (little-endian): BPF_RET, SECCOMP_RET_TRACE."""
_TRACEABLE: Final = ("x86_64", "aarch64")
"""The machines (uname(2)) on which a tracer can start programs."""

_MFD_EXEC: Final = 0x10
"""linux/memfd.h, Linux 6.3; without it the sysctl vm.memfd_noexec may remove the execute permission."""


@functools.cache
def executes(architecture: str) -> str:
    """Return why this process cannot execute programs of ``architecture``, natively or by any handler; "" if it can."""
    return _run(architecture, lambda: None)


@functools.cache
def executes_privately(architecture: str, interpreter: str) -> str:
    """Return why ``interpreter`` does not run programs of ``architecture`` from a private binfmt_misc; "" if it
    does."""
    return _run_privately(architecture, interpreter, len(_ARGUMENTS))


@functools.cache
def registers_privately(architecture: str, stand_in: str) -> str:
    """Return why no interpreter of programs of ``architecture`` can be registered in a private binfmt_misc; "" if one
    can.

    Tried with ``stand_in``, a program of this host that ends with the number of its arguments: its own path, that of
    the program, and what the program gets.
    """
    return _run_privately(architecture, stand_in, len(_ARGUMENTS) + 2)


@functools.cache
def emulates(architecture: str, interpreter: str) -> str:
    """Return why ``interpreter``, called as a program, does not run programs of ``architecture``; "" if it does."""
    return _run(architecture, lambda: None, interpreter=interpreter)


@functools.cache
def traces() -> str:
    """Return why a process of this user cannot stop another one before its system calls; "" if it can."""
    from platforms import syscalls

    if (machine := os.uname().machine) not in _TRACEABLE:
        return f"there is no tracer for hosts that are {machine}"
    syscalls.bounded(0)  # loads the C library before the fork
    return _in_child(_trace_another)


def _trace_another() -> str:
    """Trace a process until it is stopped before a system call, and kill it."""
    from platforms import syscalls

    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(go)
            os.read(ready, 1)
            syscalls.no_new_privileges()
            syscalls.seccomp_filter(_RETURN_TRACE)
            os.getppid()
        finally:
            os._exit(1)
    try:
        syscalls.ptrace(syscalls.PTRACE_SEIZE, pid, 0, syscalls.PTRACE_O_TRACESECCOMP | syscalls.PTRACE_O_EXITKILL)
        os.write(go, b"1")
        _, status = os.waitpid(pid, syscalls.WALL)
        return "" if status >> 16 == syscalls.PTRACE_EVENT_SECCOMP else "seccomp filters do not stop traced processes"
    finally:
        os.kill(pid, signal.SIGKILL)


def _in_child(test: Callable[[], str]) -> str:
    """Return what ``test`` returns in a child, or why it fails there."""
    report, child_report = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            os.write(child_report, test().encode())
        except OSError as error:
            os.write(child_report, _sentence(error).encode())
        except BaseException as error:
            os.write(child_report, repr(error).encode())
        finally:
            os._exit(0)
    os.close(child_report)
    with open(report, "rb") as lines:
        said = lines.read(4096).decode(errors="replace")
    os.waitpid(pid, 0)
    return said


def _run_privately(architecture: str, interpreter: str, status: int) -> str:
    """Run a program of ``architecture`` by ``interpreter``; return why it did not end with ``status``, or ""."""
    from platforms import mount_namespace, syscalls

    syscalls.bounded(0)  # loads the C library before the fork

    def prepare() -> None:
        uid, gid = os.geteuid(), os.getegid()
        try:
            syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
        except PermissionError:
            if uid:
                raise
            mount_namespace.enter_mount_namespace()  # no user namespace can be made in a chroot
            syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
        for name, text in (("setgroups", b"deny"), ("uid_map", b"0 %d 1" % uid), ("gid_map", b"0 %d 1" % gid)):
            file = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
            os.write(file, text)
        binfmt.mount_private(((architecture, interpreter),))

    return _run(architecture, prepare, status)


def _run(
    architecture: str, prepare: Callable[[], object], expected: int = len(_ARGUMENTS), interpreter: str = ""
) -> str:
    """Fork, call ``prepare`` in the child, execute the architecture's smallest program there, by ``interpreter`` if
    that is given; return why it did not end with the status ``expected``, or ""."""
    program = elf.program(architecture)
    report, child_report = os.pipe()
    with warnings.catch_warnings():
        # Python warns of a fork with several threads. The child only makes system calls and takes no lock.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _child(program, prepare, child_report, interpreter)
    os.close(child_report)
    with open(report, "rb") as lines:
        said = lines.read(4096).decode(errors="replace").strip()
    _, status = os.waitpid(pid, 0)
    if status == expected << 8:
        return ""
    if said:
        return said.splitlines()[-1]
    if os.WIFSIGNALED(status):
        return f"a program of {architecture} died of signal {os.WTERMSIG(status)}"
    return f"a program of {architecture} got {os.WEXITSTATUS(status)} arguments instead of {expected}"


def _child(program: bytes, prepare: Callable[[], object], report: int, interpreter: str) -> NoReturn:
    try:
        os.dup2(report, 2)  # for the messages of an emulator
        file = _executable_memory()
        os.write(file, program)
        prepare()
        path, (name, *arguments) = f"/proc/self/fd/{file}", _ARGUMENTS
        if interpreter:
            os.execve(interpreter, (interpreter, "-0", name, path, *arguments), {})
        os.execve(path, _ARGUMENTS, {})
    except OSError as error:
        os.write(report, _sentence(error).encode())
    except BaseException as error:  # the child must not return to the caller's frames
        os.write(report, repr(error).encode())
    finally:
        os._exit(127)


def _executable_memory() -> int:
    """Return an executable file in memory. Not close-on-exec: an emulator opens it again by its path."""
    try:
        return os.memfd_create("kanifold-probe", _MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise OSError(error.errno, f"memfd_create: {error.strerror}") from error
        return os.memfd_create("kanifold-probe", 0)


def _sentence(error: OSError) -> str:
    if error.errno == errno.ENOEXEC:
        return "the kernel has no handler for its programs"
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
