"""The system's OpenSSH client: its command line for a node, with all of the user's configuration.

Where the configuration has no ControlPath for the host, connections are shared by a socket of ours, for several
executors and for the next build: a login takes some ten round trips and some computing, a session on a connection that
is open takes three (sshd takes stdin only after it has started the command). The master process ends ``_PERSIST``
seconds after its last session.

Commands ask the user nothing: they run in sessions of their own (setsid(2)), without a terminal. Where there is one and
a login needs an answer, ``ask`` makes the shared connection in the foreground.

Nothing on the command line is variable but user, port and host, which are of a narrow alphabet (``ssh_address``), and
the path of the socket. What the node is told goes through stdin.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import stat
import subprocess
import threading
from collections.abc import Sequence
from typing import Final

import msgspec

from orchestrator.nodes.ssh_address import SSHAddress
from platforms.errors import EnvironmentUnfit, printable
from platforms.paths import below

_PERSIST: Final = 60
"""Seconds that a shared connection stays open without a session."""
_CONFIGURATION_LIMIT: Final = 1 << 20
_SOCKET_LIMIT: Final = 85
"""Bytes of a socket's path: sun_path has 104 on a Mac, and ssh adds up to 18 (a dot and random characters)."""
_TERMINAL: Final = threading.Lock()
_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9/._+-]+")
_DEFAULTS: Final = (
    # A node that is down is not waited for, and a shared connection to one that is gone ends, as its executors do
    # (``heartbeat``), after 45 seconds. Each as far as the user has not set it.
    ("connecttimeout", "none", "ConnectTimeout=10"),
    ("serveraliveinterval", "0", "ServerAliveInterval=15"),
)


class SSHClient(msgspec.Struct, frozen=True):
    """The client for one address."""

    address: SSHAddress
    options: tuple[str, ...]
    socket: str = ""
    """Of a shared connection that is ours; "" if the user's configuration has one, or there is no place for it."""

    def command(self, remote: str) -> tuple[str, ...]:
        """Return the command that runs ``remote`` there without a terminal, and that never asks the user anything."""
        return ("ssh", "-T", "-oBatchMode=yes", *self._shared(), *self.options, *_destination(self.address), remote)

    def is_shared(self) -> bool:
        """Whether an earlier command has left a connection that is ours."""
        return bool(self.socket) and os.path.exists(self.socket)

    def _shared(self) -> tuple[str, ...]:
        sharing = (f"-oControlPath={self.socket}", "-oControlMaster=auto", f"-oControlPersist={_PERSIST}")
        return sharing if self.socket else ()

    async def ask(self) -> bool:
        """Log in with questions to the user (a passphrase, a password, a new host's key), for all commands that follow.

        The connection stays open for these, if it is ours. Returns False if nobody could be asked, or did not succeed.
        """
        if not self.socket:
            return False
        command = ("ssh", "-f", "-N", "-T", *self._shared(), *self.options, *_destination(self.address))
        return await asyncio.to_thread(_log_in, command)

    async def give_up(self) -> None:
        """Let the next command make a connection of its own: the shared one may be to a machine that is gone.

        Sessions on it go on. No error if there is none.
        """
        if self.socket:
            with contextlib.suppress(OSError):
                command = (f"-oControlPath={self.socket}", "-Ostop", *_destination(self.address))
                process = await asyncio.create_subprocess_exec(
                    "ssh", *command, stdin=-3, stdout=-3, stderr=-3, start_new_session=True
                )
                await process.wait()


async def client(address: SSHAddress, node: str) -> SSHClient:
    """Return the client for ``address`` by the user's configuration, as ``ssh -G`` shows it.

    Raises ``EnvironmentUnfit`` for the node called ``node``: there is no client, or it refuses its configuration.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            "ssh", "-G", "-T", *_destination(address), stdin=-3, stdout=-1, stderr=-1, start_new_session=True
        )
    except OSError as error:
        raise EnvironmentUnfit(
            f"cannot reach node {node}", why=f"ssh: {error.strerror}", remedy="install the OpenSSH client"
        ) from error
    out, err = await process.communicate()
    if process.returncode or len(out) > _CONFIGURATION_LIMIT:
        raise EnvironmentUnfit(
            f"cannot reach node {node}",
            why=f"ssh: {printable(err.decode(errors='replace'), 1000)}",
            remedy="correct the configuration of the ssh client (~/.ssh/config, /etc/ssh/ssh_config)",
        )
    lines = dict(line.split(" ", 1) for line in out.decode(errors="replace").splitlines() if " " in line)
    options = [
        "-a", "-x", "-oClearAllForwardings=yes", "-oRemoteCommand=none", "-oTunnel=no",  # a session with pipes only
        *(f"-o{option}" for key, unset, option in _DEFAULTS if lines.get(key, unset) == unset),
    ]  # fmt: skip
    shared = lines.get("controlpath", "none") != "none"
    return SSHClient(address, tuple(options), "" if shared else _socket(out))


def _destination(address: SSHAddress) -> tuple[str, ...]:
    port = (f"-p{address.port}",) if address.port else ()
    user = (f"-l{address.user}",) if address.user else ()
    return (*port, *user, "--", address.host)


def _socket(configuration: bytes) -> str:
    """Return the path of the socket for connections by ``configuration``; "" if there is no place for it."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    folders = (below(runtime, "kanifold"),) if os.path.isabs(runtime) else ()
    for folder in (*folders, f"/tmp/kanifold-{os.geteuid()}"):
        path = below(folder, hashlib.sha256(configuration).hexdigest()[:20])
        if len(path) <= _SOCKET_LIMIT and _PLAIN_PATH.fullmatch(path) and _is_private(folder):
            return path
    return ""


def _is_private(folder: str) -> bool:
    """Make the directory ``folder``; whether it is this user's alone."""
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o077


def _log_in(command: Sequence[str]) -> bool:
    """Run ``command`` in the foreground of the terminal, one at a time; False where that cannot be."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        foreground = os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
    with _TERMINAL:  # two questions at once could not be answered
        return foreground and subprocess.run(command, stdin=-3, stdout=-3, check=False).returncode == 0
