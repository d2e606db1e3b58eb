"""Executors in Pods that lie, err or die: their streams, which are cut at times, carry nothing that does harm."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
from pod_sockets import Socket
from protocol_nodes import Marked, build

from executor import protocol, relay
from orchestrator import connection
from orchestrator.connection import Connection
from orchestrator.nodes import executor_loading, remote_loader
from orchestrator.nodes.executor_loading import Loading
from orchestrator.nodes.inventory import NodeEntry
from orchestrator.nodes.kubernetes import job_manifest
from orchestrator.nodes.kubernetes.pod_stream import PodStream
from orchestrator.nodes.node import Description, Say, Support, silent
from orchestrator.outputs import OciLayout
from orchestrator.request import BuildRequest
from platforms.errors import KanifoldError
from platforms.parsing import parse
from platforms.platform import Platform

LIAR = Path(__file__).resolve().parents[1] / "lying_executor.py"
CHILD = f"""\
import os, re, sys
os.write(1, b"\\n{remote_loader.MARK} ready\\n")
while not re.search(rb" [0-2] [01]\\n$", sys.stdin.buffer.raw.readline()):
    pass
os.execv(sys.executable, [sys.executable, PROGRAM, BEHAVIOUR])
"""
"""What the relay starts in place of a Python that executes what it is sent: it skips the loader, and is ready."""


def _drained(log: IO[bytes]) -> None:
    """Read the log of a container to its end."""
    with log:
        log.read()


class LyingPod:
    """A cluster whose Pods are relays on this machine, with an executor of ``behaviour``.

    A stream is cut after as many bytes as ``limits`` say.
    """

    name = "farm/amd64"

    def __init__(self, place: Path, mark: Marked, behaviour: str, limits: Iterator[int]) -> None:
        self._place = place
        self._mark = mark
        child = CHILD.replace("PROGRAM", repr(str(LIAR))).replace("BEHAVIOUR", repr(behaviour))
        self._text = job_manifest.relay_text().replace(f'"{relay.CHILD}"', repr(child))
        assert repr(child) in self._text
        self._limits = limits
        self._streams: list[PodStream] = []
        self._pods: list[subprocess.Popen[bytes]] = []

    async def describe(self, platforms: Sequence[Platform]) -> Description:
        found = tuple((each, Support("native")) for each in platforms)
        return Description(parse("linux/amd64"), found, "0", protocol.VERSION, scheduled=True)

    async def start(self, say: Say = silent) -> Connection:
        place = self._place / f"pod-{len(self._pods)}"
        environment = {
            **os.environ, **self._mark.environment, "KANIFOLD_RELAY": str(place),
            "KANIFOLD_TEST_PROTOCOL": str(protocol.VERSION),
        }  # fmt: skip
        command = [sys.executable, "-I", "-S", "-c", self._text]
        pod = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)
        self._pods.append(pod)
        assert pod.stderr is not None
        await asyncio.to_thread(pod.stderr.readline)
        threading.Thread(target=_drained, args=(pod.stderr,)).start()

        @contextlib.asynccontextmanager
        async def dial() -> AsyncIterator[Any]:
            socket = Socket(*await asyncio.open_unix_connection(place / relay.SOCKET), next(self._limits))
            try:
                yield socket
            finally:
                await socket.close()

        stream = PodStream(secrets.token_hex(8), dial, connection.LINE_LIMIT, self._deleted)
        self._streams.append(stream)
        await stream.connected
        entry = NodeEntry("farm", "kubernetes:///")
        return await Loading(entry, self.name, executor_loading.wanted(), False, "").load(stream.worker, 60.0)

    async def _deleted(self) -> None:
        """A Job is deleted."""
        for each in self._pods:
            with contextlib.suppress(ProcessLookupError):
                each.terminate()

    async def close(self) -> None:
        for each in self._streams:
            each.close()
        await asyncio.gather(*(each.wait_closed() for each in self._streams))
        await self._deleted()
        for pod in self._pods:
            await asyncio.to_thread(pod.wait)


@pytest.fixture
def mark() -> Iterator[Marked]:
    mark = Marked()
    yield mark
    assert mark.wait_until_gone(5) == [], "a process is left"


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANIFOLD_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("HOME", str(tmp_path))


def asked(tmp_path: Path) -> BuildRequest:
    context = tmp_path / "context"
    context.mkdir(exist_ok=True)
    (context / "Dockerfile").write_text("FROM scratch\n")
    out = (OciLayout(str(tmp_path / "out")),)
    return BuildRequest(context=str(context), platforms=(parse("linux/amd64"),), outputs=out, retry=0)


def whole() -> Iterator[int]:
    return itertools.repeat(1 << 60)


def cut() -> Iterator[int]:
    """Connections that carry more and more, so that all comes in the end."""
    return (200 << each for each in itertools.count())


@pytest.mark.parametrize("limits", [whole, cut])
def test_an_honest_one_is_believed(tmp_path: Path, mark: Marked, limits: Any) -> None:
    product = build(asked(tmp_path), LyingPod(tmp_path, mark, "honest", limits()))
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["manifests"][0]["digest"] == product.root.digest


LIES = {
    "junk_later": "malformed",
    "endless_line": "too long",
    "wrong_version": "version 99",
    "asks_for_files_above": "told nothing",
    "dies_later": "node 7 caught fire",
    "screams": "the last words",
    "asks_without_end": "ask",
    "path_as_layer": "other layers",
    "blob_cut_short": "in the middle",
    "endless_blob": "announces 1125899906842624 bytes",
    "failed_without_reason": "",
}
"""What the error says, in part."""


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_one_clear_error(tmp_path: Path, mark: Marked, lie: str) -> None:
    with pytest.raises(KanifoldError) as caught:
        build(asked(tmp_path), LyingPod(tmp_path, mark, lie, cut()))
    assert LIES[lie] in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.rglob("escaped*")) == []
