"""Debian's docker-registry on a free port."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

DEADLINE = 20.0
"""Timeout of its start in seconds."""

_CONFIGURATION = """\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {storage}}}
  delete: {{enabled: true}}
http: {{addr: "{address}:{port}"}}
"""


def program() -> str | None:
    """Return the path of the registry program, if it is installed."""
    return shutil.which("docker-registry") or shutil.which("registry")


def configuration(storage: Path, address: str, port: int | str) -> str:
    """Return the text of its configuration file."""
    return _CONFIGURATION.format(storage=storage, address=address, port=port)


@contextlib.contextmanager
def serve(storage: Path, address: str = "127.0.0.1") -> Iterator[str]:
    """Run a registry with its blobs in ``storage``; yields ``ADDRESS:PORT`` once it responds."""
    found = program()
    assert found is not None, "docker-registry is not installed"
    port = free_port(address)
    storage.mkdir(parents=True, exist_ok=True)
    written = storage / "config.yml"
    written.write_text(configuration(storage / "data", address, port))
    log = storage / "log"
    with log.open("wb") as sink:
        tied = (
            ["setpriv", "--pdeathsig=KILL"] if shutil.which("setpriv") else []
        )  # it must not outlive a killed test run
        process = subprocess.Popen([*tied, found, "serve", str(written)], stdout=sink, stderr=sink)
        try:
            _await_answer(address, port, process, log)
            yield f"{address}:{port}"
        finally:
            process.terminate()
            process.wait(timeout=DEADLINE)


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def _await_answer(address: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end and process.poll() is None:
        connection = http.client.HTTPConnection(address, port, timeout=2)
        try:
            connection.request("GET", "/v2/")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.02)  # nothing announces that a foreign program listens
        finally:
            connection.close()
    raise AssertionError(f"the registry did not start:\n{log.read_text()}")
