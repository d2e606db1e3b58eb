"""A cached result is not returned after a module that determines results has changed."""

from __future__ import annotations

import os
from pathlib import Path

import executor
import platforms
from orchestrator import result_cache


def test_every_module_of_executor_and_platforms_counts() -> None:
    assert set(result_cache.PACKAGES) == {*executor.__path__, *platforms.__path__}


def test_the_newest_module_may_be_in_any_package_below(tmp_path: Path) -> None:
    for seconds, name in enumerate(("a.py", "inner/b.py", "inner/deep/c.py", "__pycache__/d.py", "inner/e.so"), 1):
        module = tmp_path / name
        module.parent.mkdir(parents=True, exist_ok=True)
        module.touch()
        os.utime(module, (seconds, seconds))
    assert result_cache.newest_mtime((str(tmp_path),)) == 3_000_000_000
