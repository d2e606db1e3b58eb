"""A root file system for one program that overwrites its own, as kaniko's executor does.

The program gets a mount namespace, a pid namespace and a root directory that holds nothing but itself. What the
machine lends it (the build context, a few devices) is bound to places of its own: a program that clears its root away
finds mounts there, and below them nothing of the machine's that it could remove.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

CONTEXT = "/workspace"
"""Where the program finds the build context, which it cannot write to."""

_SCRIPT = """
set -eu
root=$1 context=$2 program=$3
shift 3
mount --make-rprivate /
mount -t tmpfs none "$root/dev"
for each in null zero full random urandom; do
  : > "$root/dev/$each"
  mount --bind "/dev/$each" "$root/dev/$each"
done
ln -s /proc/self/fd "$root/dev/fd"
mount -t proc proc "$root/proc"
mount --bind "$context" "$root/workspace"
mount -o remount,bind,ro "$root/workspace"
mount --bind "$program" "$root/kaniko/executor"
mount -o remount,bind,ro "$root/kaniko/executor"
exec chroot "$root" /kaniko/executor "$@"
"""


def words(root: Path, context: Path, program: str, arguments: Sequence[str]) -> tuple[str, ...]:
    """The command that runs ``program`` with ``arguments`` in the empty directory ``root``. For root only."""
    for name in ("dev", "proc", "tmp", "workspace", "kaniko"):
        (root / name).mkdir()
    (root / "kaniko" / "executor").touch()
    spaces = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
    return (*spaces, "sh", "-c", _SCRIPT, "sh", str(root), str(context), program, *arguments)
