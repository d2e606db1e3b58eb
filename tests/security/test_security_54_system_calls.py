"""Attack 54 (review): system calls pass that Docker's default profile denies, and all that are not known yet."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator

import kernel_calls
import pytest

from executor.sandbox import seccomp
from platforms import syscalls

DENIED = {  # asm/unistd_64.h of x86-64: the number, and arguments with which the call itself would succeed or fail else
    "fanotify_init": (300, 0x200, 0),
    "kcmp": (312, 0, 0, 0, 1, 2),
    "lsm_list_modules": (461, 0, 0, 0),
    "lsm_set_self_attr": (460, 100, 0, 0, 0),
    "mbind": (237, 0, 0, 0, 0, 0, 0),
    "get_mempolicy": (239, 0, 0, 0, 0, 0),
    "migrate_pages": (256, 0, 0, 0, 0),
    "personality": (135, 0x0040000),
    "pidfd_getfd": (438, -1, 0, 0),
    "process_madvise": (440, -1, 0, 0, 0, 0),
    "set_mempolicy": (238, 0, 0, 0),
    "socket of AF_ALG": (41, 38, 5, 0),
    "socket of AF_VSOCK": (41, 40, 1, 0),
    "io_uring_setup": (425, 1, 0),
    "userfaultfd": (323, 0),
    "keyctl": (250, 0, -3, 0),
    "unshare": (272, 0x10000000),
}
UNKNOWN = (467, 468, 469, 470, 471, *range(472, 1024), 0xFFFF)
"""After what the profile speaks of: open_tree_attr, file_setattr, listns and what is to come."""


@pytest.fixture(scope="module")
def answers() -> Iterator[dict[tuple[int, ...], int]]:
    """The errno of each call, in a process under the filter."""
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are those of x86-64; test_sandbox_seccomp.py looks at the others")
    calls = [*DENIED.values(), *((number, 0, 0) for number in UNKNOWN)]
    libc = ctypes.CDLL(None, use_errno=True)
    program = seccomp.program()
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            kernel_calls.no_new_privileges()
            syscalls.seccomp_filter(program)
            for call in calls:
                ctypes.set_errno(0)
                libc.syscall(*(ctypes.c_long(each) for each in call))
                os.write(write, b"%d\n" % ctypes.get_errno())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as lines:
        found = [int(line) for line in lines]
    os.waitpid(child, 0)
    yield dict(zip(calls, found, strict=True))


@pytest.mark.parametrize("name", DENIED)
def test_what_docker_denies_is_denied(answers: dict[tuple[int, ...], int], name: str) -> None:
    assert answers[DENIED[name]] == errno.EPERM


def test_what_nobody_knows_yet_is_not_there(answers: dict[tuple[int, ...], int]) -> None:
    assert {answers[number, 0, 0] for number in UNKNOWN} == {errno.ENOSYS}
