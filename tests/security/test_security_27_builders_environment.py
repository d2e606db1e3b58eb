"""Attack 27 (CVE-2021-3602 buildah): a step sees the builder's environment."""

from __future__ import annotations

import os

from sandbox_process import SandboxProcess

from executor.sandbox.isolation import SUPERVISED_MODES


def test_environments_are_exactly_what_was_asked_for(either_sandbox: SandboxProcess) -> None:
    os.environ.setdefault("KANIFOLD_TEST_SECRET", "of the builder")
    asked = ("PATH=/bin", "ONE=1", "TWO=a=b c")
    expected = "".join(f"{each}\0" for each in asked)
    first = "self" if either_sandbox.isolation.mode in SUPERVISED_MODES else "1"
    assert either_sandbox.run("/bin/cat", f"/proc/{first}/environ", env=asked).out == expected
    assert either_sandbox.run("/bin/env", env=asked).out == expected.replace("\0", "\n")
    done = either_sandbox.run("cat /proc/1/environ; tr '\\0' '\\n' < /proc/self/environ", env=asked)
    assert "of the builder" not in done.out
    assert either_sandbox.run("/bin/env", env=()).out == ""
