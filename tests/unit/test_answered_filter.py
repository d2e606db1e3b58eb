"""The filter of steps whose path calls are answered: no call with a path is left to the kernel."""

from __future__ import annotations

import errno

import pytest
from test_sandbox_seccomp import ARCHITECTURES, ENOSYS, EPERM, SPOKEN, decide

from executor.sandbox import seccomp
from executor.supervised import answered_calls, answered_filter

ALLOW, NOTIFY, TRACE, SUCCEED, FAIL = 0x7FFF0000, 0x7FC00000, 0x7FF00000, 0x50000, 0x50000
UNIX, INTERNET = 1, 2
ALWAYS = (
    "OPENING", "LOOKING", "ACCESSING", "READING", "ENTERING", "MAKING", "REMOVING", "MOVING", "PERMITTING", "OWNING",
    "DATING", "SIZING", "ATTRIBUTES", "IDENTIFYING",
)  # fmt: skip
"""The tables of calls that the supervisor answers whatever their arguments are."""


def numbers(table: str, architecture: str) -> dict[str, int]:
    return seccomp.numbers(getattr(answered_calls, table), architecture)


def of(machine: str, **how: bool) -> bytes:
    return answered_filter.program(**{"network": True, "scoped": True} | how, machine=machine)


@pytest.mark.parametrize(("machine", "architecture"), SPOKEN)
@pytest.mark.parametrize("table", ALWAYS)
def test_calls_about_files_and_credentials_are_answered(machine: str, architecture: str, table: str) -> None:
    program = of(machine)
    found = numbers(table, architecture)
    assert {decide(program, ARCHITECTURES[architecture], each, *[0xFFFFFFFF] * 6) for each in found.values()} <= {
        NOTIFY
    }
    assert {decide(program, ARCHITECTURES[architecture], each) for each in found.values()} <= {NOTIFY}


@pytest.mark.parametrize(("machine", "architecture"), SPOKEN)
@pytest.mark.parametrize(
    ("table", "verdict"),
    [
        ("REFUSED", EPERM),
        ("MISSING", ENOSYS),
        ("UNSUPPORTED", FAIL | errno.EOPNOTSUPP),
        ("WATCHING", FAIL | errno.ENOSPC),
    ],
)
def test_what_reaches_others_is_refused(machine: str, architecture: str, table: str, verdict: int) -> None:
    program = of(machine)
    found = numbers(table, architecture).values()
    assert {decide(program, ARCHITECTURES[architecture], each, 1, 1) for each in found} <= {verdict}


@pytest.mark.parametrize(("machine", "architecture"), SPOKEN)
def test_programs_are_started_by_the_tracer(machine: str, architecture: str) -> None:
    program = of(machine)
    for each in numbers("STARTING", architecture).values():
        assert decide(program, ARCHITECTURES[architecture], each) == TRACE


@pytest.mark.parametrize(("machine", "architecture"), SPOKEN)
def test_sockets_with_paths_are_answered(machine: str, architecture: str) -> None:
    program, audit, found = of(machine), ARCHITECTURES[architecture], numbers("CONNECTING", architecture)
    assert decide(program, audit, found["socket"], UNIX) == NOTIFY
    assert decide(program, audit, found["socket"], INTERNET) == ALLOW
    assert decide(of(machine, network=False), audit, found["socket"], INTERNET) == FAIL | errno.EACCES
    assert decide(of(machine, network=False), audit, found["socket"], UNIX) == NOTIFY
    assert {decide(program, audit, found[each], INTERNET) for each in ("socketpair", "connect", "bind")} == {NOTIFY}


@pytest.mark.parametrize(("machine", "architecture"), SPOKEN)
def test_signals_are_kept_to_the_step(machine: str, architecture: str) -> None:
    audit = ARCHITECTURES[architecture]
    found = numbers("SIGNALLING", architecture)
    assert {decide(of(machine, scoped=False), audit, each, 1) for each in found.values()} == {NOTIFY}
    assert {decide(of(machine), audit, each, 1) for name, each in found.items() if name != "pidfd_open"} == {ALLOW}
    for number in numbers("LIMITING", architecture).values():
        assert (decide(of(machine), audit, number, 0), decide(of(machine), audit, number, 7)) == (ALLOW, NOTIFY)
    ranking = numbers("RANKING", architecture)
    for name, kind in (("setpriority", 0), ("ioprio_set", 1)):
        verdicts = [decide(of(machine), audit, ranking[name], *each) for each in ((kind, 0), (kind, 7), (2, 0))]
        assert verdicts == [ALLOW, EPERM, EPERM]


@pytest.mark.parametrize(("machine", "architecture"), SPOKEN)
def test_requests_that_would_reach_others_are_refused(machine: str, architecture: str) -> None:
    program, audit, found = of(machine), ARCHITECTURES[architecture], numbers("CONTROLLING", architecture)
    set_owner, set_signal, set_lease, get_flags = 8, 10, 1024, 3
    for each in (set_owner, set_signal, set_lease):
        assert decide(program, audit, found["fcntl"], 3, each) == EPERM
    assert decide(program, audit, found["fcntl"], 3, get_flags) == ALLOW
    assert decide(program, audit, found["ioctl"], 3, 0x8901) == EPERM
    assert decide(program, audit, found["ioctl"], 3, 0x5401) == ALLOW
    set_dumpable, set_name = 4, 15
    assert decide(program, audit, found["prctl"], set_dumpable, 0) == SUCCEED
    assert decide(program, audit, found["prctl"], set_name, 0) == ALLOW


@pytest.mark.parametrize(("machine", "architecture"), SPOKEN)
def test_no_call_by_which_containers_are_made_or_left_is_allowed(machine: str, architecture: str) -> None:
    """Those of the profile that are not refused by a rule of this filter."""
    program, audit = of(machine), ARCHITECTURES[architecture]
    since_5_1 = {
        "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429,
        "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_getfd": 438, "process_madvise": 440,
        "mount_setattr": 442, "quotactl_fd": 443, "open_tree_attr": 467, "file_getattr": 468, "file_setattr": 469,
        "later": 600,
    }  # fmt: skip
    allowed = {name for name, number in since_5_1.items() if decide(program, audit, number) not in (EPERM, ENOSYS)}
    assert allowed == set()
