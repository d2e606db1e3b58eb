"""Attack 42 (CVE-2024-40635, CVE-2022-27651, CVE-2022-2990): ids that wrap around to root, and rights that stay."""

from __future__ import annotations

import pytest
from sandbox_process import SandboxProcess

from executor.sandbox import IsolationMode


@pytest.mark.parametrize("number", [-1, 2**32 - 1, 2**32, 2**32 + 1000, 2**64, -(2**31)])
@pytest.mark.parametrize("field", ["uid", "gid", "groups"])
def test_numbers_that_are_no_id_are_refused(either_sandbox: SandboxProcess, field: str, number: int) -> None:
    done = either_sandbox.run("id -u", **{field: (number,) if field == "groups" else number})
    assert (done.ended.code, done.out) == (125, "")
    assert done.ended.error == f"{number} is no user or group id"


def test_great_ids_are_themselves(root_sandbox: SandboxProcess) -> None:
    for number in (2**31 - 1, 2**31, 2**32 - 2):
        done = root_sandbox.run("id -u; id -g", uid=number, gid=number)
        assert done.out == f"{number}\n{number}\n"


def test_ids_that_an_ordinary_user_was_not_granted(mapped_sandbox: SandboxProcess) -> None:
    ended = mapped_sandbox.run("id -u", uid=2**31).ended
    assert ended.code == 125
    assert ended.error.startswith(f"cannot become user {2**31}:0: Invalid argument; the ids that this user may use")


@pytest.mark.parametrize("uid", [0, 1000])
def test_nothing_is_inheritable_and_groups_are_exact(either_sandbox: SandboxProcess, uid: int) -> None:
    single = either_sandbox.isolation.mode is IsolationMode.SINGLE  # where groups cannot be set
    done = either_sandbox.run("cat /proc/self/status; true", uid=uid, gid=uid, groups=(5, 6))
    status = dict(line.split(":", 1) for line in done.out.splitlines())
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert status["Groups"].split() == ([] if single else ["5", "6"])
