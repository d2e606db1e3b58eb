"""Signs of life between an orchestrator and an executor elsewhere: silence ends both sides, slowness neither."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Base
from msgspec.structs import replace
from protocol_nodes import ROOT, Marked, build, remote

from executor import protocol
from executor.protocol import BuildOptions, Log, Ping
from orchestrator import heartbeat
from orchestrator.nodes.command_node import CommandNode
from orchestrator.outputs import OciLayout
from orchestrator.request import BuildRequest
from orchestrator.view import events
from platforms import framing, host
from platforms.errors import ConnectionLost, KanifoldError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="executors run on Linux")

PATIENCE = 1.0
"""Seconds of silence that an executor of these tests bears."""
SLEEPING = "FROM image\nRUN echo sleeping && exec sleep 600\n"


@pytest.fixture
def mark() -> Iterator[Marked]:
    mark = Marked()
    yield mark
    assert mark.wait_until_gone(5) == [], "a process is left"


class Elsewhere:
    """An executor as another machine starts it, and this end of its pipes."""

    def __init__(self, place: Path, mark: Marked) -> None:
        environment = {
            **os.environ, **mark.environment, "PYTHONPATH": str(ROOT), "HOME": str(place), "KANIFOLD_ROOT": str(place),
        }  # fmt: skip
        self.process = subprocess.Popen(
            (sys.executable, "-P", "-m", "executor"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def say(self, message: protocol.Message) -> None:
        self.stdin.write(framing.encode(message))
        self.stdin.flush()

    def wait_for(self, word: bytes) -> bytes:
        """Return the first line of the executor that contains ``word``."""
        return next(line for line in self.stdout if word in line)


@pytest.fixture
def elsewhere(tmp_path: Path, mark: Marked) -> Iterator[Elsewhere]:
    executor = Elsewhere(tmp_path / "elsewhere", mark)
    yield executor
    executor.process.kill()
    executor.process.wait()
    executor.stdin.close()
    executor.stdout.close()


def job(busybox: Base) -> protocol.Job:
    return protocol.Job(
        protocol.VERSION,
        str(host.default_platform()),
        SLEEPING.encode(),
        contexts=(protocol.LayoutContext("image", str(busybox.layout)),),
    )


def test_an_executor_without_a_job_ends_when_its_orchestrator_is_silent(elsewhere: Elsewhere) -> None:
    elsewhere.wait_for(b"hello")
    elsewhere.say(Ping(PATIENCE))
    assert b"ping" in elsewhere.wait_for(b"ping"), "it is not returned"
    assert elsewhere.process.wait(timeout=PATIENCE * 10) == 1
    assert b"silent" in elsewhere.wait_for(b"failed")


def test_an_executor_ends_with_its_steps_when_its_orchestrator_is_silent(
    elsewhere: Elsewhere, busybox: Base, mark: Marked
) -> None:
    elsewhere.say(job(busybox))
    elsewhere.wait_for(b'"type":"log"')
    for _ in range(8):  # longer than it would wait for one
        elsewhere.say(Ping(PATIENCE))
        time.sleep(PATIENCE / 4)
    assert elsewhere.process.poll() is None
    assert len(mark.processes()) > 2, "no step runs"
    elsewhere.process.wait(timeout=PATIENCE * 10)
    assert mark.wait_until_gone(3) == []


def test_an_executor_that_cannot_write_ends_too(elsewhere: Elsewhere, busybox: Base, mark: Marked) -> None:
    """A network that was cut takes nothing any more, so whatever waits to write must not keep the executor."""
    chatter = replace(job(busybox), dockerfile=b"FROM image\nRUN while :; do echo chatter; done\n")
    elsewhere.say(chatter)
    elsewhere.wait_for(b'"type":"log"')
    elsewhere.say(Ping(PATIENCE))
    elsewhere.process.wait(timeout=PATIENCE * 10)  # nothing is read meanwhile
    assert mark.wait_until_gone(3) == []


def asked(tmp_path: Path, busybox: Base, dockerfile: str) -> BuildRequest:
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(dockerfile)
    return BuildRequest(
        context=str(context),
        platforms=(host.default_platform(),),
        outputs=(OciLayout(str(tmp_path / "out")),),
        build_contexts=(("image", f"oci-layout://{busybox.layout}"),),
        options=BuildOptions(root=str(tmp_path / "near")),
    )


class Stopping(list[events.Event]):
    """Stops the executor of ``mark`` as soon as a step has said something: it hangs, and its pipes stay open."""

    def __init__(self, mark: Marked) -> None:
        super().__init__()
        self._mark = mark
        self.stopped: list[int] = []

    def append(self, event: events.Event) -> None:
        super().append(event)
        if isinstance(event, events.FromExecutor) and isinstance(event.message, Log) and not self.stopped:
            self.stopped = self._mark.processes()
            for each in self.stopped:
                os.kill(each, signal.SIGSTOP)


def test_an_executor_that_hangs_is_given_up(
    tmp_path: Path, busybox: Base, mark: Marked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.1)
    seen = Stopping(mark)
    began = time.monotonic()
    with pytest.raises(KanifoldError) as caught:
        build(replace(asked(tmp_path, busybox, SLEEPING), retry=0), remote(tmp_path / "far", mark), seen)
    assert seen.stopped
    assert time.monotonic() - began < 20
    problem = caught.value.troubles[0].problem  # type: ignore[attr-defined]
    assert problem.kind == ConnectionLost.__name__
    assert problem.what == "the executor on node elsewhere is silent"
    assert problem.why
    assert problem.remedy
    assert not (tmp_path / "out").exists()
    mark.signal(signal.SIGCONT)  # what is elsewhere ends by itself, and not while it is stopped


def test_a_step_that_says_nothing_is_no_executor_that_hangs(
    tmp_path: Path, busybox: Base, mark: Marked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.1)
    build(asked(tmp_path, busybox, "FROM image\nRUN sleep 3\n"), remote(tmp_path / "far", mark))
    assert (tmp_path / "out" / "index.json").exists()


SLOW = """
import os, sys, time
while data := os.read(0, 4096):
    os.write(1, data)
    time.sleep(0.01)
"""


MAKES = "FROM image\nRUN head -c 1048576 /dev/urandom > /file\n"


@pytest.mark.parametrize("direction", ["there", pytest.param("back", marks=pytest.mark.slow)])
def test_a_slow_connection_is_none_that_is_cut(
    tmp_path: Path, busybox: Base, mark: Marked, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    """A file that takes several times as long as silence may last goes over one that passes some 400 kB a second."""
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.1)
    request = asked(tmp_path, busybox, "FROM scratch\nCOPY file /\n" if direction == "there" else MAKES)
    (tmp_path / "context" / "file").write_bytes(os.urandom(1 << 20) if direction == "there" else b"")
    far = remote(tmp_path / "far", mark)
    order = '"$0" -c "$1" | "$2" -P -m executor' if direction == "there" else '"$2" -P -m executor | "$0" -c "$1"'
    node = CommandNode("elsewhere", ("sh", "-c", order, sys.executable, SLOW, sys.executable), far._environment)
    began = time.monotonic()
    build(request, node)
    assert time.monotonic() - began > 0.1 * heartbeat.SILENT_INTERVALS * 2, "it was not slow"
    assert (tmp_path / "out" / "index.json").exists()
