"""The reference of the command line in docs/cli.md is what the commands themselves say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_reference_is_made_from_the_commands() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "ci" / "reference.py", "-"], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    assert (ROOT / "docs" / "cli.md").read_text() == made, "docs/cli.md is not up to date: run ci/reference.py"
