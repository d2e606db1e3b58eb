"""What takes a process with a single thread says so in one that has more, rather than hang or fail obscurely."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from packages import ROOT, parsed, violations

SECOND = "import threading; threading.Thread(target=threading.Event().wait, name='tracer', daemon=True).start()\n"
"""A second thread, as tools bring along that are loaded into every Python program."""
CHECK = "from platforms.threads import check_single\ncheck_single('fork')\n"


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={"PYTHONPATH": str(ROOT), "HOME": "/nonexistent"},
        check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="executors run on Linux")


def test_one_thread_is_enough() -> None:
    assert run(CHECK).returncode == 0


def test_a_thread_that_has_ended_is_none() -> None:
    ended = "import threading; each = threading.Thread(target=int); each.start(); each.join()\n"
    assert run(ended + CHECK).returncode == 0


def test_a_thread_that_is_about_to_end_is_waited_for() -> None:
    ending = (
        "import threading; gate = threading.Event()\n"
        "threading.Thread(target=gate.wait).start()\n"
        "import time; real = time.sleep\n"
        "def sleep(seconds): gate.set(); real(seconds)\n"
        "time.sleep = sleep\n"
    )
    assert run(ending + CHECK).returncode == 0


def unchecked_forks(source: str) -> list[str]:
    """The functions that call fork(2) by way of ``os.fork`` and do not call ``check_single``."""
    return [
        function.name
        for function in ast.walk(parsed(source))
        if isinstance(function, ast.FunctionDef)
        and "os.fork"
        in (called := {ast.unparse(each.func) for each in ast.walk(function) if isinstance(each, ast.Call)})
        and not called & {"threads.check_single", "check_single"}
    ]


CHECKED_OTHERWISE = {"platforms/probe.py": ["_trace_another", "_in_child", "_run"]}
"""Their children take no lock: they make system calls, or execute a program."""


def test_whoever_forks_has_a_single_thread() -> None:
    """``syscalls.fork``, which makes namespaces too, looks itself."""
    assert violations(lambda _, source: unchecked_forks(source)) == CHECKED_OTHERWISE


def test_the_rule_of_forks_blames_what_it_should() -> None:
    assert unchecked_forks("def f():\n    return os.fork() or g()") == ["f"]
    assert unchecked_forks("def f():\n    threads.check_single('f')\n    return os.fork()") == []


@pytest.mark.parametrize(
    "program",
    [
        CHECK,
        "from orchestrator import prefork\nwith prefork.opened(None): pass",
        "from executor.sandbox import isolation\nisolation.enter()",
        "from executor.sandbox import launcher\nlauncher.start()",
    ],
    ids=["check", "processes of a build", "isolation", "process of steps"],
)
def test_a_second_thread_is_named(program: str) -> None:
    outcome = run(SECOND + program)
    assert outcome.returncode == 1
    assert "EnvironmentUnfit" in outcome.stderr
    assert "this one has 2 (MainThread, tracer)" in outcome.stderr


def test_the_command_says_it_too(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    command = ["kanifold", "build", str(tmp_path), "-o", str(tmp_path / "out"), "--root", str(tmp_path / "store")]
    outcome = run(f"{SECOND}import sys; sys.argv = {command!r}\nfrom orchestrator.__main__ import main\nmain()")
    assert outcome.returncode == 3
    assert "this one has 2 (MainThread, tracer)" in outcome.stderr
    assert "Traceback" not in outcome.stderr
