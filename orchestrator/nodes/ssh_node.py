"""Nodes behind SSH: an executor that the user's ssh client starts there, and that is sent there if it is missing.

The command that the client runs is the same for every node. All that differs goes through stdin, so that no word of it
meets a shell, and at once, so that a node that has kanifold answers after a single round trip (``executor_loading``).
"""

from __future__ import annotations

import asyncio
from typing import Final

from orchestrator import connection, process
from orchestrator.connection import Connection
from orchestrator.nodes import executor_loading, ssh_address, ssh_client, ssh_failure
from orchestrator.nodes.command_node import CommandNode
from orchestrator.nodes.executor_loading import Loading, Wanted
from orchestrator.nodes.inventory import NodeEntry
from orchestrator.nodes.ssh_client import SSHClient
from orchestrator.process import Worker
from platforms.errors import EnvironmentUnfit, KanifoldError, UsageError, printable

COMMAND: Final = (
    "exec /bin/sh -c '"
    "for each in python3 python3.14 python3.13 python3.12 python3.11 python; do "
    'if command -v "$each" >/dev/null 2>&1; then exec "$each" -I -S -c '
    '"import signal,sys;signal.alarm(60);line=sys.stdin.buffer.raw.readline;python=line();exec(line())"; fi; done; '
    'read -r python; if test -n "$python" && command -v "$python" >/dev/null 2>&1; then exec "$python" -I -S -c '
    '"import signal,sys;signal.alarm(60);python=bytes();exec(sys.stdin.buffer.raw.readline())"; fi; '
    "echo; echo kanifold-node-1 nopython'"
)
"""Runs the first Python that there is, or else the one of the first line of stdin; that executes the second line.

It ends when that does not come within a minute: sshd does not notice at once that a network is cut. No sign in it means
anything within single quotes to the login shells sh, bash, zsh, ksh, csh and fish.
"""
_HINT: Final = "a login there has to run commands by a shell: see what `ssh HOST true` prints"
_REUSED: Final = 15.0
"""Seconds for the first answer over a connection that was there already."""


class _ClientFailedError(Exception):
    """The client has ended, or fell silent, before there was an executor."""

    def __init__(self, stderr: str, status: int) -> None:
        super().__init__(stderr)
        self.stderr = stderr
        self.status = status


class SSHNode(CommandNode):
    """The node that is declared by ``entry``. Raises ``UsageError`` for an invalid address or Python.

    ``sends``: whether kanifold may be sent there now, if ``entry`` allows it at all.
    """

    def __init__(self, entry: NodeEntry, *, sends: bool = True) -> None:
        super().__init__(entry.name, ())
        self._entry = entry
        self._sends = sends
        self._address = ssh_address.parse(entry.url)
        if not entry.python.isprintable() or entry.python.startswith("-"):  # it is a line of what the node is told
            raise UsageError(f"node {entry.name}: python {printable(entry.python, 80)!r} is no program")
        self._client: asyncio.Task[SSHClient] | None = None
        self._wanted: asyncio.Task[Wanted] | None = None
        self._may_ask = True
        """Whether the user may be asked something: for the first executor only, before anything is displayed."""

    async def _start(self) -> Connection:
        """Start an executor there, after sending it if it is missing.

        Raises ``EnvironmentUnfit`` with the words of the ssh client, or with the reason why no executor runs there.
        """
        if self._client is None or self._wanted is None:  # once for all executors
            self._client = asyncio.create_task(ssh_client.client(self._address, self.name))
            self._wanted = asyncio.create_task(asyncio.to_thread(executor_loading.wanted))
        client = await asyncio.shield(self._client)
        reused = client.is_shared()
        while True:
            try:
                connected = await self._attempt(client, _REUSED if reused else connection.GREETING)
            except _ClientFailedError as failed:
                await client.give_up()
                if reused:  # it may be to a machine, or over a network, that is not there any more
                    reused = False
                    continue
                if self._may_ask and ssh_failure.is_answerable(failed.stderr):
                    self._may_ask = False
                    if await client.ask():
                        continue
                raise ssh_failure.failure(self.name, self._address, failed.stderr, failed.status) from failed
            self._may_ask = False
            return connected

    async def _attempt(self, client: SSHClient, patience: float) -> Connection:
        """Return an executor that ``client`` has started, and that answers within ``patience`` seconds."""
        try:
            worker = await process.start(client.command(COMMAND), (), connection.LINE_LIMIT)
        except OSError as error:
            raise EnvironmentUnfit(f"cannot reach node {self.name}", why=f"ssh: {error.strerror}") from error
        try:
            return await self._loaded(worker, patience)
        except BaseException as error:
            await asyncio.shield(connection.end(worker))
            status, stderr = worker.process.ended.result(), worker.process.stderr_tail
            if isinstance(error, TimeoutError):
                raise _ClientFailedError(f"{stderr}\nnothing came within {patience:.0f} seconds", status) from error
            if isinstance(error, KanifoldError) and status == ssh_failure.STATUS:
                raise _ClientFailedError(stderr, status) from error
            raise

    async def _loaded(self, worker: Worker, patience: float) -> Connection:
        """Return the connection to the executor that ``worker``, the client, has started. Raises ``TimeoutError``."""
        assert self._wanted is not None
        wanted = await asyncio.shield(self._wanted)
        return await Loading(self._entry, self.name, wanted, self._sends, _HINT).load(worker, patience)
