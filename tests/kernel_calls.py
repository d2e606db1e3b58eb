"""System calls that only tests make."""

from __future__ import annotations

import ctypes
import os

_RENAME_EXCHANGE = 2
_PR_SET_NO_NEW_PRIVS = 38
_AT_FDCWD = -100


def exchange(one: str, other: str) -> None:
    """renameat2(2): each of two paths is the other at once."""
    _check(_libc().renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE))


def no_new_privileges() -> None:
    """prctl(2), PR_SET_NO_NEW_PRIVS: by which whoever is not root may install a seccomp filter."""
    _check(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
