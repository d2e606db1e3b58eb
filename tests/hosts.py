"""Machines with a real sshd: network namespaces behind a router, each with its own processes, accounts, keys and homes.

    def test_it(hosts: Hosts) -> None:
        arm = hosts.add("arm", root="linux/arm64")
        subprocess.run(["ssh", "arm", "uname", "-m"], env=hosts.environment)

This machine is connected to the router by one interface, so that a host is reached by its address, and a server here by
``hosts.address``. A host has the files of this machine, or those of a minimal Debian with nothing but Python; one for
another architecture runs all of its programs by a handler that is registered for it alone. All ends with the test, and
with the process that runs it. Independent of kanifold's code.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import bases
import emulators
import pytest

ROOT, USER = "root", "builder"
"""The accounts of a host. The second is an ordinary user with ranges of subordinate ids."""
_IDS = {ROOT: 0, USER: 1000}
_RANGE = "builder:10000:50000\n"
_WAIT = 60.0
"""Seconds in which a host must be up, and a process gone."""
_SSHD = re.compile(r"sshd:|/usr/sbin/sshd|\S*qemu-\S+ /usr/sbin/sshd")
_NEEDED = ("ip", "nsenter", "unshare", "setpriv", "ssh", "sshd", "ssh-keygen", "pivot_root", "hostname")


@dataclass
class Host:
    """A running host. ``user`` is whom the client's configuration logs in as."""

    name: str
    address: str
    user: str
    folder: Path
    router: _Router
    init: _Namespaces
    port: str
    """The router's interface to it."""
    link: str
    """The link address of the host's interface."""
    _sshd: subprocess.Popen[bytes] | None = None
    _slow: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"ssh://{self.name}"

    def path(self, name: str) -> Path:
        """Return the file that is ``name`` there."""
        return Path(f"/proc/{self.init.pid}/root/{name.lstrip('/')}")

    @property
    def home(self) -> Path:
        """The home of ``user``."""
        return self.path(f"/home/{self.user}")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run ``command`` there as root, without SSH."""
        entered = self.init.entering("-a", "-r", "-w")
        return subprocess.run([*entered, *command], capture_output=True, text=True, check=True, timeout=_WAIT)

    def processes(self) -> dict[int, str]:
        """Return the command lines of all processes there by their ids there, but for its process 1 and those of sshd.

        What a session of sshd has started counts; a session that a client keeps open for the next command does not.
        """
        return {pid: line for pid, line in self._all_processes().items() if not _SSHD.match(line)}

    def _all_processes(self) -> dict[int, str]:
        found = {}
        for each in self.path("/proc").iterdir():
            if each.name.isdigit() and each.name != "1":
                with contextlib.suppress(OSError):  # it has just ended
                    line = (each / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    if line:
                        found[int(each.name)] = line
        return found

    def wait_until_idle(self, seconds: float) -> dict[int, str]:
        """Wait up to ``seconds`` for the end of all ``processes``; return those that are left."""
        end = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.02)  # /proc announces nothing
        return left

    def cut(self) -> None:
        """Interrupt the network: packets vanish, connections are not closed."""
        self.router.ip(f"route replace blackhole {self.address}", f"link set {self.port} down")

    def restore(self) -> None:
        """Undo ``cut``; a delay has to be set again."""
        self.router.ip(
            f"link set {self.port} up",
            f"route del blackhole {self.address}",
            f"route replace {self.address} dev {self.port}",
        )

    def slow_down(self, milliseconds: float, loss: float = 0) -> None:
        """Delay packets to the host by ``milliseconds``, which is added to each round trip; lose ``loss`` percent."""
        shape = f"qdisc replace dev {self.port} root netem limit 100000 delay {milliseconds}ms loss {loss}%"
        done = subprocess.run([*self.router.entering("-n"), "tc", *shape.split()], capture_output=True, check=False)
        if done.returncode:
            self._slow_down_here(milliseconds, loss)

    def _slow_down_here(self, milliseconds: float, loss: float) -> None:
        if not os.path.exists("/dev/net/tun"):
            pytest.skip("the kernel has neither netem nor TUN devices")
        self.full_speed()
        device = f"slow{self.port}"
        program = [sys.executable, str(Path(__file__).with_name("slow_link.py")), device, self.port, self.link]
        command = [*self.router.entering("-n"), *program, str(milliseconds), str(loss)]
        self._slow = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        _expect(self._slow.stdout, "ready")
        self.router.ip(f"link set {device} up", f"route replace {self.address} dev {device}")

    def full_speed(self) -> None:
        """Undo ``slow_down``."""
        if self._slow is not None:
            self.router.ip(f"route replace {self.address} dev {self.port}")
            _end(self._slow)
            self._slow = None
        else:
            command = [*self.router.entering("-n"), "tc", "qdisc", "del", "dev", self.port, "root"]
            subprocess.run(command, capture_output=True, check=False)

    def start_sshd(self) -> None:
        """Start sshd, and wait until it listens."""
        command = [*self.init.entering("-a", "-r", "-w"), "/usr/sbin/sshd", "-D", "-e", "-f", "/run/sshd_config"]
        log = self.folder / "sshd.log"
        with log.open("ab") as out:
            self._sshd = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        end = time.monotonic() + _WAIT
        while b"listening" not in log.read_bytes():
            assert self._sshd.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.01)

    def kill_sshd(self) -> None:
        """Kill sshd and its sessions, but not what they have started. No login until ``start_sshd``."""
        assert self._sshd is not None
        theirs = [str(pid) for pid, line in self._all_processes().items() if line.startswith("sshd:")]
        self.run("sh", "-c", 'for each; do kill -9 "$each" || :; done', "sh", *theirs)
        self._sshd.kill()
        self._sshd.wait()
        (self.folder / "sshd.log").unlink()

    def halt(self) -> None:
        """End the host at once, as if its power was cut: nobody closes a connection."""
        self.cut()
        self.init.end()

    def close(self) -> None:
        self.init.end()
        if self._sshd is not None:
            _end(self._sshd)
        if self._slow is not None:
            _end(self._slow)


@dataclass
class Hosts:
    """The hosts of a test, and the configuration of the client for them."""

    folder: Path
    router: _Router
    number: int
    runtime: Path
    """The client's XDG_RUNTIME_DIR: a short path, as sockets need."""
    hosts: list[Host] = field(default_factory=list)

    @property
    def address(self) -> str:
        """This machine's address, as hosts see it."""
        return f"198.18.{self.number}.1"

    @property
    def config(self) -> Path:
        """The client's configuration; a test may add to it."""
        return self.folder / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def key(self) -> Path:
        """The client's private key, which every account of every host accepts."""
        return self.folder / "key"

    @property
    def environment(self) -> dict[str, str]:
        """This environment, with an ``ssh`` on PATH that has the configuration of the hosts."""
        runtime = {"XDG_RUNTIME_DIR": str(self.runtime)}
        return {**os.environ, **runtime, "PATH": f"{self.folder}/bin{os.pathsep}{os.environ['PATH']}"}

    def add(self, name: str, *, user: str = ROOT, root: str = "", disk: str = "") -> Host:
        """Start a host and return it.

        ``root`` is the platform of a minimal Debian that is its root, "" for the files of this machine; ``disk`` the
        size (``64m``) of the file system with its homes, which is a tmpfs then.
        """
        number = len(self.hosts) + 10
        folder = self.folder / name
        address, link = f"198.18.{self.number}.{number}", f"02:00:c6:12:{self.number:02x}:{number:02x}"
        host_key = self._prepare(folder, address)
        spaces = ["--net", "--pid", "--uts", "--ipc", "--mount"]
        files = ""
        if root:
            try:
                files = str(bases.machine_root(root))
            except bases.UnavailableError as problem:
                pytest.skip(f"no root for a host: {problem}")
            architecture = bases.PLATFORMS[root].debian
            if architecture in emulators.QEMU and not os.uname().machine.startswith(emulators.QEMU[architecture]):
                found = emulators.emulator(architecture)
                if found is None:
                    pytest.skip("no emulator (ci/packages installs qemu-user-static on Debian, as root)")
                (folder / "handler").write_text(emulators.registration(architecture, found))
                spaces.append("--user")
        init = _Namespaces.start(folder, files, disk, name, spaces)
        port = f"port{number}"
        host = Host(name, address, user, folder, self.router, init, port, link)
        self.hosts.append(host)
        _ip(f"link add {port} netns {self.router.pid} type veth peer name eth0 netns {init.pid}")
        self.router.ip(
            f"addr add 198.18.{self.number}.2/32 dev {port}",
            f"link set {port} up",
            f"route add {address} dev {port}",
        )
        init.ip(
            "link set lo up",
            f"link set eth0 address {link}",
            f"addr add {address}/32 dev eth0",
            "link set eth0 up",
            f"route add default via 198.18.{self.number}.2 dev eth0 onlink",
        )
        init.go()
        host.start_sshd()
        with self.config.open("a") as config:
            config.write(f"Host {name}\n  HostName {address}\n  User {user}\n")
        with self.known_hosts.open("a") as known:
            known.write(f"{address} {host_key}")
        return host

    def _prepare(self, folder: Path, address: str) -> str:
        """Write what is a host's own; return its public key."""
        etc, run, home = folder / "etc", folder / "run", folder / "home"
        for each in (etc, run, run / "sshd", home):
            each.mkdir(parents=True, mode=0o755)
        for name, uid in _IDS.items():
            (home / name).mkdir(mode=0o700)
            os.chown(home / name, uid, uid)
        accounts = "".join(f"{name}:x:{uid}:{uid}::/home/{name}:/bin/bash\n" for name, uid in _IDS.items())
        (etc / "passwd").write_text(
            f"{accounts}sshd:x:101:65534::/run/sshd:/usr/sbin/nologin\nnobody:x:65534:65534::/:\n"
        )
        (etc / "group").write_text("".join(f"{name}:x:{uid}:\n" for name, uid in _IDS.items()) + "nogroup:x:65534:\n")
        (etc / "shadow").write_text("".join(f"{name}:*:19000::::::\n" for name in (*_IDS, "sshd")))
        (etc / "subuid").write_text(_RANGE)
        (etc / "subgid").write_text(_RANGE)
        shutil.copy(self.key.with_suffix(".pub"), run / "authorized")
        (run / "sshd_config").write_text(
            f"ListenAddress {address}\nHostKey /run/host_key\nAuthorizedKeysFile /run/authorized\nPidFile none\n"
            "UsePAM no\nStrictModes no\nPasswordAuthentication no\nUseDNS no\nMaxStartups 100\nPrintMotd no\n"
        )
        return make_key(run / "host_key")

    def close(self) -> None:
        for path in self.runtime.rglob("*"):
            if path.is_socket():  # a connection that a client keeps open
                subprocess.run(["ssh", "-S", str(path), "-O", "exit", "any"], capture_output=True, check=False)
        for each in self.hosts:
            each.close()
        self.router.end()
        # The kernel takes its time with a network namespace, and the next test may want the number.
        command = ["ip", "link", "del", f"hosts{self.number}"]
        subprocess.run(command, capture_output=True, check=False)


@dataclass
class _Namespaces:
    """Namespaces, and the process that keeps them: process 1 of its process namespace."""

    process: subprocess.Popen[str]
    pid: int

    @classmethod
    def start(cls, folder: Path, root: str, disk: str, name: str, spaces: Sequence[str]) -> _Namespaces:
        program = [sys.executable, "-I", str(Path(__file__).with_name("host_init.py")), "outer"]
        command = [
            "setpriv",
            "--pdeathsig=KILL",
            "unshare",
            "--mount",
            *program,
            str(folder),
            root,
            disk,
            name,
            *spaces,
        ]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        pid = _child(process)
        if "--user" in spaces:
            emulators.map_ids(pid)
        return cls(process, pid)

    def go(self) -> None:
        """Let it go on, and wait until it is up."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        _expect(self.process.stdout, "ready")

    def entering(self, *spaces: str) -> list[str]:
        """Return the beginning of a command that runs in ``spaces`` (nsenter(1)) of this."""
        return ["setpriv", "--pdeathsig=KILL", "nsenter", "-t", str(self.pid), *spaces]

    def ip(self, *commands: str) -> None:
        _ip(*commands, within=self.entering("-n"))

    def end(self) -> None:
        _end(self.process)


class _Router(_Namespaces):
    """The network namespace that all hosts are connected to."""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Hosts]:
    """Hosts, of which there are none yet, with their files in ``folder``."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    for program in _NEEDED:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (ci/packages installs it on Debian, as root)")
    with _network_number() as number, tempfile.TemporaryDirectory(prefix="run-", dir="/tmp") as runtime:
        # The first network namespace that is made for it is the router's.
        command = ["setpriv", "--pdeathsig=KILL", "unshare", "--net", "--", "cat"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        _until(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != os.readlink("/proc/self/ns/net"))
        hosts = Hosts(folder, _Router(process, process.pid), number, Path(runtime))
        try:
            _connect(hosts)
            yield hosts
        finally:
            hosts.close()


def _connect(hosts: Hosts) -> None:
    number, router = hosts.number, hosts.router
    device = f"hosts{number}"
    _ip(f"link add {device} type veth peer name client netns {router.pid}")
    _ip(f"addr add {hosts.address}/32 dev {device}", f"link set {device} up")
    router.ip(
        "link set lo up",
        f"addr add 198.18.{number}.2/32 dev client",
        "link set client up",
        f"route add {hosts.address} dev client",
    )
    _ip(
        f"route add 198.18.{number}.2 dev {device}",
        f"route add 198.18.{number}.0/24 via 198.18.{number}.2 dev {device}",
    )
    forward = [*router.entering("-n"), "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"]
    subprocess.run(forward, check=True)
    (hosts.folder / "bin").mkdir(parents=True)
    make_key(hosts.key)
    hosts.known_hosts.touch()
    hosts.config.write_text(
        f"UserKnownHostsFile {hosts.known_hosts}\nGlobalKnownHostsFile /dev/null\nIdentityFile {hosts.key}\n"
        "IdentitiesOnly yes\nStrictHostKeyChecking yes\nIdentityAgent none\n"
    )
    client = hosts.folder / "bin" / "ssh"
    client.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {hosts.config} "$@"\n')
    client.chmod(0o755)


@contextlib.contextmanager
def _network_number() -> Iterator[int]:
    """A number that no other test on this machine has at the moment: of the network 198.18.NUMBER.0/24."""
    for number in range(1, 255):
        with open(f"{tempfile.gettempdir()}/kanifold-hosts-{number}.lock", "w", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield number
            return
    pytest.skip("all networks for hosts are taken")


def make_key(path: Path) -> str:
    """Make a key pair and return the public key."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path.with_suffix(".pub").read_text()


def _ip(*commands: str, within: Sequence[str] = ()) -> None:
    done = subprocess.run(
        [*within, "ip", "-batch", "-"], input="\n".join(commands), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{commands}: {done.stderr}"


def _child(process: subprocess.Popen[str]) -> int:
    """Return the first child of ``process`` when it has one, in namespaces of its own."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    ours = os.readlink("/proc/self/ns/pid")

    def born() -> bool:
        assert process.poll() is None, "a host does not start"
        found = listed.read_text().split()
        return bool(found) and os.readlink(f"/proc/{found[0]}/ns/pid") != ours

    _until(born)
    return int(listed.read_text().split()[0])


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + _WAIT
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def _expect(stream: IO[str] | None, line: str) -> None:
    assert stream is not None
    assert stream.readline().strip() == line


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for each in (process.stdin, process.stdout):
        if each is not None:
            each.close()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Hosts for one test; none yet."""
    with running(tmp_path / "hosts") as found:
        yield found
