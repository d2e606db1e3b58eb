"""Attack 1 (kaniko #2153, BuildKit without process sandbox): a step reads the executor's credentials or kills it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from sandbox_process import Inside, SandboxProcess

from executor.sandbox.isolation import SUPERVISED_MODES


def test_a_step_finds_no_token_and_no_process(either_sandbox: SandboxProcess, tmp_path: Path) -> None:
    token = f"token-{secrets.token_hex(8)}"
    on_disk = tmp_path / "credentials"
    on_disk.write_text(token)
    either_sandbox.call(_hold, token)
    done = either_sandbox.run(
        "cat /proc/*/environ /proc/*/cmdline /proc/*/maps; ls -l /proc/*/fd /proc/*/cwd /proc/*/root;"
        "cat /proc/*/fd/[3-9] /proc/*/fd/??;"
        f"cat {on_disk} /proc/1/root{on_disk} /proc/self/cwd/../..{on_disk};"
        "grep -r token- / 2>/dev/null --exclude-dir=proc --exclude-dir=sys;"
        "echo parent $PPID; kill -9 $PPID -1; true",
        env=("PATH=/bin",),
    )
    assert token not in done.out + done.err
    if either_sandbox.isolation.mode not in SUPERVISED_MODES:
        assert "parent 0" in done.out
    assert either_sandbox.run("/bin/true").ended.code == 0


def _hold(inside: Inside, token: str) -> None:
    """Have the token where an executor has it: in the environment, in an open file, in memory."""
    os.environ["REGISTRY_TOKEN"] = token
    fd = os.memfd_create(token, 0)
    os.set_inheritable(fd, True)
    os.write(fd, token.encode())
    inside._kept_token = fd  # type: ignore[attr-defined]
