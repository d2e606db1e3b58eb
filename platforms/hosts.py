"""Host names in addresses: ``HOST`` or ``HOST:PORT``."""

from __future__ import annotations


def is_loopback(authority: str) -> bool:
    """Whether ``authority`` (``HOST`` or ``HOST:PORT``) is this machine: localhost, 127.0.0.0/8 or ::1, any port."""
    host = split_port(authority)[0]
    if host == "localhost" or host.endswith(".localhost") or host in {"::1", "[::1]"}:
        return True
    parts = host.split(".")
    return len(parts) == 4 and parts[0] == "127" and all(part.isdecimal() for part in parts)


def split_port(authority: str) -> tuple[str, str]:
    """Split ``authority`` into host and port, "" if there is none. An IPv6 address keeps its brackets."""
    if authority.startswith("["):
        host, bracket, rest = authority.partition("]")
        return host + bracket, rest.removeprefix(":")
    host, _, port = authority.partition(":")
    return host, port
