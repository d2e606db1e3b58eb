"""A simulated machine: a network namespace with an outward interface that leads nowhere.

An address on the loopback interface stands for the world outside. Steps are Python programs.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from sandbox_process import Done, SandboxProcess

from executor.sandbox import Bind
from platforms import syscalls

OUTSIDE, OUTSIDE_6 = "198.51.100.7", "2001:db8::7"
PYTHON = Path("/usr/bin/python3")

CONNECTING = """
import socket, threading
def reach_all(*ways):
    found = []
    threads = [threading.Thread(target=lambda way=way: found.append(reach(*way))) for way in ways]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return set(found)
def reach(address, port, device="", data=b""):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if data else socket.SOCK_STREAM) as line:
        line.settimeout(1)
        try:
            if device:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            line.connect((address, port))
            if data:
                line.send(data)
            return line.recv(100).decode()
        except OSError as error:
            return type(error).__name__
"""


def world(*, resolver: str = OUTSIDE, helper: bool = True) -> None:
    """Set up the simulated machine for the calling process."""
    syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS)
    syscalls.mount("", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    for command in (
        "link set lo up",
        "link add ext0 type veth peer name far0",
        "link set far0 up",
        "link set ext0 up",
        "addr add 192.0.2.2/24 dev ext0",
        "addr add 2001:db8:1::2/64 dev ext0 nodad",
        "route add default via 192.0.2.1",
        "route add default via 2001:db8:1::1",
        f"addr add {OUTSIDE}/32 dev lo",
        f"addr add {OUTSIDE_6}/128 dev lo nodad",
    ):
        subprocess.run(["ip", *command.split()], check=True, capture_output=True)
    Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0")
    syscalls.mount("world", "/mnt", "tmpfs")
    Path("/mnt/resolv.conf").write_text(f"search example\nnameserver {resolver}\n")
    Path("/mnt/resolv.conf").chmod(0o644)
    syscalls.mount("/mnt/resolv.conf", "/etc/resolv.conf", flags=syscalls.MS_BIND)
    if os.path.exists("/dev/net/tun"):  # for all, as systems are set up; not on every machine that runs tests
        os.mknod("/mnt/tun", 0o20666, os.makedev(10, 200))
        os.chmod("/mnt/tun", 0o666)
        syscalls.mount("/mnt/tun", "/dev/net/tun", flags=syscalls.MS_BIND)
    if not helper:
        os.environ["PATH"] = "/nowhere"
        Path("/mnt/none").touch()
        syscalls.mount("/mnt/none", "/usr/bin/pasta", flags=syscalls.MS_BIND)


def run(sandbox: SandboxProcess, code: str, **spec: Any) -> Done:
    """Run a Python program as a step, with the machine's Python."""
    root = sandbox.plant({name: ("->", f"usr/{name}") for name in ("bin", "lib", "lib64")})
    return sandbox.run(
        str(PYTHON), "-c", CONNECTING + code, layers=(root,), mounts=(Bind("/usr", "/usr", True),), **spec
    )
