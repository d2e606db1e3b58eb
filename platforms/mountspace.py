"""A mount namespace of one's own, also in a plain chroot.

Mounts made in a new namespace may still spread to where it was copied from, until its own are made private; and that
is asked of a mount point, which the root directory of a plain chroot (as Debian's package builders have it) is not. Nor
can pivot_root(2) be called there, nor user namespaces be made: the kernel wants the root directory to be a mount, and
the namespace's topmost. So there the root directory is made both, in the new namespace alone.
"""

from __future__ import annotations

import errno
import os

from platforms import syscalls

_PRIVATE = syscalls.MS_REC | syscalls.MS_PRIVATE


def enter() -> None:
    """Move this thread to a mount namespace of its own, out of which nothing spreads. Raises OSError.

    All paths lead where they led before. In a plain chroot, which this needs CAP_SYS_CHROOT to get out of, descriptors
    that were opened before are of mounts that this namespace does not have.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS)
    try:
        syscalls.mount("", "/", "", _PRIVATE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _leave_chroot()


def _leave_chroot() -> None:
    """Make the root directory, which is no mount point, this namespace's topmost mount."""
    work = os.getcwd()
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Up to the namespace's own root directory: from above of its root, a process's ".." has no bounds (chroot(2)).
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
