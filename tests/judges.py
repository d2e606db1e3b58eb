"""Other people's programs, from PATH or as ``ci/judges`` has made them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("KANIFOLD_TEST_CACHE") or Path.home() / ".cache" / "kanifold-tests") / "judges"
ACTIONS = CACHE / "actions"
"""Directories of GitHub's actions, by name."""


def find(name: str) -> str:
    """Return the path of the program ``name``; "" if there is none."""
    return shutil.which(name) or shutil.which(name, path=str(CACHE / "bin")) or ""


def needs(*names: str) -> pytest.MarkDecorator:
    """Skip unless all programs are there."""
    missing = [each for each in names if not find(each)]
    return pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)}: ci/judges makes them")


def needs_actions(*names: str) -> pytest.MarkDecorator:
    """Skip unless all of GitHub's actions are there."""
    missing = [each for each in names if not (ACTIONS / each / "action.yml").exists()]
    return pytest.mark.skipif(bool(missing), reason=f"no actions/{', '.join(missing)}: ci/judges clones them")
