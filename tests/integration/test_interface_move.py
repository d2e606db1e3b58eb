"""An interface arrives in another network namespace as it was: switched on, with its addresses and routes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from executor.sandbox import interface
from platforms import syscalls

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make network namespaces"),
    pytest.mark.skipif(not shutil.which("ip"), reason="no ip (Debian: iproute2)"),
]

PLAIN = """
addr add 192.0.2.2/24 dev eth0
addr add 2001:db8:1::2/64 dev eth0 nodad
route add default via 192.0.2.1
route add 198.51.100.0/24 via 192.0.2.9
route add default via 2001:db8:1::1
"""
NEIGHBOURS_BY_HAND = """
addr add 192.0.2.2/24 dev eth0 noprefixroute
route add 192.0.2.0/24 dev eth0 proto kernel scope link src 192.0.2.2 metric 100
route add default via 192.0.2.1 dev eth0 proto dhcp metric 100
"""
NO_NEIGHBOURS = """
addr add 10.1.0.7/32 dev eth0
route add 10.1.0.1 dev eth0 scope link
route add default via 10.1.0.1
"""
TWO_GATEWAYS = """
addr add 192.0.2.2/24 dev eth0
route add 198.51.100.0/24 nexthop via 192.0.2.3 dev eth0 nexthop via 192.0.2.4 dev eth0
"""
AS_NETWORK_NAMESPACE = "/proc/self/ns/net"


def ip(line: str) -> str:
    return subprocess.run(["ip", *line.split()], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    "set_up, routes",
    [
        (PLAIN, {"default via 192.0.2.1 dev eth0", "198.51.100.0/24 via 192.0.2.9 dev eth0", "192.0.2.0/24 dev eth0"}),
        (NEIGHBOURS_BY_HAND, {"default via 192.0.2.1 dev eth0", "192.0.2.0/24 dev eth0"}),
        (NO_NEIGHBOURS, {"default via 10.1.0.1 dev eth0", "10.1.0.1 dev eth0"}),
        (
            TWO_GATEWAYS,
            {
                "192.0.2.0/24 dev eth0",
                "198.51.100.0/24",
                "nexthop via 192.0.2.3 dev eth0 weight 1",
                "nexthop via 192.0.2.4 dev eth0 weight 1",
            },
        ),
    ],
)
def test_it_arrives_as_it_was(tmp_path: Path, set_up: str, routes: set[str]) -> None:
    told = tmp_path / "told"
    if (child := os.fork()) == 0:
        try:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            target = os.open(AS_NETWORK_NAMESPACE, os.O_RDONLY)
            syscalls.unshare(syscalls.CLONE_NEWNET)
            source = os.open(AS_NETWORK_NAMESPACE, os.O_RDONLY)
            for line in ("link add eth0 type veth peer name far0", "link set far0 up", "link set eth0 up"):
                ip(line)
            for line in set_up.strip().splitlines():
                ip(line)
            before = addresses()
            interface.move("eth0", source, target)
            told.write_text(
                "\n".join(["as before" if addresses() == before else f"{before} became {addresses()}", ip("route")])
            )
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    first, *lines = told.read_text().splitlines()
    assert first == "as before"
    assert {" ".join(line.split(" proto ")[0].split(" scope ")[0].split()) for line in lines if line} == routes


def addresses() -> list[str]:
    """Of eth0, those of IPv6's that it gives itself among them."""
    found = [line.split() for line in ip("-o addr show dev eth0").splitlines()]
    return sorted(words[3] for words in found)
