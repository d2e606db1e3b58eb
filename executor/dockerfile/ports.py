"""Parsing the words of EXPOSE: ``port[-port][/protocol]``, with an optional ``[ip:][host:]`` that has no effect.

Source: Dockerfile reference, "EXPOSE". Errors are ``ValueError``; the caller adds the location.
"""

from __future__ import annotations

from typing import Final

import msgspec

_HIGHEST: Final = 65535
_PROTOCOLS: Final = ("tcp", "udp", "sctp")


class Ports(msgspec.Struct, frozen=True):
    """One word of EXPOSE."""

    first: int
    last: int
    protocol: str
    """As written, ``tcp`` by default."""
    mapped: bool
    """Whether an address or a port of the host was given."""


def parse(word: str) -> Ports:
    """Parse one word."""
    parts = word.split(":")
    address, host, container = ":".join(parts[:-2]), parts[-2] if len(parts) > 1 else "", parts[-1]
    numbers, _, protocol = container.partition("/")
    if not numbers:
        raise ValueError(f'invalid port: "{word}": no port specified')
    if protocol.lower() not in ("", *_PROTOCOLS):
        raise ValueError(f'invalid port: "{word}": invalid proto: {protocol}')
    _check_address(address)
    first, last = _range(numbers, "containerPort")
    if host:
        host_first, host_last = _range(host, "hostPort")
        if last != first and host_last - host_first != last - first:
            raise ValueError(f"invalid ranges specified for container and host Ports: {numbers} and {host}")
    return Ports(first, last, protocol or "tcp", bool(address or host))


def exposed(words: tuple[str, ...]) -> tuple[str, ...]:
    """Return ``number/protocol`` for every port in ``words``, ranges expanded, in their order."""
    return tuple(
        f"{number}/{ports.protocol.lower()}"
        for ports in map(parse, words)
        for number in range(ports.first, ports.last + 1)
    )


def _check_address(address: str) -> None:
    if not address:
        return
    import ipaddress

    bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        raise ValueError(f"invalid IP address: {address}") from None


def _range(text: str, what: str) -> tuple[int, int]:
    start, dash, end = text.partition("-")
    first = _port(start)
    last = _port(end) if dash else first
    if first is None or last is None or last < first:
        raise ValueError(f"invalid {what}: {text}")
    return first, last


def _port(text: str) -> int | None:
    digits = text.removeprefix("+")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 64:
        return None
    number = int(digits)
    return number if number <= _HIGHEST else None
