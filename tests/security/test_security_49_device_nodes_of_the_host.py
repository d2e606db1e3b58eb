"""Attack 49 (review): a step changes the mode of the host's device nodes, through its standard input or its /dev."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from sandbox_process import SandboxProcess

from executor.sandbox import staging

CHANGES = "chmod 1000 {0}; chown 1:1 {0}; touch -d 2001-01-01 {0}"


@pytest.fixture(autouse=True)
def _put_right() -> Iterator[None]:
    """Where these tests fail, the machine has no /dev/null that others could use."""
    before = {name: os.stat(f"/dev/{name}") for name in staging.DEVICE_NAMES}
    yield
    for name, status in before.items():
        now = os.stat(f"/dev/{name}")
        if (now.st_mode, now.st_uid, now.st_gid) != (status.st_mode, status.st_uid, status.st_gid):
            os.chown(f"/dev/{name}", status.st_uid, status.st_gid)
            os.chmod(f"/dev/{name}", status.st_mode & 0o7777)


def state(name: str) -> tuple[int, ...]:
    status = os.stat(f"/dev/{name}")
    return status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_ino


def test_standard_input_is_the_steps_own(sandbox: SandboxProcess) -> None:
    before = state("null")
    done = sandbox.run(
        "chmod 1000 /proc/self/fd/0; chown 1 /dev/stdin; touch -d 2001-01-01 /dev/stdin; readlink /proc/self/fd/0; cat"
    )
    assert done.out == "/dev/null\n"
    assert len(done.err.splitlines()) in (0, 3), done.err  # where calls are answered they succeed, without an effect
    assert state("null") == before


@pytest.mark.parametrize("name", staging.DEVICE_NAMES)
def test_devices(sandbox: SandboxProcess, name: str) -> None:
    before = state(name)
    by_path, by_descriptor = CHANGES.format(f"/dev/{name}"), CHANGES.format("/proc/self/fd/9")
    done = sandbox.run(f"{by_path}; (exec 9</dev/{name}; {by_descriptor}); ls -ln /dev/{name}")
    assert state(name) == before
    assert done.out.startswith("crw-rw-rw-"), done


@pytest.mark.parametrize("name", ["kcore", "keys", "timer_list"])
def test_what_masks_the_files_of_proc(sandbox: SandboxProcess, name: str) -> None:
    before = state("null")
    sandbox.run(CHANGES.format(f"/proc/{name}"))
    assert state("null") == before


def test_terminals_are_the_steps_own(sandbox: SandboxProcess) -> None:
    before = {name: os.stat(f"/dev/pts/{name}") for name in os.listdir("/dev/pts")}
    sandbox.run("ls /dev/pts; chmod 0 /dev/pts/*; chmod 0 /dev/pts /dev/ptmx; true")
    for name, status in before.items():
        if os.path.exists(f"/dev/pts/{name}"):
            assert os.stat(f"/dev/pts/{name}").st_mode == status.st_mode


def test_what_a_step_makes_itself_is_no_device(sandbox: SandboxProcess) -> None:
    """Its /dev, /dev/shm and /dev/mqueue, like its root file system, open none. With one id it is recorded only."""
    for place in ("/dev", "/dev/shm", "/tmp"):
        done = sandbox.run(f"mknod {place}/zero2 c 1 5; head -c 1 {place}/zero2 | wc -c")
        assert done.out == "0\n", done
