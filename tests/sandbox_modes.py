"""Fixtures: a house (see ``sandbox_house``) for each isolation mode, and ``house``, all of them in turn."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from ordinary_user import User
from sandbox_house import ARM64, BUSYBOX, QEMU, House, opened

from executor.sandbox import IsolationMode


@pytest.fixture(scope="session")
def _busybox() -> None:
    if not BUSYBOX.exists():
        pytest.skip(f"no {BUSYBOX} (Debian: busybox-static)")


@pytest.fixture(scope="session")
def root_house(_busybox: None) -> Iterator[House]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with opened(None) as house:
        assert house.isolation.mode is IsolationMode.NAMESPACES
        yield house


@pytest.fixture(scope="session")
def private_house(_busybox: None) -> Iterator[House]:
    """Root's, in a user namespace: that is what a private emulator needs."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not QEMU.exists():
        pytest.skip(f"no {QEMU}")
    with opened(None, ARM64) as house:
        yield house


@pytest.fixture(scope="session")
def mapped_house(_busybox: None, _user_with_ids: User) -> Iterator[House]:
    with opened(_user_with_ids) as house:
        assert house.isolation.mode is IsolationMode.MAPPED, house.isolation.why
        yield house


@pytest.fixture(scope="session")
def single_house(_busybox: None, _user_without_ids: User) -> Iterator[House]:
    with opened(_user_without_ids) as house:
        assert house.isolation.mode is IsolationMode.SINGLE, house.isolation.why
        yield house


@pytest.fixture(scope="session", params=["root", "private", "mapped", "single"])
def house(request: pytest.FixtureRequest) -> House:
    """The same test on every mode."""
    found: House = request.getfixturevalue(f"{request.param}_house")
    return found


@pytest.fixture(scope="session", params=["root", "mapped", "single"])
def either_house(request: pytest.FixtureRequest) -> House:
    """The same test as root and as an ordinary user, where the user namespace of root adds nothing."""
    found: House = request.getfixturevalue(f"{request.param}_house")
    return found
