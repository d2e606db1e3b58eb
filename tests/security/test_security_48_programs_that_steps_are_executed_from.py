"""Attack 48 (CVE-2019-5736 runc): a step gets hold of the program that it was executed from, or is emulated by.

``/proc/self/exe`` of the process that executes a step's program was the host's Python, and ``/proc/PID/exe`` of a
foreign program is its emulator: with root's rights, or its owner's, a step changed the mode or the owner of the file,
or opened it for writing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from ordinary_user import User
from sandbox_process import QEMU, Inside, SandboxProcess, opened

from platforms import elf
from platforms.emulation import Emulation, EmulationMode
from platforms.host import host

NOT_EXECUTED = (126, 127)
"""Exit codes of a program that may not be executed, and of one that is not there."""


@pytest.mark.parametrize("path", ["/proc/self/exe", "/proc/1/exe", "/proc/thread-self/exe"])
def test_the_program_of_the_starting_process_is_none_of_a_step(sandbox: SandboxProcess, path: str) -> None:
    done = sandbox.run(path, "-c", "print('python')")
    assert (done.ended.code in NOT_EXECUTED, done.out) == (True, "")


def test_nor_is_it_by_a_link_of_the_image(sandbox: SandboxProcess) -> None:
    layer = sandbox.plant({"link": ("->", "/proc/self/exe")})
    done = sandbox.run("/link", "-c", "print('python')", layers=(layer, sandbox.busybox))
    assert (done.ended.code in NOT_EXECUTED, done.out) == (True, "")


def test_an_interpreter_that_is_named_so_is_the_starter(sandbox: SandboxProcess) -> None:
    """What the kernel looks up itself is kanifold's program of 200 bytes, which executes what it is told to."""
    layer = sandbox.plant({"script": b"#!/proc/self/exe /bin/echo\n"})
    # The starter executes itself, by its first argument, and then what the #! line gives it for one.
    done = sandbox.run("/script", "said", layers=(layer, sandbox.busybox))
    assert done.err == "script: applet not found\n", done


def test_the_starter_itself_cannot_be_changed(root_sandbox: SandboxProcess) -> None:
    assert root_sandbox.call(_change_starter) == ["Read-only file system"] * 4


def _change_starter(inside: Inside) -> list[str]:
    """What the step's process could do to the file, in a process of the sandbox process with all capabilities."""
    from executor.sandbox import staging
    from platforms import syscalls

    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount("", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
            staging.set_up()
            for change in (
                lambda: os.chmod(staging.STARTER, 0o777),
                lambda: os.chown(staging.STARTER, 1, 1),
                lambda: os.setxattr(staging.STARTER, "user.x", b"y"),
                lambda: os.open(staging.STARTER, os.O_WRONLY),
            ):
                try:
                    change()
                    os.write(write, b"done\n")
                except OSError as error:
                    os.write(write, f"{error.strerror}\n".encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as lines:
        said = lines.read().splitlines()
    os.waitpid(child, 0)
    return said


# -- the emulator ----------------------------------------------------------------------------------------------------

# arm64: mov x0-x3, 0; mov x8, 73 (ppoll); svc 0: waits for ever
WAITING = b"".join(
    each.to_bytes(4, "little")
    for each in (0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2800928, 0xD4000001)
)  # fmt: skip
ATTACK = """\
/waiting & exe=/proc/$!/exe
for try in $(seq 200); do case $(readlink $exe) in */bin/busybox) sleep 0.05;; *) break;; esac; done
exec 9<$exe; kill -9 $!; wait
chmod 4777 /proc/self/fd/9; chown 1 /proc/self/fd/9; touch /proc/self/fd/9; echo x >/proc/self/fd/9; cat <&9 | wc -c
"""


@pytest.fixture(params=["root", "mapped", "single"])
def emulated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[SandboxProcess, Path]]:
    """A sandbox process with an emulator that belongs to the sandbox process's own user, and that emulator."""
    if not QEMU.exists():
        pytest.skip(f"no {QEMU}")
    if os.geteuid() != 0:
        pytest.skip("needs root")
    users = {"mapped": "_user_with_ids", "single": "_user_without_ids"}
    user: User | None = request.getfixturevalue(users[request.param]) if request.param in users else None
    folder = Path("/var/tmp") / f"kanifold-emulator.{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        copy = folder / "qemu-aarch64-static"
        shutil.copy(QEMU, copy)
        copy.chmod(0o755)
        if user is not None:
            os.chown(copy, user.uid, user.gid)
        with opened(user, Emulation(EmulationMode.PRIVATE, "arm64", str(copy))) as sandbox:
            yield sandbox, copy
    finally:
        shutil.rmtree(folder)


@pytest.mark.skipif(host().architecture == "arm64", reason="arm64 programs are not emulated here")
def test_the_emulator_cannot_be_changed(emulated: tuple[SandboxProcess, Path]) -> None:
    sandbox, copy = emulated
    before = copy.stat()
    layer = sandbox.plant({"waiting": elf.program("arm64", WAITING)})
    done = sandbox.run("/bin/sh", "-c", ATTACK, layers=(layer, sandbox.busybox))
    assert done.out.strip() == str(before.st_size)
    assert len(done.err.splitlines()) == 4, done.err
    assert done.err.count("Read-only file system") >= 3, done.err  # with one id chown fails as its supervisor says
    after = copy.stat()
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_mtime_ns)
    assert copy.read_bytes() == QEMU.read_bytes()


def test_nothing_of_the_host_is_seen_in_proc(sandbox: SandboxProcess) -> None:
    """No process but the step's own: neither the one that started it, nor its supervisor, nor other steps."""
    before = set(os.listdir("/proc"))
    done = sandbox.run("ls /proc | grep '^[0-9]'; readlink /proc/*/exe; true")
    seen = set(done.out.split())
    numbers = {each for each in seen if each.isdecimal()}
    assert seen - numbers <= {"/bin/busybox"}, done.out
    # Where processes have the machine's numbers, none of them was there before the step.
    assert numbers <= {"1", "2", "3", "4", "5"} or not numbers & before, done.out
