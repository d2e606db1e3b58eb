"""Attack 61 (review): what the host has mounted below its /sys is in the /sys of a step that has the host's network.

A step of root's reads debugfs and tracefs there, whose files are root's and ask for no capability: memory of drivers,
the traffic of USB devices, traces of all processes.
"""

from __future__ import annotations

import os

import pytest
from ordinary_user import User
from sandbox_process import SandboxProcess, opened

from platforms import syscalls

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")

HIDDEN = {
    "debugfs": "/sys/kernel/debug",
    "tracefs": "/sys/kernel/tracing",
    "securityfs": "/sys/kernel/security",
    "pstore": "/sys/fs/pstore",
    "bpf": "/sys/fs/bpf",
}


def host() -> None:
    """Mount what hosts have, as far as this kernel has it."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    for kind, place in HIDDEN.items():
        if os.path.isdir(place):
            try:
                syscalls.mount(kind, place, kind)
            except OSError:
                continue


@pytest.mark.parametrize("mode", ["root", "mapped", "single", "chroot", "answered"])
@pytest.mark.parametrize("network", ["host", "none"])
def test_what_the_host_has_mounted_in_its_sys_is_hidden(
    request: pytest.FixtureRequest, mode: str, network: str
) -> None:
    user: User | None = None
    if mode != "root":
        user = request.getfixturevalue("_user_with_ids" if mode == "mapped" else "_user_without_ids")
    with opened(user, world=host) as sandbox:
        done = sandbox.run(
            f"for each in {' '.join(HIDDEN.values())}; do ls $each 2>/dev/null; done;"
            " find /sys/fs/cgroup -maxdepth 1 | grep -c .; cat /sys/kernel/mm/transparent_hugepage/enabled > /dev/null",
            network=network,
        )
        assert done.err == ""
        assert done.out.split()[:-1] == []
        assert int(done.out) > 1  # the control group stays


def test_which_processor_gets_which_interrupt_is_hidden(root_sandbox: SandboxProcess) -> None:
    """moby #49560: how often, and when, tells what other containers do."""
    assert root_sandbox.run("cat /proc/interrupts").out == ""
