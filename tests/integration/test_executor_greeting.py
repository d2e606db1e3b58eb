"""What an executor says before it has a job, and what becomes of jobs of another version of the protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from executor import protocol
from platforms import binfmt, host

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="executors run on Linux")


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An executor as another machine would start it: a command."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "KANIFOLD_ROOT": str(tmp_path / "s")}
    command = [sys.executable, "-P", "-m", "executor"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        yield process
        process.kill()


def heard(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    message: dict[str, Any] = json.loads(process.stdout.readline())
    return message


def test_a_command_greets_before_it_has_a_job(executor: subprocess.Popen[bytes]) -> None:
    greeting = heard(executor)
    assert greeting["type"] == "hello"
    assert greeting["version"] == protocol.VERSION
    assert greeting["host"] == str(host.host())
    assert greeting["processors"] == len(os.sched_getaffinity(0))
    assert greeting["isolation"] in ("namespaces", "mapped", "single")
    assert tuple(greeting.get("emulators", ())) == binfmt.emulated()
    executor.communicate()
    assert executor.returncode == 130, "no job was sent"


PREFORKED = """
import os, json
from orchestrator import prefork
with prefork.opened(None) as server:
    server.start(3)
    for channel in server.channels:
        with os.fdopen(os.dup(channel.stdout), "rb") as stdout:
            print(stdout.readline().decode(), end="")
"""


def test_forked_executors_greet_before_any_has_a_job() -> None:
    done = subprocess.run([sys.executable, "-c", PREFORKED], cwd=ROOT, capture_output=True, check=True, timeout=60)
    greetings = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["type"] for each in greetings] == ["hello"] * 3
    assert {each["version"] for each in greetings} == {protocol.VERSION}


@pytest.mark.parametrize(
    ("job", "why"),
    [
        ({"type": "job", "version": 99, "platform": ["in", "another", "form"]}, "the orchestrator speaks protocol"),
        ({"type": "order", "version": 99}, "the orchestrator speaks protocol version 99, not"),
        ({"type": "done"}, "the first message is not a job"),
        ({"type": "job", "version": protocol.VERSION, "platform": 1}, "a message of the orchestrator is malformed"),
    ],
    ids=["fields of another form", "messages of another name", "no job", "our version, malformed"],
)
def test_a_job_of_another_version_is_refused_in_words(
    executor: subprocess.Popen[bytes], job: dict[str, Any], why: str
) -> None:
    assert heard(executor)["type"] == "hello"
    assert executor.stdin is not None
    executor.stdin.write(json.dumps(job).encode() + b"\n")
    executor.stdin.flush()
    answer = heard(executor)
    assert answer["type"] == "failed"
    assert why in answer["problem"]["what"]
    assert executor.wait(timeout=30) == 1
