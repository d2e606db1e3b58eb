"""The system call filter, run by an interpreter of classic BPF for every architecture, and by the kernel for ours."""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import kernel_calls
import pytest

from executor.sandbox import notified_calls, profile, seccomp, step_process
from platforms import syscalls

ALLOW, NOTIFY, EPERM, ENOSYS, SUCCEED = 0x7FFF0000, 0x7FC00000, 0x50001, 0x50026, 0x50000
TRACE = 0x7FF00000
NEWUSER, NEWNS, UNTRACED = 0x10000000, 0x20000, 0x800000
ARCHITECTURES = {
    "x86_64": 0xC000003E, "i386": 0x40000003, "aarch64": 0xC00000B7, "arm": 0x40000028, "ppc64le": 0xC0000015,
    "s390x": 0x80000016, "riscv64": 0xC00000F3, "loongarch64": 0xC0000102,
}  # fmt: skip
SPOKEN = [
    ("x86_64", "x86_64"), ("x86_64", "i386"), ("i686", "i386"), ("aarch64", "aarch64"), ("aarch64", "arm"),
    ("armv7l", "arm"), ("ppc64le", "ppc64le"), ("s390x", "s390x"), ("riscv64", "riscv64"),
    ("loongarch64", "loongarch64"),
]  # fmt: skip
NUMBERS = {  # asm/unistd.h of each: fsync, clone, clone3, mount, socket, openat, fchownat, setresuid
    "x86_64": (74, 56, 435, 165, 41, 257, 260, 117), "i386": (118, 120, 435, 21, 359, 295, 298, 208),
    "aarch64": (82, 220, 435, 40, 198, 56, 54, 147), "arm": (118, 120, 435, 21, 281, 322, 325, 208),
    "ppc64le": (118, 120, 435, 21, 326, 286, 289, 164), "s390x": (118, 120, 435, 21, 359, 288, 291, 208),
    "riscv64": (82, 220, 435, 40, 198, 56, 54, 147), "loongarch64": (82, 220, 435, 40, 198, 56, 54, 147),
}  # fmt: skip


def decide(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What the program returns (linux/filter.h; only the instructions that it may have)."""
    arguments = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("=iIQ6Q", number, architecture, 0, *arguments)
    lines = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        code, true, false, value = lines[at]
        at += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, value)
            case 0x05:
                at += value
            case 0x06:
                return value
            case 0x54:
                accumulator &= value
            case 0x15 | 0x35 | 0x45:
                holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: accumulator & value}[code]
                at += true if holds else false
            case _:
                raise AssertionError(f"instruction {code:#x}")


@pytest.mark.parametrize(("machine", "architecture"), SPOKEN)
def test_decisions(machine: str, architecture: str) -> None:
    fsync, clone, clone3, mount, socket, openat, fchownat, setresuid = NUMBERS[architecture]
    audit = ARCHITECTURES[architecture]
    program = seccomp.program(machine=machine)

    def flags(value: int) -> tuple[int, ...]:
        return (0, value) if architecture == "s390x" else (value, 0)

    assert decide(program, audit, fsync, 3) == SUCCEED
    assert decide(program, audit, openat) == ALLOW
    for future in (profile.LAST[architecture] + 1, 100_000, -1):
        assert decide(program, audit, future) == ENOSYS
    assert decide(program, audit, clone, *flags(0x11)) == ALLOW
    assert decide(program, audit, clone, *flags(NEWUSER | 0x11)) == EPERM
    assert decide(program, audit, clone, *flags(NEWNS)) == EPERM
    assert decide(program, audit, clone3) == ENOSYS
    assert decide(program, audit, mount) == EPERM
    assert decide(program, audit, socket, 40) == decide(program, audit, socket, 38) == EPERM
    assert decide(program, audit, socket, 1 << 32 | 38) == EPERM  # the kernel looks at 32 bits as well
    assert decide(program, audit, socket, 2) == decide(program, audit, socket, 39) == ALLOW
    assert decide(program, audit, fchownat) == decide(program, audit, setresuid) == ALLOW

    insecure = seccomp.program(confined=False, machine=machine)
    assert decide(insecure, audit, fsync, 3) == SUCCEED
    assert decide(insecure, audit, mount) == decide(insecure, audit, clone3) == decide(insecure, audit, 600) == ALLOW

    single = seccomp.program(single=True, machine=machine)
    assert decide(single, audit, fchownat) == NOTIFY
    assert decide(single, audit, setresuid) == SUCCEED
    assert decide(single, audit, mount) == EPERM


@pytest.mark.parametrize("machine", sorted({machine for machine, _ in SPOKEN}))
def test_other_interfaces_of_the_machine_are_no_way_around(machine: str) -> None:
    program = seccomp.program(machine=machine)
    spoken = {architecture for each, architecture in SPOKEN if each == machine}
    for architecture, audit in ARCHITECTURES.items():
        if architecture not in spoken:
            assert decide(program, audit, 0) == EPERM


@pytest.mark.parametrize(("machine", "architecture"), SPOKEN)
def test_every_call_is_decided_as_the_profile_has_it(machine: str, architecture: str) -> None:
    program = seccomp.program(machine=machine)
    allowed = {
        number
        for first, _, last in (each.partition("-") for each in profile.ALLOWED[architecture].split())
        for number in range(int(first), int(last or first) + 1)
    }
    looked_at = profile.CONDITIONAL[architecture]
    for number in (*range(profile.LAST[architecture] + 1), *range(0xF0000, 0xF0010)):
        found = decide(program, ARCHITECTURES[architecture], number)
        if number in looked_at or number in profile.ABSENT[architecture]:
            continue
        if number in allowed:
            assert found in (ALLOW, SUCCEED), number
        else:
            assert found == (EPERM if number < 0xF0000 else ENOSYS), number


def test_personalities_are_those_of_ordinary_programs() -> None:
    program = seccomp.program(machine="x86_64")
    for persona, expected in ((0, ALLOW), (8, ALLOW), (0xFFFFFFFF, ALLOW), (0x40000, EPERM), (0x400000, EPERM)):
        assert decide(program, ARCHITECTURES["x86_64"], 135, persona) == expected


def test_the_profile_is_for_the_capabilities_of_a_step() -> None:
    """ci/seccomp, which made it, has them by name."""
    script = (Path(__file__).parents[2] / "ci/seccomp").read_text()
    named = set(re.findall(r"CAP_[A-Z_]+", script.partition("CAPABILITIES = ")[2].partition(")\n")[0]))
    assert {getattr(syscalls, name) for name in named} == set(step_process.CAPABILITIES)


@pytest.mark.parametrize("confined", [True, False])
def test_x32_is_no_way_around(confined: bool) -> None:
    program = seccomp.program(confined=confined, machine="x86_64")
    assert decide(program, ARCHITECTURES["x86_64"], 0x40000000 | 165) == ENOSYS
    assert decide(program, ARCHITECTURES["x86_64"], 0x40000000 | 1) == ENOSYS


def test_msync_waits_for_nothing_but_still_checks_its_arguments_when_asynchronous() -> None:
    program = seccomp.program(machine="x86_64")
    assert decide(program, ARCHITECTURES["x86_64"], 26, 0, 4096, 4) == SUCCEED
    assert decide(program, ARCHITECTURES["x86_64"], 26, 0, 4096, 1) == ALLOW


@pytest.mark.parametrize(("machine", "architecture"), SPOKEN)
@pytest.mark.parametrize("confined", [True, False])
def test_a_tracer_gets_what_executes_and_what_would_escape_it(machine: str, architecture: str, confined: bool) -> None:
    program = seccomp.program(confined=confined, machine=machine, traced=seccomp.EXECUTING)
    audit = ARCHITECTURES[architecture]
    execve, execveat = (seccomp.numbers(seccomp.EXECUTING, architecture)[name] for name in ("execve", "execveat"))
    clone, openat = NUMBERS[architecture][1], NUMBERS[architecture][5]
    known = architecture in ("x86_64", "i386", "aarch64")
    assert decide(program, audit, execve) == decide(program, audit, execveat) == (TRACE if known else ALLOW)
    assert decide(program, audit, openat) == ALLOW
    if known:
        assert (
            decide(program, audit, clone, UNTRACED | 0x11) == decide(program, audit, clone, UNTRACED | NEWNS) == TRACE
        )
        assert decide(program, audit, clone, 0x11) == ALLOW
        assert decide(program, audit, clone, NEWNS) == (EPERM if confined else ALLOW)
    assert decide(seccomp.program(confined=confined, machine=machine), audit, execve) == ALLOW


def test_unknown_machines_have_none() -> None:
    assert seccomp.program(machine="vax") == b""


def test_notified_calls_have_names() -> None:
    calls = seccomp.calls(notified_calls.OWNING, "x86_64")
    assert calls[ARCHITECTURES["x86_64"], 260] == ("x86_64", "fchownat")
    assert calls[ARCHITECTURES["i386"], 182] == ("i386", "chown")
    assert calls[ARCHITECTURES["i386"], 212] == ("i386", "chown32")


@pytest.mark.parametrize(("machine", "architecture"), SPOKEN)
def test_a_supervisor_is_asked_about_owners_and_devices_alone(machine: str, architecture: str) -> None:
    program = seccomp.program(single=True, machine=machine)
    audit = ARCHITECTURES[architecture]
    numbers = {
        name: number for (at, number), (_, name) in seccomp.calls(notified_calls.ALL, machine).items() if at == audit
    }
    assert {name: decide(program, audit, number, 0, 0, 0, 0x1B) for name, number in numbers.items()} == {
        name: ALLOW if name in ("mknod", "mknodat") else NOTIFY for name in numbers
    }
    assert decide(program, audit, numbers["statx"], 0, 0, 0, 0x60) == ALLOW, "of times nobody need be told"
    made = {mode: decide(program, audit, numbers["mknodat"], 0, 0, mode << 12 | 0o644) for mode in (1, 2, 6, 8, 12)}
    assert made == {1: ALLOW, 2: NOTIFY, 6: NOTIFY, 8: ALLOW, 12: ALLOW}
    plain = seccomp.program(machine=machine)
    assert NOTIFY not in {decide(plain, audit, number, 0, 0, 0o020644, 0x1B) for number in numbers.values()}


def under_the_filter(what: Callable[[], None]) -> int:
    """The errno with which ``what`` fails under the filter; 0 when it does not."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            kernel_calls.no_new_privileges()
            syscalls.seccomp_filter(seccomp.program())
            what()
            code = 0
        except OSError as error:
            code = error.errno or 254
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(not seccomp.program(), reason=f"no filter for {os.uname().machine}")
def test_the_kernel_agrees() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fsync(9999)
    assert under_the_filter(lambda: os.fsync(9999)) == 0
    assert under_the_filter(lambda: os.fdatasync(9999)) == 0
    assert under_the_filter(os.sync) == 0
    assert under_the_filter(lambda: syscalls.syncfs(9999)) == 0
    assert under_the_filter(lambda: syscalls.unshare(syscalls.CLONE_NEWUSER)) == errno.EPERM
    assert under_the_filter(lambda: syscalls.unshare(0)) == errno.EPERM
    assert under_the_filter(lambda: syscalls.mount("", "/nowhere", "tmpfs")) == errno.EPERM
    assert under_the_filter(lambda: os.close(os.open("/", os.O_RDONLY))) == 0
