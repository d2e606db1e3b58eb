"""The debugging log: off, it does nothing; on, one bounded line an event, whatever the details hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def written(program: str, **environment: str) -> str:
    """What ``program`` writes to stderr with ``platforms.debug`` imported."""
    code = f"from platforms import debug\n{program}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    return done.stderr.decode()


def test_nothing_is_written_unless_it_is_switched_on() -> None:
    for environment in ({}, {"KANIFOLD_DEBUG": ""}, {"KANIFOLD_DEBUG": "0"}):
        assert written("debug.enter('p'); debug.log('x', y=1)", **environment) == ""


def test_the_variable_and_the_flag_switch_it_on_for_what_is_started_later() -> None:
    assert " p[" in written("debug.enter('p')", KANIFOLD_DEBUG="1")
    started = (
        "import subprocess, sys\ndebug.enable()\n"
        "subprocess.run([sys.executable, '-c', 'from platforms import debug; debug.enter(\"child\")'])"
    )
    assert [each.split()[1].partition("[")[0] for each in written(started).splitlines()] == ["kanifold", "child"]


def test_a_line_has_time_process_event_and_details() -> None:
    line = written("debug.enter('p')\ndebug.log('step runs', argv=('a b', 'c'), n=1)", KANIFOLD_DEBUG="1").splitlines()[
        1
    ]
    time, process, rest = line.split(None, 2)
    assert float(time) >= 0
    assert process.startswith("p[") and process.endswith("]")
    assert rest == "step runs argv=('a b', 'c') n=1"


def test_details_cannot_forge_lines_or_reach_the_terminal() -> None:
    lines = written(r"debug.enter('p'); debug.log('x', y='a\n\x1b[31m\u202e b', z='\udc80')", KANIFOLD_DEBUG="1")
    assert lines.endswith(r"x y='a\n\x1b[31m\u202e b' z='\udc80'" + "\n")
    assert len(lines.splitlines()) == 2


def test_a_line_is_as_long_as_can_be_written_at_once() -> None:
    line = written("debug.enter('p'); debug.log('x', y='ü' * 10_000)", KANIFOLD_DEBUG="1").splitlines(keepends=True)[1]
    assert line.endswith("...\n")
    assert 4000 < len(line.encode()) <= 4096


def test_a_reader_that_went_away_is_no_error() -> None:
    assert written("import os; debug.enter('p'); os.close(2); debug.log('x')", KANIFOLD_DEBUG="1").count("\n") == 1


def test_who_waits_for_a_lock_is_told_and_who_has_it() -> None:
    program = """
import tempfile, threading
from executor.store import locks
from executor.store.store import open_store
debug.enter('p')
with tempfile.TemporaryDirectory() as folder, open_store(folder + '/store') as store:
    held = locks.lock(store, 'step x')
    waiter = threading.Thread(target=lambda: locks.lock(store, 'step x').release())
    waited = threading.Event()
    log, debug.log = debug.log, lambda what, **details: (log(what, **details), waited.set())
    waiter.start()
    waited.wait()
    held.release()
    waiter.join()
"""
    said = written(program, KANIFOLD_DEBUG="1")
    assert said.index("lock is taken: waiting name='step x'") < said.index("lock had name='step x'")


def test_it_loads_no_module_that_a_build_does_not_have() -> None:
    loaded = "import sys; sys.stderr.write(str({'logging', 'asyncio', 'shlex'} & set(sys.modules)))"
    assert written(loaded) == "set()"
