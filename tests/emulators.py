"""A private binfmt_misc for making foreign base images, so that nothing is registered on the machine.

Since Linux 6.7 a user namespace may mount its own binfmt_misc (kernel: fs/binfmt_misc.c); ``run_mapped`` runs a program
in such a namespace. Independent of kanifold's code.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence

QEMU = {"arm64": "aarch64", "armhf": "arm", "riscv64": "riscv64", "ppc64el": "ppc64le", "s390x": "s390x"}
"""Debian's architecture name to qemu-user's; amd64 runs i386 by itself."""

_ELF = {  # e_ident[EI_CLASS], e_ident[EI_DATA], e_machine: what the kernel compares at the start of an executable
    "arm64": (2, 1, 183),
    "armhf": (1, 1, 40),
    "riscv64": (2, 1, 243),
    "ppc64el": (2, 1, 21),
    "s390x": (2, 2, 22),
}

_SCRIPT = """
set -eu
read -r _
if [ -n "$1" ]; then
  mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
  printf '%s' "$1" > /proc/sys/fs/binfmt_misc/register
fi
shift
exec "$@"
"""


def emulator(arch: str) -> str | None:
    """Return the path of the static qemu for the Debian architecture ``arch``, if installed."""
    return shutil.which(f"qemu-{QEMU[arch]}-static")


def registration(arch: str, interpreter: str) -> str:
    """Return the line for binfmt_misc's ``register`` (Documentation/admin-guide/binfmt-misc.rst).

    F: the emulator is opened at registration, and so available in any root. P: programs keep their argv[0]; without it
    ``cat FILE`` in a busybox shell would run FILE as a script.
    """
    width, order, machine = _ELF[arch]
    little = order == 1
    head = bytes((0x7F, 0x45, 0x4C, 0x46, width, order, 1)) + bytes(9)
    magic = head + (2).to_bytes(2, "little" if little else "big") + machine.to_bytes(2, "little" if little else "big")
    kind_mask = b"\xfe\xff" if little else b"\xff\xfe"  # executables (2) and shared objects (3) alike
    mask = bytes((255,) * 7 + (0,) + (255,) * 8) + kind_mask + b"\xff\xff"

    def escaped(raw: bytes) -> str:
        return "".join(f"\\x{byte:02x}" for byte in raw)

    return f":kanifold-{arch}:M::{escaped(magic)}:{escaped(mask)}:{interpreter}:FP"


def run_mapped(arch: str | None, command: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run ``command`` as root of a new user namespace in which ``arch`` executables run too.

    As root all ids are mapped to themselves; as an ordinary user the ids of /etc/subuid are (newuidmap does it).
    Output comes back as text. All processes of the namespace end with this one, with this call, or after ``timeout``
    seconds. ``RuntimeError`` then, and when the ids cannot be mapped or no emulator is there.
    """
    line = ""
    if arch is not None and arch in QEMU:
        found = emulator(arch)
        if found is None:
            raise RuntimeError(f"no qemu-{QEMU[arch]}-static: install qemu-user-static")
        line = registration(arch, found)
    spaces = [
        "setpriv",
        "--pdeathsig=KILL",
        "unshare",
        "--user",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        _SCRIPT,
        "sh",
        line,
    ]
    return _run_with_maps(spaces, command, timeout)


def _run_with_maps(spaces: Sequence[str], command: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    # unshare --fork: the ids must be mapped for the parent, whose namespace the child shares. Its pid is ours to know
    # only after the namespace exists, which /proc shows.
    with subprocess.Popen(
        [*spaces, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        ours = os.readlink("/proc/self/ns/user")
        while os.readlink(f"/proc/{process.pid}/ns/user") == ours and process.poll() is None:
            os.sched_yield()
        try:
            map_ids(process.pid)
            out, _ = process.communicate("go\n", timeout)
        except subprocess.TimeoutExpired as late:
            raise RuntimeError(f"{' '.join(command)}: still running after {timeout} s") from late
        finally:
            process.kill()
    return subprocess.CompletedProcess(list(command), process.returncode, out)


def map_ids(pid: int) -> None:
    """Write the id maps of the new user namespace of process ``pid``."""
    if os.geteuid() == 0:
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as ids:
                ids.write("0 0 65536")
        return
    user = pwd.getpwuid(os.getuid()).pw_name
    for tool, table, own in (("newuidmap", "/etc/subuid", os.getuid()), ("newgidmap", "/etc/subgid", os.getgid())):
        start, count = subordinate(table, user)
        command = [tool, str(pid), "0", str(own), "1", "1", str(start), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{tool}: {done.stderr.strip()}")


def subordinate(table: str, user: str) -> tuple[int, int]:
    """Return the first range of ``user`` in /etc/subuid or /etc/subgid (subuid(5)); RuntimeError if there is none."""
    with open(table, encoding="utf-8") as lines:
        for text in lines:
            name, _, rest = text.strip().partition(":")
            if name in (user, str(os.getuid())):
                start, _, count = rest.partition(":")
                return int(start), int(count)
    raise RuntimeError(f"{table} grants {user} no ids")
