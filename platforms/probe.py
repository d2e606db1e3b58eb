"""Trying things out in a forked child: does the kernel run programs of an architecture, as it is or with an emulator
registered in a user namespace of its own?

Every answer is a sentence that says why not, "" when it works. The child makes system calls only and never returns;
what it changes (namespaces, mounts, handlers) ends with it.
"""

from __future__ import annotations

import errno
import functools
import os
import warnings
from collections.abc import Callable
from typing import Final, NoReturn

from platforms import binfmt, elf

_ARGUMENTS: Final = ("kanifold", "1", "2", "3", "4", "5", "6")
"""Their number is the status that the program of ``elf.program`` ends with. An emulator that does not understand the
flags it was registered with passes on one more or one less."""

_MFD_EXEC: Final = 0x10
"""linux/memfd.h, Linux 6.3; without it the sysctl vm.memfd_noexec may take the right to execute away."""


@functools.cache
def executes(architecture: str) -> str:
    """Whether this process may execute ``architecture``'s programs: natively, or by a handler that it need not see."""
    return _run(architecture, lambda: None)


@functools.cache
def executes_privately(architecture: str, interpreter: str) -> str:
    """Whether ``interpreter`` runs ``architecture``'s programs from a binfmt_misc in a user namespace of our own."""

    from platforms import mountspace, syscalls

    syscalls.bounded(0)  # so that the C library is loaded here and not by the child

    def prepare() -> None:
        uid, gid = os.geteuid(), os.getegid()
        try:
            syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
        except PermissionError:
            if uid:
                raise
            mountspace.enter()  # a chroot, which has no user namespaces, and which the executor leaves as well
            syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
        for name, text in (("setgroups", b"deny"), ("uid_map", b"0 %d 1" % uid), ("gid_map", b"0 %d 1" % gid)):
            file = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
            os.write(file, text)
        binfmt.mount_private(((architecture, interpreter),))

    return _run(architecture, prepare)


def _run(architecture: str, prepare: Callable[[], object]) -> str:
    """Fork, ``prepare`` in the child, execute the architecture's smallest program there, and say what went wrong."""
    program = elf.program(architecture)
    report, child_report = os.pipe()
    with warnings.catch_warnings():
        # Python warns of forking with threads around. The child takes no lock of theirs: it calls the kernel, execs.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _child(program, prepare, child_report)
    os.close(child_report)
    with open(report, "rb") as lines:
        said = lines.read(4096).decode(errors="replace").strip()
    _, status = os.waitpid(pid, 0)
    if status == len(_ARGUMENTS) << 8:
        return ""
    if said:
        return said.splitlines()[-1]
    if os.WIFSIGNALED(status):
        return f"a program of {architecture} died of signal {os.WTERMSIG(status)}"
    return f"a program of {architecture} got {os.WEXITSTATUS(status)} arguments instead of {len(_ARGUMENTS)}"


def _child(program: bytes, prepare: Callable[[], object], report: int) -> NoReturn:
    try:
        os.dup2(report, 2)  # an emulator's complaints
        file = _executable_memory()
        os.write(file, program)
        prepare()
        os.execve(f"/proc/self/fd/{file}", _ARGUMENTS, {})
    except OSError as error:
        os.write(report, _sentence(error).encode())
    except BaseException as error:  # nothing may unwind into the parent's frames
        os.write(report, repr(error).encode())
    finally:
        os._exit(127)


def _executable_memory() -> int:
    """A file in memory that may be executed. Not close-on-exec: an emulator opens it again, by its path."""
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
