"""Delays and loses packets to one interface, where the kernel has no netem: reads them from a TUN device.

    slow_link.py TUN INTERFACE ADDRESS MILLISECONDS PERCENT

``ADDRESS`` is the link address of the interface's other end. ``ready`` on stdout says that the TUN device is there.
"""

from __future__ import annotations

import collections
import fcntl
import os
import random
import select
import socket
import struct
import sys
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
ETH_P_IP = 0x0800


def main(tun: str, interface: str, address: str, milliseconds: str, percent: str) -> None:
    source = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(source, TUNSETIFF, struct.pack("16sH22x", tun.encode(), IFF_TUN | IFF_NO_PI))
    link = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
    target = (interface, ETH_P_IP, 0, 0, bytes.fromhex(address.replace(":", "")))
    print("ready", flush=True)
    delay, loss, chance = float(milliseconds) / 1000, float(percent) / 100, random.Random(1)
    waiting: collections.deque[tuple[float, bytes]] = collections.deque()
    while True:
        rest = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        if select.select([source], [], [], rest)[0]:
            while packet := _read(source):
                if chance.random() >= loss:
                    waiting.append((time.monotonic() + delay, packet))
        while waiting and waiting[0][0] <= time.monotonic():
            link.sendto(waiting.popleft()[1], target)


def _read(source: int) -> bytes:
    try:
        return os.read(source, 1 << 16)
    except BlockingIOError:
        return b""


if __name__ == "__main__":
    main(*sys.argv[1:])
