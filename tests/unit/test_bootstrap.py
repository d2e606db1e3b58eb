"""A build is expected by its command line, and what was started for it ends whatever comes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import bootstrap

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="executors run on Linux")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], [".", "-h"], ["--check"], ["--call", "outline"], ["--call=check"], ["-D", "."], ["-qD"], ["--debug"]],
    ids=" ".join,
)
def test_what_is_no_build_or_has_more_to_say_first_begins_nothing(arguments: list[str]) -> None:
    assert bootstrap.start_early(arguments) is None


def test_what_was_foreseen_in_vain_leaves_no_process() -> None:
    program = """
import os
from orchestrator import bootstrap
started = bootstrap.start_early(["."])
assert started is not None
started.close()
started.close()
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print("alone")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "alone\n"


def test_wrong_flags_of_a_foreseen_build_are_wrong_usage() -> None:
    command = [sys.executable, "-m", "orchestrator", "build", "--no-such-flag"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--no-such-flag" in done.stderr
