"""Addresses of nodes that are reached over SSH: ``ssh://[USER@]HOST[:PORT]``.

User and host become arguments of the ssh client, and its configuration may pass them on to a shell (``%h`` and ``%r``
in ProxyCommand or Match exec, ssh_config(5)). So they have letters, digits and a few signs that mean nothing to either,
and do not begin with ``-``.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

import msgspec

from platforms.errors import UsageError, printable
from platforms.hosts import split_port

SCHEME: Final = "ssh://"
_USER: Final = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@+-]{0,255}")
_HOST: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_ZONE: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")


class SSHAddress(msgspec.Struct, frozen=True):
    """Whom to reach. What is not given is left to the client's configuration, in which the host may be an alias."""

    user: str
    """"" if none was given."""
    host: str
    """A name, an alias, or an IP address, without brackets."""
    port: int
    """0 if none was given."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return SCHEME + (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")


def parse(url: str) -> SSHAddress:
    """Return the address in ``url``. Raises ``UsageError``."""
    if not url.startswith(SCHEME):
        raise _refusal(url, "it does not begin with ssh://")
    authority = url.removeprefix(SCHEME).removesuffix("/")
    if "/" in authority or "?" in authority or "#" in authority:
        raise _refusal(url, "something follows the host")
    user, at, rest = authority.rpartition("@")
    if ":" in user:
        raise UsageError(
            "a node's address has a password",
            why="the ssh client takes none from the command line",
            remedy="use a key, an agent, or a connection that is shared (ControlMaster in ~/.ssh/config)",
        )
    if at and not _USER.fullmatch(user):
        raise _refusal(url, f"{printable(user, 80)!r} is no name of a user")
    return SSHAddress(user, *_host_and_port(url, rest))


def _host_and_port(url: str, text: str) -> tuple[str, int]:
    host, port = split_port(text)
    if host.startswith("["):
        host = _ipv6(url, host)
    elif not host and ":" not in text:
        raise _refusal(url, "there is no host")
    if not text.endswith("]") and ":" in text and not (_PORT.fullmatch(port) and 0 < int(port) < 1 << 16):
        raise _refusal(url, f"{printable(port, 80)!r} is no port")
    if ":" not in host and not _HOST.fullmatch(host):
        raise _refusal(url, f"{printable(host, 80)!r} is no name of a host")
    return host, int(port or 0)


def _ipv6(url: str, bracketed: str) -> str:
    """Return the address in ``[…]``, whose zone is a network interface."""
    address, percent, zone = bracketed.removeprefix("[").removesuffix("]").partition("%")
    try:
        ipaddress.IPv6Address(address if bracketed.endswith("]") else "")
    except ValueError as error:
        raise _refusal(url, f"{printable(bracketed, 80)!r} is no IPv6 address") from error
    if percent and not _ZONE.fullmatch(zone):
        raise _refusal(url, f"{printable(zone, 80)!r} is no network interface")
    return address + percent + zone


def _refusal(url: str, why: str) -> UsageError:
    return UsageError(
        f"invalid address of a node {printable(url, 80)!r}",
        why=why,
        remedy="write ssh://USER@HOST:PORT; USER, PORT and the rest may come from ~/.ssh/config",
    )
