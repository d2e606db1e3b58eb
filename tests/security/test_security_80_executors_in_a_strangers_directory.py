"""Attack 80 (review): where a node keeps kanifold, another user of that machine puts a program of their own.

The directory that an executor is started from was looked at, and not those above it: whoever could replace one of them,
by a link say, chose which of the user's own directories was executed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.nodes import remote_loader
from orchestrator.nodes.remote_loader import LoadingRefusedError

INSTALLATION = "kanifold.so"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have files of another user")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where executors are kept, with one."""
    made = tmp_path / "store" / "executors"
    (made / INSTALLATION).mkdir(parents=True)
    for each in (made.parent, made, made / INSTALLATION):
        each.chmod(0o700)
    return made


def refused(home: Path) -> None:
    for use in (lambda: remote_loader._held(str(home / INSTALLATION)), lambda: remote_loader._make(str(home))):
        with pytest.raises(LoadingRefusedError, match="cannot run kanifold from"):
            use()


def test_what_is_the_users_alone_is_used(home: Path) -> None:
    remote_loader._make(str(home))
    assert remote_loader._held(str(home / INSTALLATION))


def test_the_store_may_be_on_another_disk(home: Path, tmp_path: Path) -> None:
    home.parent.rename(tmp_path / "disk")
    home.parent.symlink_to("disk")
    remote_loader._make(str(home))
    assert remote_loader._held(str(home / INSTALLATION))


@pytest.mark.parametrize("above", [0, 1], ids=["executors", "the store"])
@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_what_others_may_write_to_is_refused(home: Path, above: int, mode: int) -> None:
    (home, home.parent)[above].chmod(mode)
    refused(home)


@needs_root
@pytest.mark.parametrize("above", [0, 1], ids=["executors", "the store"])
def test_what_belongs_to_another_user_is_refused(home: Path, above: int) -> None:
    os.chown((home, home.parent)[above], 12345, 12345)
    refused(home)


def test_executors_that_are_a_link_are_refused(home: Path, tmp_path: Path) -> None:
    home.rename(tmp_path / "checkout")
    home.symlink_to(tmp_path / "checkout")
    refused(home)
