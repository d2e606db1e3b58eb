"""User accounts for the length of a test session, to test kanifold without root.

``made`` adds a user to the machine (root only) and removes it again. ``reachable`` returns the command by which that
user can start the installed kanifold; the installation is copied if the user has no access to it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_OF_THE_CHECKS = (
    "mypy*", "_mypy*", "ruff*", "pip", "pip-*", "_pytest", "pytest*", "xdist", "execnet*", "hypothesis*", "setuptools*",
)  # fmt: skip


@dataclass(frozen=True)
class User:
    """An account: name, ids, and a directory for HOME and scratch files."""

    name: str
    uid: int
    gid: int
    home: Path

    def becoming(self) -> dict[str, Any]:
        """Return arguments for ``subprocess`` that start a child as this user; none if it is the current user."""
        if os.geteuid() == self.uid:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def me() -> User:
    """Return the user who runs the tests."""
    entry = pwd.getpwuid(os.getuid())
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))


@contextlib.contextmanager
def made(label: str, *, subordinate_ids: bool) -> Iterator[User]:
    """Make an account, with or without ranges in /etc/subuid and /etc/subgid; removed at the end. Root only."""
    name = f"kani-{label}-{os.getpid()}"
    home = Path(tempfile.mkdtemp(prefix=f"{name}."))
    ranges = "65536" if subordinate_ids else "0"
    keys = ["-K", f"SUB_UID_COUNT={ranges}", "-K", f"SUB_GID_COUNT={ranges}"]
    command = ["useradd", "--no-create-home", "--home-dir", str(home), "--shell", "/bin/sh", *keys, name]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
        try:
            entry = pwd.getpwnam(name)
            os.chown(home, entry.pw_uid, entry.pw_gid)
            home.chmod(0o755)
            yield User(name, entry.pw_uid, entry.pw_gid, home)
        finally:
            subprocess.run(["userdel", name], check=True, capture_output=True)
    finally:
        # The stores of a session are many files, and rm(1) takes half of rmtree's time.
        subprocess.run(["rm", "-rf", str(home)], check=False)


def can_run(user: User, command: list[str], environment: Mapping[str, str]) -> bool:
    """Whether ``command`` succeeds as ``user``."""
    try:
        done = subprocess.run(
            command, env=environment, cwd="/", capture_output=True, check=False, timeout=30, **user.becoming()
        )
    except OSError:
        return False
    return done.returncode == 0


def reachable(user: User, scratch: Path) -> tuple[list[str], dict[str, str]] | None:
    """Return a command and environment by which ``user`` can start kanifold; None if there is no Python for them.

    The current environment is tried first. If the user has no access to it (a checkout or a Python below root's home),
    the installed packages are copied to ``scratch`` and run by the system's Python of the same version.
    """
    plain = {"PATH": os.environ["PATH"]}
    own = Path(sys.executable).with_name("kanifold")
    if own.exists() and can_run(user, [str(own), "--version"], plain):
        return [str(own)], {}
    python = f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    if not can_run(user, [python, "-c", ""], plain):
        return None
    packages = scratch / "packages"
    if not packages.exists():
        shutil.copytree(sysconfig.get_path("purelib"), packages, ignore=shutil.ignore_patterns(*_OF_THE_CHECKS))
        if not (packages / "orchestrator").exists():  # an editable install, or none: take the sources
            for room in ("platforms", "executor", "orchestrator"):
                shutil.copytree(Path(__file__).resolve().parents[1] / room, packages / room)
        scratch.chmod(0o755)
    return [python, "-m", "orchestrator"], {"PYTHONPATH": str(packages)}
