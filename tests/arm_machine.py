"""An arm64 machine with a kernel of its own: qemu-system-aarch64 with Debian's kernel, Python, and a real sshd.

    def test_it(arm_machine: ArmMachine) -> None:
        subprocess.run(["ssh", arm_machine.name, "uname", "-m"], env=arm_machine.environment)

Unlike a host of ``hosts`` for arm64, whose programs run by qemu-user, it has all system calls: steps can be isolated
there. Nothing of it is written to: what it changes on its disk is lost with it. Independent of kanifold's code.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bases
import hosts
import pytest

_RECIPE = "1"
"""Part of the name of what is cached: increment it when the files of the machine change."""
_MODULES = (
    "crc32c_generic", "virtio_pci", "virtio_blk", "virtio_net", "ext4", "overlay", "tun", "binfmt_misc", "veth",
    "nf_tables",
)  # fmt: skip
"""Modules that are loaded, after those which they depend on. The first is what ext4 asks for without naming it."""
_NEEDED = ("qemu-system-aarch64", "mke2fs", "cpio", "dpkg-deb", "setpriv", "ssh", "ssh-keygen")
_DISK = "6G"
_MEMORY = "2500"
_BOOTING = 300.0
"""Seconds in which the machine must be up, on a busy computer without virtualization."""
_SETTINGS = "-o PermitRootLogin=yes -o PasswordAuthentication=no -o UseDNS=no -o PidFile=none -o MaxStartups=100"

_INIT = f"""\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for each in $(cat /modules/order); do insmod "/modules/$each"; done
mount -t ext4 /dev/vda /new
mount --move /proc /new/proc
mount --move /sys /new/sys
mount --move /dev /new/dev
mkdir -p /new/dev/pts /new/dev/shm
mount -t devpts devpts /new/dev/pts
for each in dev/shm tmp run; do mount -t tmpfs -o mode=1777 none "/new/$each"; done
mkdir -p /new/run/sshd /new/root/.ssh
chmod 755 /new/run /new/run/sshd
mount -t cgroup2 none /new/sys/fs/cgroup
cp /keys/host_key /new/run/host_key
cp /keys/authorized_keys /new/root/.ssh/
chmod 700 /new/root /new/root/.ssh
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
exec switch_root /new /usr/sbin/sshd -D -e -f /dev/null -h /run/host_key {_SETTINGS}
"""


@dataclass
class ArmMachine:
    """A running machine, of which the client is root."""

    name: str
    folder: Path
    runtime: Path
    """The client's XDG_RUNTIME_DIR: a short path, as sockets need."""
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"ssh://{self.name}"

    @property
    def console(self) -> str:
        """What the kernel and sshd have written."""
        return (self.folder / "console").read_text(errors="replace")

    @property
    def environment(self) -> dict[str, str]:
        """This environment, with an ``ssh`` on PATH that knows the machine."""
        path = f"{self.folder}/bin{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "XDG_RUNTIME_DIR": str(self.runtime), "PATH": path}

    def run(self, *command: str) -> str:
        """Run ``command`` there by SSH; return its output."""
        line = ["ssh", self.name, *command]
        return subprocess.run(
            line, env=self.environment, capture_output=True, text=True, check=True, timeout=120
        ).stdout

    def power_off(self) -> None:
        """End the machine at once."""
        self.process.kill()
        self.process.wait()

    def wait_until_up(self) -> None:
        end = time.monotonic() + _BOOTING
        while "Server listening on 0.0.0.0" not in (said := self.console):
            assert self.process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.1)  # a file announces nothing

    def close(self) -> None:
        for path in self.runtime.rglob("*"):
            if path.is_socket():  # a connection that a client keeps open
                subprocess.run(["ssh", "-S", str(path), "-O", "exit", "any"], capture_output=True, check=False)
        self.power_off()


@contextlib.contextmanager
def running(folder: Path) -> Iterator[ArmMachine]:
    """A machine that is up, with its own files in ``folder``; ends with the process that runs it, at the latest."""
    if os.uname().machine == "aarch64":
        pytest.skip("this machine is arm64 itself")
    if os.geteuid() != 0:
        pytest.skip("needs root, to copy the files of a root file system")
    for program in _NEEDED:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (ci/test --all installs it on Debian, as root)")
    try:
        kept = _files()
    except bases.UnavailableError as problem:
        pytest.skip(f"no files for an arm64 machine: {problem}")
    with tempfile.TemporaryDirectory(prefix="run-", dir="/tmp") as runtime:
        machine = _started(kept, folder, Path(runtime))
        try:
            machine.wait_until_up()
            yield machine
        finally:
            machine.close()


def _started(kept: Path, folder: Path, runtime: Path) -> ArmMachine:
    keys = folder / "initrd" / "keys"
    keys.mkdir(parents=True, mode=0o700)
    public = hosts.make_key(keys / "host_key")
    (keys / "authorized_keys").write_text(hosts.make_key(folder / "key"))
    with (folder / "initrd.gz").open("wb") as out:  # the kernel takes archives one after another
        out.write((kept / "initrd.gz").read_bytes())
        out.write(_archive(keys.parent))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
    (folder / "ssh_config").write_text(
        f"Host arm\n  HostName 127.0.0.1\n  Port {port}\n  User root\n"
        f"UserKnownHostsFile {folder}/known_hosts\nGlobalKnownHostsFile /dev/null\nIdentityFile {folder}/key\n"
        "IdentitiesOnly yes\nStrictHostKeyChecking yes\nIdentityAgent none\n"
    )
    client = folder / "bin" / "ssh"
    client.parent.mkdir()
    client.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    client.chmod(0o755)
    command = [
        "setpriv", "--pdeathsig=KILL", "qemu-system-aarch64", "-M", "virt", "-cpu", "max,pauth-impdef=on",
        "-smp", "2", "-m", _MEMORY, "-nographic", "-no-reboot",
        "-kernel", str(kept / "kernel"), "-initrd", str(folder / "initrd.gz"),
        "-append", "console=ttyAMA0 panic=-1 quiet",
        "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "virtio-net-pci,netdev=net,romfile=",
        "-device", "virtio-rng-pci",
        # A snapshot is a file without a name: nothing is left of what the machine writes.
        "-drive", f"file={kept / 'disk'},format=raw,if=virtio,snapshot=on,cache=unsafe",
    ]  # fmt: skip
    with (folder / "console").open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    return ArmMachine("arm", folder, runtime, port, process)


# -- its files ------------------------------------------------------------------------------------------------------


def _files() -> Path:
    """Return the directory with the machine's ``kernel``, ``initrd.gz`` and ``disk``; made once."""
    root = bases.machine_root("linux/arm64")
    home = bases.cache_directory() / f"arm-machine-{bases.machine_source().suite}-{_RECIPE}"
    with bases.locked(home.with_name(f"{home.name}.lock")):
        if not home.exists():
            with tempfile.TemporaryDirectory(prefix=f"{home.name}.", dir=home.parent) as work:
                made = Path(work, "made")
                made.mkdir()
                _make(root, Path(work), made)
                os.rename(made, home)
    return home


def _make(root: Path, work: Path, made: Path) -> None:
    kernel = _unpacked(_kernel_package(work), work / "package")
    (image,) = kernel.glob("boot/vmlinuz-*")
    shutil.copy(image, made / "kernel")
    initrd = work / "initrd"
    for each in ("bin", "dev", "keys", "modules", "new", "proc", "sys"):
        (initrd / each).mkdir(parents=True)
    busybox = _unpacked(bases.download("busybox-static", "arm64", work / "busybox"), work / "busybox-files")
    shutil.copy(next(each for each in busybox.rglob("bin/busybox") if not each.is_symlink()), initrd / "bin")
    (initrd / "init").write_text(_INIT)
    (initrd / "init").chmod(0o755)
    (initrd / "modules" / "order").write_text("\n".join(_copy_modules(kernel, initrd / "modules")))
    (made / "initrd.gz").write_bytes(_archive(initrd))
    _run("mke2fs", "-q", "-t", "ext4", "-d", str(root), str(made / "disk"), _DISK)


def _kernel_package(work: Path) -> Path:
    """Download the kernel that the package without a version depends on."""
    newest = bases.download("linux-image-arm64", "arm64", work / "newest")
    named = _run("dpkg-deb", "--field", str(newest), "Depends").decode()
    found = re.search(r"linux-image-[^ ,]+", named)
    assert found, named
    return bases.download(found[0], "arm64", work / "kernel")


def _unpacked(package: Path, into: Path) -> Path:
    _run("dpkg-deb", "--extract", str(package), str(into))
    return into


def _copy_modules(kernel: Path, into: Path) -> list[str]:
    """Copy the modules to ``into``; return their file names in the order in which they can be loaded."""
    found = {re.sub(r"\.ko(\.xz)?$", "", each.name).replace("-", "_"): each for each in kernel.rglob("*.ko*")}
    order: list[str] = []

    def add(name: str) -> None:
        path = found[name]
        if f"{name}.ko" in order:
            return
        raw = path.read_bytes()
        raw = lzma.decompress(raw) if path.suffix == ".xz" else raw
        depends = re.search(rb"\0depends=([^\0]*)\0", raw)
        for each in depends[1].decode().split(",") if depends and depends[1] else ():
            add(each.replace("-", "_"))
        (into / f"{name}.ko").write_bytes(raw)
        order.append(f"{name}.ko")

    for name in _MODULES:
        if name in found:  # others are in the kernel itself
            add(name)
    return order


def _archive(folder: Path) -> bytes:
    """Return ``folder`` as the kernel takes it: a compressed cpio archive."""
    listed = "\n".join(sorted(str(each.relative_to(folder)) for each in folder.rglob("*")))
    packed = ["sh", "-c", "cpio --quiet -o -H newc -R 0:0 | gzip -1"]
    return subprocess.run(packed, input=listed.encode(), cwd=folder, stdout=subprocess.PIPE, check=True).stdout


def _run(*command: str) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise bases.UnavailableError(f"{command[0]}: {done.stderr.decode(errors='replace')}")
    return done.stdout


@pytest.fixture
def arm_machine(tmp_path: Path) -> Iterator[ArmMachine]:
    """An arm64 machine for one test."""
    with running(tmp_path / "arm") as machine:
        yield machine
