"""Attack 7 (CVE-2024-21626 runc): a leaked descriptor lets the working directory land on the host."""

from __future__ import annotations

import os

import pytest
from sandbox_process import Inside, SandboxProcess


@pytest.mark.parametrize("prefix", ["/proc/self/fd", "/dev/fd", "/proc/1/fd", "/proc/thread-self/fd"])
def test_no_descriptor_is_a_working_directory(root_sandbox: SandboxProcess, prefix: str) -> None:
    root_sandbox.call(_leak)
    specs = [root_sandbox.spec("/bin/ls", "-la", ".", cwd=f"{prefix}/{number}") for number in range(3, 65)]
    for done in root_sandbox.run_all(specs):
        assert done.ended.code == 125, done.out
        assert done.ended.error.startswith("cannot change to the working directory")


@pytest.mark.parametrize("link", ["/proc/self/cwd", "/proc/self/root", "/proc/1/cwd", "/proc/self/fd/3/../../.."])
def test_the_links_of_proc_lead_nowhere(either_sandbox: SandboxProcess, link: str) -> None:
    done = either_sandbox.run("/bin/ls", cwd=link)
    assert (done.ended.code, done.diff) == (125, {}), done.out


def test_an_executors_inheritable_descriptors_stay_out(either_sandbox: SandboxProcess) -> None:
    either_sandbox.call(_leak)
    assert either_sandbox.run("/bin/ls", "/proc/self/fd").out.split() == ["0", "1", "2", "3"]


def _leak(inside: Inside) -> None:
    """Open the host's root, as careless code might."""
    if not hasattr(inside, "_leaked"):
        inside._leaked = [os.open("/", os.O_PATH) for _ in range(8)]  # type: ignore[attr-defined]
        for fd in inside._leaked:  # type: ignore[attr-defined]
            os.set_inheritable(fd, True)
