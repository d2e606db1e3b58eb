"""Ensuring that the store belongs to this user alone.

Files in it are executed set-user-id root, mounted, trusted by name, and deleted. So every directory is owned by this
user, has mode 0700 and is no link; files have 0600 or 0400. A store that belongs to another user, has links as parts,
or was writable for others is rejected: chmod would not remove what they left in it. One that was only readable for
others is corrected.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from platforms.errors import StoreError
from platforms.paths import below

if TYPE_CHECKING:
    from collections.abc import Iterable

_FOR_OTHERS: Final = 0o077
_WRITABLE_FOR_OTHERS: Final = 0o022
_ELSEWHERE: Final = "choose another place with --root or KANIFOLD_ROOT"
_INDEX: Final = ("index.db", "index-")
"""Prefixes of the names of the index's files, which are at the top of the store."""


def claim(root: str, parts: Iterable[str], files: Iterable[str]) -> bool:
    """Make ``root`` and the directories ``parts`` (``blobs``, then ``blobs/sha256``, …) below it, where missing.

    Returns whether any was missing. ``files`` are the other entries at the top of a store. Links on the way to ``root``
    are followed, as the user chose it. Raises ``StoreError`` for a store that does not belong to this user alone, and
    ``OSError``.
    """
    parts = tuple(parts)
    os.makedirs(root, mode=0o700, exist_ok=True)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _claim_root(fd, root, {*parts, *files})
        made = False
        for part in parts:
            made = _claim_part(fd, root, part) or made
        return made
    finally:
        os.close(fd)


def is_plain(directory: str, name: str) -> bool:
    """Whether ``name`` in ``directory`` is a directory, not a link to one."""
    try:
        return stat.S_ISDIR(os.stat(below(directory, name), follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def claim_file(root: str, name: str) -> None:
    """Reject ``name`` in ``root`` unless it is a regular file of this user; remove the permissions of others.

    It is not opened: closing it would release the locks of a database that this process has open (fcntl(2)). Raises as
    ``claim`` does.
    """
    path = below(root, name)
    status = os.stat(path, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode):
        raise _refused(root, f"{name} in it is not a file", "remove it, or ")
    _check_owner(root, name, status)
    if status.st_mode & _WRITABLE_FOR_OTHERS:
        raise _refused(root, f"others may write to {name} in it", "remove the store, if nobody else should, or ")
    if status.st_mode & _FOR_OTHERS:
        os.chmod(path, 0o600)


def _claim_root(fd: int, root: str, own: set[str]) -> None:
    status = os.fstat(fd)
    _check_owner(root, "it", status)
    if not status.st_mode & _FOR_OTHERS:
        return
    if all(name in own or name.startswith(_INDEX) for name in os.listdir(fd)):
        os.fchmod(fd, 0o700)
    elif status.st_mode & _WRITABLE_FOR_OTHERS:
        # A directory with other files in it: its mode is not ours to change, and others could replace our entries.
        raise _refused(
            root, "others may write to it, and it holds more than a store", "give it a directory of its own: "
        )


def _claim_part(fd: int, root: str, part: str) -> bool:
    try:
        status = os.stat(part, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        try:
            os.mkdir(part, 0o700, dir_fd=fd)
        except FileExistsError:  # another process was faster
            status = os.stat(part, dir_fd=fd, follow_symlinks=False)
        else:
            return True
    if stat.S_ISLNK(status.st_mode):
        raise _refused(root, f"{part} in it is a symbolic link", "remove the link, or ")
    if not stat.S_ISDIR(status.st_mode):
        raise _refused(root, f"{part} in it is not a directory", "remove it, or ")
    _check_owner(root, part, status)
    if status.st_mode & _WRITABLE_FOR_OTHERS:
        raise _refused(root, f"others may write to {part} in it", "remove the store, if nobody else should, or ")
    if status.st_mode & _FOR_OTHERS:
        os.chmod(part, 0o700, dir_fd=fd)
    return False


def _check_owner(root: str, part: str, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise _refused(root, f"{part} belongs to user {status.st_uid}, not to {os.geteuid()}")


def _refused(root: str, why: str, remedy: str = "") -> StoreError:
    return StoreError(f"cannot use the store {root}", why=why, remedy=remedy + _ELSEWHERE)
