"""Attack 70 (review): a step that connects to its SSH agent again and again takes the executor's threads, descriptors.

Each connection was a thread, and each thread's question one of the thousand after which an executor is not heard any
more; what a step takes of the builder is bounded everywhere else (attack 56).
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from executor.protocol import Question
from executor.solver import agent

MANY = 400
LIST = (1).to_bytes(4, "big") + b"\x0b"
"""SSH_AGENTC_REQUEST_IDENTITIES."""


class Conversation:
    """Answers when told to, and counts who waits."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.waiting = threading.Semaphore(0)
        self.asked = 0

    def ask(self, question: Question) -> bytes:
        """As ``executor.conversation`` has it."""
        self.asked += 1
        self.waiting.release()
        assert self.answer.wait(20)
        return b"\x0c\0\0\0\0"


@pytest.fixture
def descriptors() -> None:
    """Room for all connections, of which this process has both ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 3 * MANY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 3 * MANY), hard))


@pytest.mark.usefixtures("descriptors")
def test_a_step_has_so_many_connections_and_all_are_answered_in_the_end(tmp_path: Path) -> None:
    talk = Conversation()
    before = threading.active_count()
    with (
        agent.forwarded(cast(Any, talk), "default", str(tmp_path), uid=os.getuid(), gid=os.getgid(), mode=0o600)
        as path, contextlib.ExitStack() as opened,
    ):  # fmt: skip
        connections = []
        for _ in range(MANY):
            connection = opened.enter_context(socket.socket(socket.AF_UNIX))
            connection.setblocking(False)
            if connection.connect_ex(path) == 0:  # else the kernel's queue is full, which is what is to be seen
                connection.setblocking(True)
                connection.settimeout(20)
                connection.sendall(LIST)
                connections.append(connection)
        for _ in range(min(agent.AT_ONCE, len(connections))):
            assert talk.waiting.acquire(timeout=20)
        assert not talk.waiting.acquire(timeout=0.2), "nobody else is heard before one of these has gone"
        assert talk.asked == agent.AT_ONCE
        assert threading.active_count() - before <= agent.AT_ONCE + 1
        talk.answer.set()
        for connection in connections:
            assert connection.recv(16) == b"\0\0\0\x05\x0c\0\0\0\0"
            connection.close()
    assert talk.asked == len(connections) > agent.AT_ONCE
