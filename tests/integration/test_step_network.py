"""Which network a build's steps have: their own, this machine's for those who may, or none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Base, Kanifold, needs

from orchestrator import values
from platforms.errors import UsageError

REFUSED = "network.host is not allowed"


@pytest.fixture
def service() -> Iterator[str]:
    """The port of a service on this machine's loopback interface, which says ``loopback``."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    with server.accept()[0] as line:
                        line.sendall(b"loopback\n")
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield str(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)


def asking(kanifold: Kanifold, busybox: Base, port: str, flag: str = "") -> Path:
    where = kanifold.home / "context"
    where.mkdir()
    (where / "Dockerfile").write_text(
        f"FROM {busybox.ref}\nRUN {flag} nc -w 2 127.0.0.1 {port} < /dev/null || echo no\n"
    )
    return where


def test_the_hosts_network_needs_permission(kanifold: Kanifold, busybox: Base, service: str) -> None:
    where = asking(kanifold, busybox, service, "--network=host")
    refused = kanifold.run("build", where)
    assert (refused.code, REFUSED in refused.said) == (1, True)
    assert "Dockerfile:2" in refused.said
    assert "loopback" in kanifold("build", where, "--allow", "network.host", "--progress", "plain").said


def test_the_hosts_network_by_flag_needs_it_too(kanifold: Kanifold, busybox: Base, service: str) -> None:
    where = asking(kanifold, busybox, service)
    refused = kanifold.run("build", where, "--network", "host")
    assert (refused.code, REFUSED in refused.said) == (1, True)
    done = kanifold("build", where, "--network", "host", "--allow", "network.host", "--progress", "plain")
    assert "loopback" in done.said


def test_it_can_be_made_the_default(kanifold: Kanifold, busybox: Base, service: str) -> None:
    where = asking(kanifold, busybox, service)
    assert "loopback" in kanifold("build", where, "--progress", "plain", KANIFOLD_NETWORK="host").said


def test_by_default_the_hosts_loopback_interface_is_out_of_reach(
    kanifold: Kanifold, busybox: Base, service: str
) -> None:
    needs("pasta")
    done = kanifold("build", asking(kanifold, busybox, service), "--progress", "plain")
    assert "loopback\n" not in done.said


def test_a_default_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="KANIFOLD_NETWORK='hots'"):
        values.default_network("hots")
