"""SSH agents for the steps that request one: ``--ssh default``, ``--ssh id=SOCKET``, ``--ssh id=KEY``.

A private key is given to an ``ssh-agent`` that is started for the build. Requests are filtered here as well as in the
executor, which is not trusted.
"""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from executor.solver.agent import ALLOWED, FAILURE
from platforms.errors import EnvironmentUnfit, KanifoldError, UsageError
from platforms.paths import below

_SECONDS = 30.0
"""Timeout of an agent in seconds: a key on a token may have to be touched."""


@contextmanager
def start_agents(wanted: Sequence[tuple[str, str]]) -> Iterator[dict[str, str]]:
    """Yield the sockets of ``wanted`` (name, place) by name, for the length of the block. Raises ``UsageError``."""
    if not wanted:
        yield {}
        return
    found: dict[str, str] = {}
    ours: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="kanifold-ssh-") as directory:
        try:
            for name, place in wanted:
                paths = place.split(",") if place else [os.environ.get("SSH_AUTH_SOCK", "")]
                if not paths[0]:
                    raise UsageError(
                        f"--ssh {name}: there is no agent",
                        why="SSH_AUTH_SOCK is not set",
                        remedy="start one (eval $(ssh-agent); ssh-add), or name a key: --ssh default=~/.ssh/id_ed25519",
                    )
                if len(paths) == 1 and _is_socket(paths[0]):
                    found[name] = paths[0]
                else:
                    process, found[name] = _own_agent(below(directory, str(len(ours))), name, paths)
                    ours.append(process)
            yield found
        finally:
            for each in ours:
                each.terminate()
                each.wait()


def query(path: str, request: bytes) -> bytes:
    """Return the reply of the agent at ``path`` to ``request``, both without their length prefix."""
    if not request or request[0] not in ALLOWED:
        return FAILURE
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_SECONDS)
            connection.connect(path)
            connection.sendall(len(request).to_bytes(4, "big") + request)
            with connection.makefile("rb") as stream:
                return stream.read(int.from_bytes(stream.read(4), "big"))
    except OSError as error:
        raise KanifoldError("the SSH agent does not answer", why=error.strerror or str(error)) from error


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(os.path.expanduser(path)).st_mode)
    except OSError as error:
        raise UsageError(f"--ssh: cannot use {path}", why=error.strerror or str(error)) from error


def _own_agent(path: str, name: str, keys: Sequence[str]) -> tuple[subprocess.Popen[bytes], str]:
    """Start an ``ssh-agent`` at ``path`` with ``keys``."""
    try:
        process = subprocess.Popen(
            ["ssh-agent", "-D", "-a", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise EnvironmentUnfit(
            f"--ssh {name}: a key needs an agent, and there is no ssh-agent", remedy="apt-get install openssh-client"
        ) from error
    assert process.stdout is not None
    process.stdout.readline()  # printed when it listens
    for key in keys:
        added = subprocess.run(
            ["ssh-add", "-q", "--", os.path.expanduser(key)],
            env={**os.environ, "SSH_AUTH_SOCK": path, "SSH_ASKPASS_REQUIRE": "never"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if added.returncode != 0:
            process.terminate()
            process.wait()
            raise UsageError(
                f"--ssh {name}: cannot use the key {key}",
                why=added.stderr.decode("utf-8", "replace").strip(),
                remedy="add keys with a passphrase to your own agent, and pass --ssh default",
            )
    return process, path
