"""Running a function in a child process that dies, or in which a system call fails, at the n-th call that writes.

A seccomp filter stops the child at such calls for its tracer, the parent (ptrace(2)), so all system calls count, those
of SQLite included. A child that dies at a call has not made it.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from kernel_calls import no_new_privileges

from platforms import syscalls

_TRACEME, _SETOPTIONS, _CONT, _POKEUSER, _GET_SYSCALL_INFO = 0, 0x4200, 7, 6, 0x420E
_TRACESECCOMP, _EXITKILL = 1 << 7, 1 << 20
_EVENT_SECCOMP = 7
_RET_TRACE, _RET_ALLOW = 0x7FF00000, 0x7FFF0000

_NUMBERS = {
    "x86_64": {
        "write": 1, "pwrite64": 18, "writev": 20, "flock": 73, "fsync": 74, "fdatasync": 75, "ftruncate": 77,
        "rename": 82, "mkdir": 83, "rmdir": 84, "unlink": 87, "symlink": 88, "chmod": 90, "fchmod": 91, "openat": 257,
        "mkdirat": 258, "unlinkat": 263, "renameat": 264, "fchmodat": 268, "utimensat": 280, "fallocate": 285,
        "syncfs": 306, "renameat2": 316,
    },
    "aarch64": {
        "write": 64, "pwrite64": 68, "writev": 66, "flock": 32, "fsync": 82, "fdatasync": 83, "ftruncate": 46,
        "openat": 56, "mkdirat": 34, "unlinkat": 35, "symlinkat": 36, "renameat": 38, "fchmod": 52, "fchmodat": 53,
        "utimensat": 88, "fallocate": 47, "syncfs": 267, "renameat2": 276,
    },
}  # fmt: skip
_X86_ORIG_RAX, _X86_RAX = 15 * 8, 10 * 8

FAILED = 7
"""Exit status of a child whose function raised an expected error."""


@dataclass(frozen=True)
class Outcome:
    """How the child ended: at the fault (``reached``), or by itself with ``status``."""

    reached: bool
    status: int
    call: str
    """The system call of the fault."""


def unavailable() -> str:
    """Return why this is not possible here; "" if it is."""
    if sys.platform != "linux" or os.uname().machine not in _NUMBERS:
        return "system call numbers are known for Linux on x86_64 and aarch64 only"
    try:
        done = die_at(0, lambda: None, ())
    except OSError as error:
        return f"processes cannot be traced here: {error}"
    return "" if done.status == 0 else "processes cannot be traced here"


def die_at(point: int, function: Callable[[], None], expected: tuple[type[Exception], ...]) -> Outcome:
    """Run ``function`` in a child that gets SIGKILL instead of its ``point``-th writing call (from 1; 0: never)."""
    return _trace(point, function, expected, None)


def fail_at(
    point: int, number: int, function: Callable[[], None], expected: tuple[type[Exception], ...], spared: frozenset[str]
) -> Outcome:
    """Run ``function`` in a child whose ``point``-th writing call fails with the errno ``number``.

    Calls in ``spared`` are not counted. The child's status is ``FAILED`` when it raised one of ``expected``. x86-64.
    """
    return _trace(point, function, expected, number, spared)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    return libc


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> None:
    if _libc().ptrace(request, pid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _filter(numbers: dict[str, int]) -> bytes:
    """Stop at the calls ``numbers``, and at openat only when it may create (linux/filter.h, linux/seccomp.h)."""
    load, equal, any_bit, answer = 0x20, 0x15, 0x45, 0x06
    plain = [number for name, number in numbers.items() if name != "openat"]
    # struct sock_filter: code, offset if true, offset if false, constant. The last four decide; jumps lead there.
    program = [(load, 0, 0, 0)]
    program += [(equal, len(plain) - at + 3, 0, number) for at, number in enumerate(plain)]
    program += [(equal, 0, 2, numbers.get("openat", 0xFFFFFFFF)), (load, 0, 0, 16 + 2 * 8), (any_bit, 1, 0, os.O_CREAT)]
    program += [(answer, 0, 0, _RET_ALLOW), (answer, 0, 0, _RET_TRACE)]
    return b"".join(struct.pack("=HBBI", *each) for each in program)


def _child(program: bytes, function: Callable[[], None], expected: tuple[type[Exception], ...]) -> None:
    status = 1
    try:
        _ptrace(_TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        no_new_privileges()
        syscalls.seccomp_filter(program)
        function()
        status = 0
    except expected:
        status = FAILED
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _trace(
    point: int,
    function: Callable[[], None],
    expected: tuple[type[Exception], ...],
    number: int | None,
    spared: frozenset[str] = frozenset(),
) -> Outcome:
    numbers = {name: value for name, value in _NUMBERS[os.uname().machine].items() if name not in spared}
    names = {value: name for name, value in numbers.items()}
    info = ctypes.create_string_buffer(88)
    _libc()
    pid = os.fork()
    if pid == 0:
        _child(_filter(numbers), function, expected)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        raise OSError(errno.EPERM, "the child could not be traced")
    _ptrace(_SETOPTIONS, pid, 0, _TRACESECCOMP | _EXITKILL)
    seen, at, deliver = 0, "", 0
    while True:
        _ptrace(_CONT, pid, 0, deliver)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            return Outcome(bool(at), os.waitstatus_to_exitcode(status), at)
        deliver = 0
        if status >> 8 != signal.SIGTRAP | _EVENT_SECCOMP << 8:
            deliver = os.WSTOPSIG(status)
            continue
        seen += 1
        if seen != point:
            continue
        _ptrace(_GET_SYSCALL_INFO, pid, len(info), ctypes.addressof(info))
        at = names[struct.unpack_from("=Q", info.raw, 24)[0]]
        if number is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return Outcome(True, -signal.SIGKILL, at)
        # A call whose number is changed to -1 is skipped, and returns what the register says.
        _ptrace(_POKEUSER, pid, _X86_ORIG_RAX, (1 << 64) - 1)
        _ptrace(_POKEUSER, pid, _X86_RAX, -number & (1 << 64) - 1)
