"""Fixtures: a sandbox process (``sandbox_process``) for each isolation mode, and ``sandbox``, each in turn."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from ordinary_user import User
from sandbox_process import ARM64, BUSYBOX, QEMU, SandboxProcess, opened

from executor.sandbox import IsolationMode


@pytest.fixture(scope="session")
def _busybox() -> None:
    if not BUSYBOX.exists():
        pytest.skip(f"no {BUSYBOX} (Debian: busybox-static)")


@pytest.fixture(scope="session")
def root_sandbox(_busybox: None) -> Iterator[SandboxProcess]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with opened(None) as sandbox:
        assert sandbox.isolation.mode is IsolationMode.NAMESPACES
        yield sandbox


@pytest.fixture(scope="session")
def private_sandbox(_busybox: None) -> Iterator[SandboxProcess]:
    """Root's, in a user namespace: that is what a private emulator needs."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not QEMU.exists():
        pytest.skip(f"no {QEMU}")
    with opened(None, ARM64) as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def mapped_sandbox(_busybox: None, _user_with_ids: User) -> Iterator[SandboxProcess]:
    with opened(_user_with_ids) as sandbox:
        assert sandbox.isolation.mode is IsolationMode.MAPPED, sandbox.isolation.why
        yield sandbox


@pytest.fixture(scope="session")
def single_sandbox(_busybox: None, _user_without_ids: User) -> Iterator[SandboxProcess]:
    with opened(_user_without_ids) as sandbox:
        assert sandbox.isolation.mode is IsolationMode.SINGLE, sandbox.isolation.why
        yield sandbox


@pytest.fixture(scope="session", params=["root", "private", "mapped", "single"])
def sandbox(request: pytest.FixtureRequest) -> SandboxProcess:
    """The same test on every mode."""
    found: SandboxProcess = request.getfixturevalue(f"{request.param}_sandbox")
    return found


@pytest.fixture(scope="session", params=["root", "mapped", "single"])
def either_sandbox(request: pytest.FixtureRequest) -> SandboxProcess:
    """The same test as root and as an ordinary user, where the user namespace of root adds nothing."""
    found: SandboxProcess = request.getfixturevalue(f"{request.param}_sandbox")
    return found
