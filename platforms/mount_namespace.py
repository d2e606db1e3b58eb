"""Entering a mount namespace, also from a plain chroot.

Mounts in a new namespace propagate to the one that it was copied from until they are made private, which requires a
mount point; the root directory of a plain chroot (as Debian's package builders use) is none. pivot_root(2) and user
namespaces have the same requirement: the root directory must be the topmost mount of the namespace. So in a plain
chroot the root directory is made that, in the new namespace only.
"""

from __future__ import annotations

import errno
import os

from platforms import syscalls

_PRIVATE = syscalls.MS_REC | syscalls.MS_PRIVATE


def enter_mount_namespace() -> None:
    """Move this thread to a new mount namespace with private propagation. Raises OSError.

    Paths lead where they led before. In a plain chroot, which takes CAP_SYS_CHROOT to leave, descriptors that were
    opened before are of mounts that are not in the new namespace.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS)
    try:
        syscalls.mount("", "/", "", _PRIVATE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _leave_chroot()


def _leave_chroot() -> None:
    """Make the root directory, which is no mount point, the topmost mount of this namespace."""
    work = os.getcwd()
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Then ".." leads up to the root of the namespace: above its root directory it is unbounded (chroot(2)).
        os.chroot("/proc")
        os.fchdir(root)
        while not os.path.samestat(os.stat("."), os.stat("..")):
            os.chdir("..")
        os.chroot(".")
        syscalls.mount("", ".", "", _PRIVATE)
        os.fchdir(root)
    finally:
        os.close(root)
    here = syscalls.open_tree(
        syscalls.AT_FDCWD, ".", syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE | syscalls.OPEN_TREE_CLOEXEC
    )
    try:
        syscalls.move_mount(here, "", syscalls.AT_FDCWD, ".", syscalls.MOVE_MOUNT_F_EMPTY_PATH)
        os.fchdir(here)
    finally:
        os.close(here)
    syscalls.pivot_root(".", ".")
    syscalls.umount(".", syscalls.MNT_DETACH)
    os.chdir(work)
