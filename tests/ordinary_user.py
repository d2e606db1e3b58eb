"""Users that exist for the length of a test session: what kanifold does without root is tested without root.

``made`` adds a user to the machine (root only) and removes it again. ``reachable`` answers with the command by which
that user can start the installed kanifold, copying the installation when it lies where the user may not look.
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

_OF_THE_CHECKS = ("mypy*", "_mypy*", "ruff*", "pip", "pip-*", "_pytest", "pytest*", "hypothesis*", "setuptools*")


@dataclass(frozen=True)
class User:
    """An account: its name, ids, and a directory of its own for HOME and scratch files."""

    name: str
    uid: int
    gid: int
    home: Path

    def becoming(self) -> dict[str, Any]:
        """Arguments for ``subprocess`` that start a child as this user; nothing when we are that user already."""
        if os.geteuid() == self.uid:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def me() -> User:
    """The user that the tests run as."""
    entry = pwd.getpwuid(os.getuid())
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))


@contextlib.contextmanager
def made(label: str, *, subordinate_ids: bool) -> Iterator[User]:
    """A new account, with or without ranges in /etc/subuid and /etc/subgid; gone afterwards. Root only."""
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
        shutil.rmtree(home, ignore_errors=True)


def can_run(user: User, command: list[str], environment: Mapping[str, str]) -> bool:
    """Whether ``command`` ends well when ``user`` starts it."""
    try:
        done = subprocess.run(
            command, env=environment, cwd="/", capture_output=True, check=False, timeout=30, **user.becoming()
        )
    except OSError:
        return False
    return done.returncode == 0


def reachable(user: User, scratch: Path) -> tuple[list[str], dict[str, str]] | None:
    """A command and its environment by which ``user`` starts kanifold; None when no Python is to be had for them.

    The environment as it stands is tried first. A checkout or a Python below root's home is out of the user's reach:
    then the installed packages are copied below ``scratch`` and run by the system's Python of the same version.
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
