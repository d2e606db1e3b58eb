"""Loading an executor through the pipes of a Python on another machine: sent there if it is missing.

All that differs goes through stdin, and at once, so that a machine that has kanifold answers after a single round trip:
the Python to use, then the loader (``remote_loader``), then the installation that is wanted (``executor_zip``).
"""

from __future__ import annotations

import asyncio
import os
import zlib
from typing import Final

import msgspec
from msgspec.structs import replace

from orchestrator import connection
from orchestrator.connection import Connection
from orchestrator.nodes import executor_zip
from orchestrator.nodes.inventory import NodeEntry
from orchestrator.process import Worker
from platforms import debug, decoding, framing
from platforms.errors import EnvironmentUnfit, KanifoldError, NotBootstrapped, ProtocolError, printable

MARK: Final = b"kanifold-node-1 "
"""``remote_loader.MARK``, and a space."""
_NOISE: Final = 1 << 16
"""Bytes that a login may print before the first answer."""
_LINES: Final = 30
"""Lines of what was written to stderr that are told."""
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


_LACKING: Final = msgspec.json.Decoder(_Lacking)
_REFUSED: Final = msgspec.json.Decoder(_Refused)


class Wanted(msgspec.Struct, frozen=True):
    """The installation that nodes should have."""

    name: str
    code: str
    """The digest of its code."""


def wanted() -> Wanted:
    """Return the installation that nodes should have: that of this code."""
    code = executor_zip.code_digest()
    return Wanted(executor_zip.installation_name(code), code)


class Loading(msgspec.Struct, frozen=True):
    """Starting an executor on the node ``name`` that ``entry`` declares.

    ``sends``: whether kanifold may be sent there now, if ``entry`` allows it at all. ``hint`` is the remedy for a
    command that ends without a word.
    """

    entry: NodeEntry
    name: str
    wanted: Wanted
    sends: bool
    hint: str

    async def load(self, worker: Worker, patience: float) -> Connection:
        """Return the connection to the executor that ``worker``, a Python there, becomes.

        Raises ``TimeoutError`` when it does not answer within ``patience`` seconds.
        """
        worker.stdin.write(opening(self.entry, self.wanted, sends=self.sends))
        state, details = await self._answer(worker, patience)
        if state == "lacking" and self.entry.bootstrap and self.sends:
            await self._send(worker, details)
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
            why=why(said, "the command ended without a word"),
            remedy=self.hint,
        )

    async def _send(self, worker: Worker, details: bytes) -> None:
        """Send the zip of the installation for what ``details`` describe. Raises ``TimeoutError``."""
        try:
            lacking = decoding.decode(_LACKING, details)
        except msgspec.DecodeError as error:
            raise self._malformed(str(error)) from error
        try:
            made = await asyncio.to_thread(executor_zip.for_python, self.wanted.name, lacking.suffix, lacking.libc)
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
        entry = self.entry
        match state:
            case "nopython":
                why = f"there is no {entry.python}" if entry.python else "there is no python3 on its PATH"
                return EnvironmentUnfit(f"node {self.name} has no Python", why=why, remedy=install)
            case "oldpython":
                why = f"it is {printable(details.decode(errors='replace'), 20)}"
                return EnvironmentUnfit(f"the Python of node {self.name} is too old", why=why, remedy=install)
            case "absent":
                return NotBootstrapped(
                    f"node {self.name}: kanifold has not been sent there yet",
                    why="this version of it is missing",
                    remedy=f"kanifold node check {entry.name} sends it",
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
        if not remedy and not self.entry.bootstrap:
            remedy = f"install kanifold there (pipx install kanifold=={executor_zip.VERSION}), or let it be sent"
        what = f"node {self.name}: {printable(refused.what)}"
        return EnvironmentUnfit(what, why=printable(refused.why), remedy=remedy)

    def _malformed(self, why: str) -> ProtocolError:
        return ProtocolError(f"the answer of node {self.name} is malformed", why=why)


def opening(entry: NodeEntry, wanted: Wanted, *, sends: bool = True) -> bytes:
    """Return all that is written to stdin before the first answer."""
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "remote_loader.py"), "rb") as file:
        loader = zlib.compress(file.read(), 9)
    versions = () if entry.python else ("3.14", "3.13", "3.12", "3.11")
    first = _FIRST.replace("VERSIONS", repr(versions)).replace("SIZE", str(len(loader)))
    bootstrap = ("1" if sends else "2") if entry.bootstrap else "0"
    asked = f"{wanted.name} {wanted.code} {bootstrap} {int(debug.on)}"
    return f"{entry.python}\nfirst={first!r};exec(first)\n".encode() + loader + f"{asked}\n".encode()


def words(text: str) -> tuple[str, ...]:
    """Return the last lines of ``text``, what was written to stderr, without controls and without frames of ``@``."""
    lines = (printable(line.strip("@ \r"), 500) for line in text.splitlines())
    return tuple(filter(None, lines))[-_LINES:]


def why(text: str, otherwise: str) -> str:
    """Return the reason of an error whose only trace is ``text`` on stderr: its last line, then those before."""
    return reason(words(text), otherwise)


def reason(lines: tuple[str, ...], otherwise: str) -> str:
    """Return ``lines`` with the last one first, or ``otherwise`` if there are none."""
    if not lines:
        return otherwise
    return lines[-1] if len(lines) == 1 else "\n".join((lines[-1], *lines[:-1]))
