"""Attack 53 (review): steps reach what listens on the builder's loopback interface, its abstract sockets, its traffic.

The machine is one that the tests make (``network_world``).
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from network_world import OUTSIDE, OUTSIDE_6, PYTHON, run, world
from ordinary_user import User
from sandbox_process import Inside, SandboxProcess, opened

from executor.sandbox import Spec
from platforms import syscalls

MODES = pytest.mark.parametrize("mode", ["root", "mapped", "single"])

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make network namespaces"),
    pytest.mark.skipif(not shutil.which("ip"), reason="no ip (Debian: iproute2)"),
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no {PYTHON} (Debian: python3)"),
]
needs_pasta = pytest.mark.skipif(not shutil.which("pasta"), reason="no pasta (Debian: passt)")

REACHED: set[bytes] = set()
"""In a sandbox process: services that anybody has spoken to."""


def reached(_: Inside) -> set[bytes]:
    """What was reached since the last time."""
    found = set(REACHED)
    REACHED.clear()
    return found


def serve(_: Inside) -> None:
    """Services of the machine, each of which says what it is. They end with the sandbox process."""

    def accept(line: socket.socket, name: bytes) -> None:
        while True:
            with contextlib.suppress(OSError), line.accept()[0] as connection:
                REACHED.add(name)
                connection.sendall(name)

    def answer(line: socket.socket, name: bytes) -> None:
        while True:
            _, peer = line.recvfrom(1000)
            REACHED.add(name)
            line.sendto(name, peer)

    for address, port, name in (
        ("127.0.0.1", 9911, b"loopback"),
        ("::1", 9911, b"loopback 6"),
        (OUTSIDE, 9912, b"outside"),
        (OUTSIDE_6, 9912, b"outside 6"),
    ):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        line = socket.create_server((address, port), family=family)
        threading.Thread(target=accept, args=(line, name), daemon=True).start()
        datagrams = socket.socket(family, socket.SOCK_DGRAM)
        datagrams.bind((address, port))
        threading.Thread(target=answer, args=(datagrams, name), daemon=True).start()
    for address in ("127.0.0.53", OUTSIDE):
        resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        resolver.bind((address, 53))
        threading.Thread(target=answer, args=(resolver, b"names"), daemon=True).start()
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind("\0kanifold-of-the-host")
    abstract.listen()
    threading.Thread(target=accept, args=(abstract, b"abstract"), daemon=True).start()


@pytest.fixture(scope="module")
def sandboxes(request: pytest.FixtureRequest) -> Iterator[Callable[..., SandboxProcess]]:
    """Makes a sandbox process for a mode in a ``world``, once for each."""
    with contextlib.ExitStack() as stack:
        made: dict[Any, SandboxProcess] = {}

        def get(mode: str, **kind: Any) -> SandboxProcess:
            key = mode, *sorted(kind.items())
            if key not in made:
                user: User | None = None
                if mode != "root":
                    user = request.getfixturevalue("_user_with_ids" if mode == "mapped" else "_user_without_ids")
                made[key] = stack.enter_context(opened(user, world=partial(world, **kind)))
                made[key].call(serve)
            return made[key]

        yield get


@needs_pasta
@MODES
def test_an_isolated_step_reaches_the_world(sandboxes: Callable[..., SandboxProcess], mode: str) -> None:
    done = run(
        sandboxes(mode),
        f"""
print(reach("{OUTSIDE}", 9912), reach("{OUTSIDE_6}", 9912), reach("{OUTSIDE}", 9912, data=b"x"), sep=", ")
""",
        network="isolated",
    )
    assert (done.ended.shared, done.err) == ("", "")
    assert done.out == "outside, outside 6, outside\n"


@needs_pasta
@MODES
@pytest.mark.parametrize("uid", [0, 1000])
def test_an_isolated_step_does_not_reach_the_loopback_interface_of_the_host(
    sandboxes: Callable[..., SandboxProcess], mode: str, uid: int
) -> None:
    sandbox = sandboxes(mode)
    sandbox.call(reached)
    done = run(
        sandbox,
        """
addresses = "127.0.0.1", "127.0.0.53", "0.0.0.0", "::1", "::ffff:127.0.0.1", "192.0.2.1", "192.0.2.2"
found = reach_all(*(
    (address, 9911, device, data) for address in addresses for device in ("", "eth0") for data in (b"", b"x")
))
print(found & {"loopback", "loopback 6"}, reach("198.51.100.7", 9912, "eth0"))
""",
        network="isolated",
        uid=uid,
        gid=uid,
    )
    assert (done.ended.shared, done.err, done.out) == ("", "", "set() outside\n")
    assert sandbox.call(reached) == {b"outside"}


@needs_pasta
@MODES
def test_frames_made_by_hand_do_not_reach_it_either(sandboxes: Callable[..., SandboxProcess], mode: str) -> None:
    """With CAP_NET_RAW a step writes what it likes to the interface: here, datagrams for 127.0.0.1 and ::1."""
    done = run(
        sandboxes(mode),
        r"""
import struct
def summed(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xffff) + (total >> 16)
    return ~(total + (total >> 16)) & 0xffff
def datagram(source, target, port, payload):
    udp = struct.pack("!4H", 40000, port, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, source, target)
    return head[:10] + struct.pack("!H", summed(head)) + head[12:] + udp
own = socket.inet_aton("192.0.2.2")
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as line:
    line.bind(("eth0", 0))
    mac = line.getsockname()[4]
    line.settimeout(1)
    for target, port in (("127.0.0.1", 9911), ("198.51.100.7", 9912)):
        packet = datagram(own, socket.inet_aton(target), port, b"x")
        line.send(bytes.fromhex("020000000001") + mac + b"\x08\x00" + packet)
        line.send(bytes.fromhex("020000000001") + mac + b"\x81\x00\x00\x01\x08\x00" + packet)
    seen = b""
    try:
        while True:
            seen += line.recv(2000)
    except TimeoutError:
        pass
print(b"loopback" in seen, b"outside" in seen)
""",
        network="isolated",
    )
    assert (done.ended.shared, done.err, done.out) == ("", "", "False True\n")


@needs_pasta
@MODES
@pytest.mark.parametrize("more", ["", "nameserver 127.0.0.1\n"])
def test_names_are_resolved_by_the_servers_of_the_host(
    sandboxes: Callable[..., SandboxProcess], mode: str, more: str
) -> None:
    done = run(
        sandboxes(mode, resolver=f"{OUTSIDE}\n{more}"),
        """
text = open("/etc/resolv.conf").read()
print(text.split(), reach(text.split()[3], 53, data=b"x" * 20))
""",
        network="isolated",
    )
    assert done.out == f"['search', 'example', 'nameserver', '{OUTSIDE}'] names\n"


@needs_pasta
@MODES
def test_names_are_resolved_by_a_server_on_the_loopback_interface_all_the_same(
    sandboxes: Callable[..., SandboxProcess], mode: str
) -> None:
    sandbox = sandboxes(mode, resolver="127.0.0.53")
    done = run(
        sandbox,
        """
text = open("/etc/resolv.conf").read()
print(text.split(), reach(text.split()[1], 53, data=b"x" * 20))
""",
        network="isolated",
    )
    assert done.out == "['nameserver', '169.254.1.1', 'search', 'example'] names\n"


@MODES
@pytest.mark.parametrize("network", ["isolated", "host"])
def test_abstract_sockets_of_the_host_are_not_reached(
    sandboxes: Callable[..., SandboxProcess], mode: str, network: str
) -> None:
    if network == "host" and syscalls.landlock_version() < 6:
        pytest.skip("needs Landlock's scopes (Linux 6.12)")
    done = run(
        sandboxes(mode),
        r"""
line = socket.socket(socket.AF_UNIX)
try:
    line.connect("\0kanifold-of-the-host")
    print(line.recv(100))
except OSError as error:
    print("no")
own = socket.socket(socket.AF_UNIX)
own.bind("\0of-the-step")
own.listen()
socket.socket(socket.AF_UNIX).connect("\0of-the-step")
print("own")
""",
        network=network,
    )
    assert (done.out, done.err) == ("no\nown\n", "")


SNIFFING = """
try:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    print("sniffs")
except PermissionError:
    print("not")
"""


@MODES
def test_no_step_sniffs_the_network_of_the_host(sandboxes: Callable[..., SandboxProcess], mode: str) -> None:
    assert run(sandboxes(mode), SNIFFING, network="host").out == "not\n"


@MODES
def test_without_the_helper_a_step_has_the_network_of_the_host_and_says_so(
    sandboxes: Callable[..., SandboxProcess], mode: str
) -> None:
    sandbox = sandboxes(mode, helper=False)
    done = run(sandbox, f'print(reach("{OUTSIDE}", 9912))' + SNIFFING, network="isolated")
    assert (done.out, done.err) == ("outside\nnot\n", "")
    assert done.ended.shared == "there is no pasta"


@needs_pasta
@MODES
def test_the_helper_is_out_of_sight(sandboxes: Callable[..., SandboxProcess], mode: str) -> None:
    done = sandboxes(mode).run("echo /proc/[0-9]*", network="isolated")
    assert (done.ended.shared, done.out) == ("", "/proc/1\n")


@needs_pasta
def test_a_job_has_one_helper_and_none_before_a_step_needs_it() -> None:
    def helpers() -> int:
        found = processes_in(network)
        for _, pidfd in found:
            os.close(pidfd)
        return sum(name.startswith("pas") for name, _ in found)

    with opened(None, world=world) as sandbox:
        network = os.readlink(f"/proc/{sandbox.pid}/ns/net")
        sandbox.run("true", network="none")
        sandbox.run("true", network="host")
        assert helpers() == 0
        sandbox.run_all([sandbox.spec("true", network="isolated") for _ in range(5)])
        assert helpers() == 1


@needs_pasta
@pytest.mark.parametrize("moment", [0.0, 0.01, 0.03, 0.06, 0.1, None])
def test_the_helper_dies_with_the_executor(moment: float | None) -> None:
    with opened(None, world=world) as sandbox:
        network = os.readlink(f"/proc/{sandbox.pid}/ns/net")
        step = sandbox.spec("echo up; exec sleep 1000", network="isolated")
        if moment is None:
            sandbox.begin(step, "up")
            assert any(name.startswith("pas") for name, _ in processes_in(network))  # pasta, or passt.avx2
        else:
            sandbox.call(launch, step)
            time.sleep(moment)  # the moment is the test
        left = [pidfd for _, pidfd in processes_in(network)]
        os.kill(sandbox.pid, signal.SIGKILL)
        for pidfd in left:
            ended = select.poll()  # which takes descriptors of any number
            ended.register(pidfd, select.POLLIN)
            assert ended.poll(10_000)
            os.close(pidfd)
        assert processes_in(network) == []


def launch(inside: Inside, step: Spec) -> None:
    inside.launcher.start(replace(step, rootfs=inside.writable(step.rootfs)), os.dup(2), os.dup(2))


def processes_in(network: str) -> list[tuple[str, int]]:
    """Name and pidfd of each process in a network namespace."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(int(pid))
            if os.readlink(f"/proc/{pid}/ns/net") == network:
                found.append((Path(f"/proc/{pid}/comm").read_text().strip(), pidfd))
            else:
                os.close(pidfd)
    return found
