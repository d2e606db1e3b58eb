"""A transport that is closed leaves no connection open, not even one that was just coming about."""

from __future__ import annotations

import socket
from typing import Any

from executor.registry.registry_settings import RegistrySettings
from executor.transport import Transport


class Stream:
    """A connection as httpcore hands it to those who trace a request."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def get_extra_info(self, name: str) -> Any:
        assert name == "socket"
        return self._connection

    def close(self) -> None:
        self._connection.close()


def test_a_connection_that_comes_about_after_closing_is_closed() -> None:
    ours, theirs = socket.socketpair()
    transport = Transport(RegistrySettings())
    with theirs:
        transport._remember("connection.connect_tcp.complete", {"return_value": Stream(ours)})
        assert ours.fileno() != -1
        transport.close()
        transport._remember("connection.connect_tcp.complete", {"return_value": Stream(ours)})
        assert ours.fileno() == -1
