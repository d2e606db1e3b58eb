"""A user namespace in which the other builders find a handler for foreign platforms, so that the machine needs none.

kanifold registers emulators in its builds' own namespaces. The others ask for a registration on the machine, which is
for everybody on it and nothing that a benchmark may do. Since Linux 6.7 a user namespace can have a binfmt_misc of its
own, so they are run in one: as its root, with 65,536 ids mapped to themselves, on the same file systems.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import emulators

_SCRIPT = """
set -eu
read -r _
mount -t proc proc /proc
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
for line; do printf '%s' "$line" > /proc/sys/fs/binfmt_misc/register; done
echo ready
exec cat
"""

DEBIAN_NAMES = {"linux/arm64": "arm64", "linux/arm/v7": "armhf", "linux/riscv64": "riscv64", "linux/s390x": "s390x"}
"""Platforms that may need an emulator, by the names that tests/emulators.py has for them."""


@dataclass(frozen=True)
class Handlers:
    """Where executables of foreign platforms run: in the namespaces of process ``pid``; 0 for on the machine itself."""

    pid: int = 0

    @property
    def words(self) -> tuple[str, ...]:
        """What runs a command there, before the command."""
        return ("nsenter", f"--target={self.pid}", "--user", "--mount", "--pid", "--") if self.pid else ()

    @property
    def user_namespace(self) -> str:
        """The file of the user namespace that has them."""
        return f"/proc/{self.pid or 'self'}/ns/user"


@contextlib.contextmanager
def handlers(platforms: Sequence[str]) -> Iterator[Handlers]:
    """Where executables of ``platforms`` run; for as long as the context lasts.

    RuntimeError when there is no emulator, or no namespace.
    """
    wanted = [DEBIAN_NAMES[each] for each in platforms if each in DEBIAN_NAMES and not _registered(each)]
    if not wanted:
        yield Handlers()
        return
    if os.geteuid() != 0:
        raise RuntimeError("not root")
    lines = []
    for arch in wanted:
        found = emulators.emulator(arch)
        if found is None:
            raise RuntimeError(f"no qemu-{emulators.QEMU[arch]}-static: install qemu-user-static")
        lines.append(emulators.registration(arch, found))
    spaces = ["setpriv", "--pdeathsig=KILL", "unshare", "--user", "--mount", "--pid", "--fork", "--kill-child"]
    with subprocess.Popen(
        [*spaces, "sh", "-c", _SCRIPT, "sh", *lines], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            # unshare --fork: its own namespace is the one to map, and shows in /proc as soon as it exists.
            ours = os.readlink("/proc/self/ns/user")
            while os.readlink(f"/proc/{process.pid}/ns/user") == ours and process.poll() is None:
                os.sched_yield()
            emulators.map_ids(process.pid)
            process.stdin.write("go\n")
            process.stdin.flush()
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("no binfmt_misc in a user namespace: needs Linux 6.7")
            (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            yield Handlers(int(child))
        finally:
            process.kill()


def _registered(platform: str) -> bool:
    """Whether the machine itself runs ``platform``, by nature or by a handler."""
    qemu = emulators.QEMU[DEBIAN_NAMES[platform]]
    if os.uname().machine == qemu:
        return True
    handler = Path("/proc/sys/fs/binfmt_misc") / f"qemu-{qemu}"
    return handler.exists() and handler.read_text().startswith("enabled")
