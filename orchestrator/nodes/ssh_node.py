"""Nodes behind SSH: an executor that the user's ssh client starts there, and that is sent there if it is missing.

The command that the client runs is the same for every node. All that differs goes through stdin, so that no word of it
meets a shell, and at once, so that a node that has kanifold answers after a single round trip: the Python to use, then
the loader (``remote_loader``), then the installation that is wanted (``executor_zip``).
"""

from __future__ import annotations

import asyncio
import os
import zlib
from typing import Final

import msgspec
from msgspec.structs import replace

from orchestrator import connection, process
from orchestrator.connection import Connection
from orchestrator.nodes import executor_zip, ssh_address, ssh_client, ssh_failure
from orchestrator.nodes.command_node import CommandNode
from orchestrator.nodes.inventory import NodeEntry
from orchestrator.nodes.ssh_client import SSHClient
from orchestrator.process import Worker
from platforms import debug, decoding, framing
from platforms.errors import EnvironmentUnfit, KanifoldError, NotBootstrapped, ProtocolError, UsageError, printable

MARK: Final = b"kanifold-node-1 "
"""``remote_loader.MARK``, and a space."""
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
_REUSED: Final = 15.0
"""Seconds for the first answer over a connection that was there already."""
_NOISE: Final = 1 << 16
"""Bytes that a login may print before the first answer."""
_FIRST: Final = """\
import os, signal, sys, zlib
code = 'python=bytes();first=%r;exec(first)' % first
wanted = python.decode().strip()
if wanted:
    try:
        os.execvp(wanted, [wanted, '-I', '-S', '-c', code])
    except OSError:
        os.write(1, b'\\nkanifold-node-1 nopython\\n')
        os._exit(3)
if sys.version_info < (3, 11):
    for version in VERSIONS:
        for folder in os.environ.get('PATH', os.defpath).split(os.pathsep):
            path = os.path.join(folder, 'python' + version)
            if os.access(path, os.X_OK):
                os.execv(path, [path, '-I', '-S', '-c', code])
    os.write(1, ('\\nkanifold-node-1 oldpython %d.%d\\n' % sys.version_info[:2]).encode())
    os._exit(3)
text = b''
while len(text) < SIZE:
    block = os.read(0, SIZE - len(text))
    if not block:
        os._exit(3)
    text += block
signal.alarm(0)
exec(zlib.decompress(text))
sys.exit(main())
"""
"""What the second line executes, with any Python 3: reads and executes the loader, if need be with another Python."""


class _Lacking(msgspec.Struct, frozen=True):
    """What a node says of its Python when it lacks the installation (``remote_loader``)."""

    suffix: str
    libc: str = ""


class _Refused(msgspec.Struct, frozen=True):
    what: str
    why: str = ""
    remedy: str = ""


class _ClientFailedError(Exception):
    """The client has ended, or fell silent, before there was an executor."""

    def __init__(self, stderr: str, status: int) -> None:
        super().__init__(stderr)
        self.stderr = stderr
        self.status = status


_LACKING: Final = msgspec.json.Decoder(_Lacking)
_REFUSED: Final = msgspec.json.Decoder(_Refused)


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
        self._wanted: asyncio.Task[tuple[str, str]] | None = None
        self._may_ask = True
        """Whether the user may be asked something: for the first executor only, before anything is displayed."""

    async def _start(self) -> Connection:
        """Start an executor there, after sending it if it is missing.

        Raises ``EnvironmentUnfit`` with the words of the ssh client, or with the reason why no executor runs there.
        """
        if self._client is None or self._wanted is None:  # once for all executors
            self._client = asyncio.create_task(ssh_client.client(self._address, self.name))
            self._wanted = asyncio.create_task(asyncio.to_thread(_wanted))
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
        name, code = await asyncio.shield(self._wanted)
        worker.stdin.write(opening(self._entry, name, code, sends=self._sends))
        state, details = await self._answer(worker, patience)
        if state == "lacking" and self._entry.bootstrap and self._sends:
            await self._send(worker, name, details)
            state, details = await self._answer(worker, connection.GREETING)
        if state != "ready":
            raise self._refusal(state, details)
        return await connection.connect_with_heartbeat(worker, self.name)

    async def _answer(self, worker: Worker, patience: float) -> tuple[str, bytes]:
        """Return the state that the loader reports within ``patience`` seconds, and the details."""
        noise = b""
        async with asyncio.timeout(patience):
            while line := await framing.read_line(worker.stdout, f"node {self.name}"):
                if line.startswith(MARK) and line.endswith(b"\n"):
                    state, _, details = line.removeprefix(MARK).strip().partition(b" ")
                    return state.decode(errors="replace"), details
                noise += line
                if len(noise) > _NOISE:
                    break
        worker.stdin.close()
        await worker.process.gone()
        said = worker.process.stderr_tail or noise.decode(errors="replace")
        raise ProtocolError(
            f"no executor starts on node {self.name}",
            why=ssh_failure.why(said, "the command ended without a word"),
            remedy="a login there has to run commands by a shell: see what `ssh HOST true` prints",
        )

    async def _send(self, worker: Worker, name: str, details: bytes) -> None:
        """Send the zip of the installation ``name`` for what ``details`` describe. Raises ``TimeoutError``."""
        try:
            lacking = decoding.decode(_LACKING, details)
        except msgspec.DecodeError as error:
            raise self._malformed(str(error)) from error
        try:
            made = await asyncio.to_thread(executor_zip.for_python, name, lacking.suffix, lacking.libc)
        except KanifoldError as error:
            problem = error.problem
            raise KanifoldError.of(replace(problem, what=f"node {self.name}: {problem.what}")) from error
        debug.log("kanifold is sent", node=self.name, size=made.size, digest=made.digest)
        worker.stdin.write(f"{made.size} {made.digest}\n".encode())
        with open(made.path, "rb") as file:
            while block := file.read(framing.BLOCK):
                worker.stdin.write(block)
                try:
                    async with asyncio.timeout(connection.GREETING):
                        await worker.stdin.drain()
                except ConnectionError:  # it has told why
                    return

    def _refusal(self, state: str, details: bytes) -> KanifoldError:
        """Return the error for a loader that has ended with ``state``."""
        install = "install Python 3.11 or later there, or name it (python: in the inventory)"
        match state:
            case "nopython":
                why = f"there is no {self._entry.python}" if self._entry.python else "there is no python3 on its PATH"
                return EnvironmentUnfit(f"node {self.name} has no Python", why=why, remedy=install)
            case "oldpython":
                why = f"it is {printable(details.decode(errors='replace'), 20)}"
                return EnvironmentUnfit(f"the Python of node {self.name} is too old", why=why, remedy=install)
            case "absent":
                return NotBootstrapped(
                    f"node {self.name}: kanifold has not been sent there yet",
                    why="this version of it is missing",
                    remedy=f"kanifold node check {self.name} sends it",
                )
            case "refused":
                return self._refused(details)
            case _:
                return self._malformed(printable(state, 80))

    def _refused(self, details: bytes) -> KanifoldError:
        try:
            refused = decoding.decode(_REFUSED, details)
        except msgspec.DecodeError as error:
            return self._malformed(str(error))
        remedy = printable(refused.remedy)
        if not remedy and not self._entry.bootstrap:
            remedy = f"install kanifold there (pipx install kanifold=={executor_zip.VERSION}), or let it be sent"
        what = f"node {self.name}: {printable(refused.what)}"
        return EnvironmentUnfit(what, why=printable(refused.why), remedy=remedy)

    def _malformed(self, why: str) -> ProtocolError:
        return ProtocolError(f"the answer of node {self.name} is malformed", why=why)


def _wanted() -> tuple[str, str]:
    """Return the name of the installation that nodes should have, and the digest of its code."""
    code = executor_zip.code_digest()
    return executor_zip.installation_name(code), code


def opening(entry: NodeEntry, name: str, code: str, *, sends: bool = True) -> bytes:
    """Return all that is written to stdin before the first answer."""
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "remote_loader.py"), "rb") as file:
        loader = zlib.compress(file.read(), 9)
    versions = () if entry.python else ("3.14", "3.13", "3.12", "3.11")
    first = _FIRST.replace("VERSIONS", repr(versions)).replace("SIZE", str(len(loader)))
    bootstrap = ("1" if sends else "2") if entry.bootstrap else "0"
    asked = f"{name} {code} {bootstrap} {int(debug.on)}"
    return f"{entry.python}\nfirst={first!r};exec(first)\n".encode() + loader + f"{asked}\n".encode()
