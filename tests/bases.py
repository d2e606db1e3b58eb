"""Base images made of Debian's packages, for the tests and for the demo; nothing is pulled from a registry.

``busybox``: one static binary with its applets, for seven platforms. ``debian``: mmdebstrap's ``apt`` variant, in which
``RUN apt-get install`` works, for amd64, arm64 and arm/v7; of the machine's own release, or as ``debian:SUITE`` of
another.

Making a Debian for a foreign platform takes a minute under emulation, so finished layers are cached in
``$KANIFOLD_TEST_CACHE`` (or ``~/.cache/kanifold-tests``), with a lock for each layer.

As a program (see ``ci/bases``), ``bases.py busybox DIR [PLATFORM,...]`` writes an OCI layout, and ``bases.py machine
PLATFORM`` makes the root of a test's host. Standard library only: the demo runs it before there is a virtual
environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import platform as machine_platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import emulators
from oci_layout import Image, Layer, pack, write_layout


@dataclass(frozen=True)
class Platform:
    """A platform with its OCI and Debian names."""

    oci: dict[str, str]
    debian: str


def _platform(text: str, debian: str) -> tuple[str, Platform]:
    parts = text.split("/")
    keys = ("os", "architecture", "variant")
    return text, Platform(dict(zip(keys, parts, strict=False)), debian)


PLATFORMS = dict(
    (
        _platform("linux/amd64", "amd64"),
        _platform("linux/arm64", "arm64"),
        _platform("linux/arm/v7", "armhf"),
        _platform("linux/386", "i386"),
        _platform("linux/riscv64", "riscv64"),
        _platform("linux/ppc64le", "ppc64el"),
        _platform("linux/s390x", "s390x"),
    )
)
DEBIAN_PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7")

MAKING_TIMEOUT = 900.0
"""Timeout in seconds for making a Debian."""

RECIPE = "1"
"""Part of the name of every cached layer: increment it when a recipe changes."""

MTIME = 1_700_000_000
"""Every file's modification time, in seconds since 1970."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class UnavailableError(Exception):
    """The base cannot be made on this machine; the message says what is missing."""


# -- the cache ------------------------------------------------------------------------------------------------------


def cache_directory() -> Path:
    """Return the directory of cached layers."""
    named = os.environ.get("KANIFOLD_TEST_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "kanifold-tests"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _kept(name: str, make: Callable[[Path], Layer]) -> Layer:
    """Return the layer ``name`` from the cache; if missing, it is made by ``make`` in a given directory."""
    home = cache_directory() / name
    with locked(home.with_name(home.name + ".lock")):
        facts = home / "layer.json"
        if not facts.exists():
            home.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=home.parent) as work:
                layer = make(Path(work))
                shutil.rmtree(home, ignore_errors=True)
                home.mkdir()
                os.replace(layer.path, home / "layer.tar.gz")
                facts.write_text(json.dumps([layer.digest, layer.diff_id, layer.size]))
        digest, diff_id, size = json.loads(facts.read_text())
    return Layer(home / "layer.tar.gz", digest, diff_id, size)


# -- Debian's packages ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """The source of Debian's main archive in this machine's apt configuration."""

    uri: str
    suite: str


def machine_source() -> Source:
    """Return the apt source of the machine's own Debian release, from sources.list(5) files, in both formats.

    ``apt-get indextargets`` is not used: it returns nothing before the first ``apt-get update``, and takes seconds
    after it.
    """
    if shutil.which("apt-get") is None:
        raise UnavailableError("apt-get is not on this machine: base images are made out of Debian's packages")
    codename = _os_release().get("VERSION_CODENAME", "")
    for uri, suites in _machine_sources():
        if codename in suites:
            return Source(uri, codename)
    raise UnavailableError("apt on this machine has no source for its own Debian release")


def debian_source(suite: str) -> Source:
    """Return the apt source of the release ``suite`` in the machine's archive; "" is the machine's own release."""
    own = machine_source()
    return Source(own.uri, suite) if suite else own


def _machine_sources() -> Iterator[tuple[str, list[str]]]:
    folder = Path("/etc/apt")
    for path in (folder / "sources.list", *sorted((folder / "sources.list.d").glob("*.list"))):
        for line in path.read_text().splitlines() if path.exists() else ():
            if match := re.match(r"deb\s+(?:\[[^]]*\]\s*)?(\S+)\s+(\S+)\s", line):
                yield match[1], [match[2]]
    for path in sorted((folder / "sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            fields = dict(re.findall(r"^([\w-]+):[ \t]*(.*)$", stanza, re.M))
            if "deb" in fields.get("Types", "").split() and fields.get("Enabled", "yes") != "no":
                yield fields.get("URIs", "").split()[0], fields.get("Suites", "").split()


def _os_release() -> dict[str, str]:
    pairs = (line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return {key: value.strip('"') for key, value in pairs}


def _keyring() -> str:
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    return f"[signed-by={keyring}] " if keyring.exists() else ""


def download(package: str, arch: str, into: Path) -> Path:
    """Download ``package`` for the Debian architecture ``arch`` with a private apt, without root.

    A port that the machine's release lacks (riscv64 in Debian 12) is taken from a later one.
    """
    source = machine_source()
    said = ""
    for suite in dict.fromkeys((source.suite, "stable", "testing", "unstable")):
        state = into / suite
        environment = _private_apt(state, Source(source.uri, suite), arch)
        for command in (["update"], ["download", f"{package}:{arch}"]):
            done = subprocess.run(
                ["apt-get", "-q", "-o", "Acquire::Retries=3", *command],
                cwd=state, env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            said = (done.stdout + done.stderr).strip() or said
        for found in state.glob("*.deb"):
            return found
    raise UnavailableError(f"apt-get found no {package}:{arch}: {said.splitlines()[-1] if said else 'no message'}")


def _private_apt(state: Path, source: Source, arch: str) -> dict[str, str]:
    for part in ("lists/partial", "archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "sources.list").write_text(f"deb {_keyring()}{source.uri} {source.suite} main\n")
    # APT::Architecture too: otherwise the machine's own lists would be fetched beside those of ``arch``.
    (state / "apt.conf").write_text(
        f'''Dir::State "{state}"; Dir::State::status "/dev/null"; Dir::Cache "{state}";
        Dir::Etc::sourcelist "{state}/sources.list"; Dir::Etc::sourceparts "/dev/null";
        APT::Architecture "{arch}"; #clear APT::Architectures; APT::Architectures {{ "{arch}"; }};
        Acquire::Languages "none"; Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
        #clear APT::Update::Post-Invoke; #clear APT::Update::Post-Invoke-Success;
        APT::Sandbox::User "";
        '''.replace(" #clear", "\n#clear")
    )
    return {**os.environ, "APT_CONFIG": str(state / "apt.conf"), "LC_ALL": "C"}


# -- busybox --------------------------------------------------------------------------------------------------------


def busybox_layer(platform: str) -> Layer:
    """A root file system of busybox alone."""
    arch = PLATFORMS[platform].debian

    def make(work: Path) -> Layer:
        tar = work / "layer.tar"
        with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
            _fill(archive, _busybox_binary(arch, work))
        with tar.open("rb") as stream:
            return pack(stream, work / "layer.tar.gz")

    return _kept(f"busybox-{arch}-{RECIPE}", make)


def _busybox_binary(arch: str, work: Path) -> bytes:
    installed = Path("/bin/busybox")
    here = machine_platform.machine()
    if arch == {"x86_64": "amd64", "aarch64": "arm64"}.get(here) and _is_static(installed):
        return installed.read_bytes()
    package = download("busybox-static", arch, work)
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as unpack:
        assert unpack.stdout is not None
        with tarfile.open(fileobj=unpack.stdout, mode="r|") as archive:
            for member in archive:
                if member.name.endswith("bin/busybox") and (stream := archive.extractfile(member)):
                    binary = stream.read()
                    unpack.stdout.read()
                    return binary
    raise UnavailableError(f"{package.name} holds no busybox")


def _is_static(binary: Path) -> bool:
    try:
        raw = binary.read_bytes()
    except OSError:
        return False
    return b"/ld-linux" not in raw and b"/ld-musl" not in raw


_APPLETS = tuple(
    """
[ ash awk base64 basename cat chgrp chmod chown cmp cp cut date dd df diff dirname du echo env expr false find fold
getopt grep gunzip gzip head hostname id kill ln ls md5sum mkdir mkfifo mknod mktemp mount mv nc nproc od paste
printf ps pwd readlink realpath rm rmdir sed seq sh sha256sum sleep sort stat stty sync tail tar tee test time
timeout touch tr true truncate uname uniq wc wget which whoami xargs xxd yes
""".split()  # noqa: SIM905  (a list of words is easier to read than a list of strings)
)

_FILES = {
    "etc/passwd": "root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/:/bin/false\nuser:x:1000:1000::/home/user:/bin/sh\n",
    "etc/group": "root:x:0:\ndaemon:x:1:\nstaff:x:50:user\nuser:x:1000:\n",
    "etc/hostname": "busybox\n",
}

_DIRECTORIES = {
    "bin": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "proc": 0o755, "root": 0o700, "sys": 0o755,
    "tmp": 0o1777, "usr": 0o755, "usr/bin": 0o755, "usr/sbin": 0o755, "var": 0o755, "var/tmp": 0o1777,
}  # fmt: skip


def _fill(archive: tarfile.TarFile, binary: bytes) -> None:
    def add(name: str, mode: int, kind: bytes = tarfile.REGTYPE, content: bytes = b"", target: str = "") -> None:
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.linkname = kind, mode, target
        entry.size, entry.mtime = len(content), MTIME
        archive.addfile(entry, io.BytesIO(content))

    for name, mode in _DIRECTORIES.items():
        add(name, mode, tarfile.DIRTYPE)
    add("home/user", 0o755, tarfile.DIRTYPE)
    add("bin/busybox", 0o755, content=binary)
    for applet in _APPLETS:
        add(f"bin/{applet}", 0o777, tarfile.SYMTYPE, target="busybox")
    for name, text in _FILES.items():
        add(name, 0o644, content=text.encode())


# -- debian ---------------------------------------------------------------------------------------------------------


def debian_layer(platform: str, suite: str = "") -> Layer:
    """Debian's essential packages and apt, as mmdebstrap makes them; of the release ``suite``, else the machine's."""
    source = debian_source(suite)
    return _bootstrapped(f"debian-{source.suite}", source, PLATFORMS[platform].debian, ("--variant=apt",))


def machine_root(platform: str) -> Path:
    """Return the root directory of a machine with nothing but Python and an SSH server; not to be written to."""
    packages = "--include=python3,openssh-server"
    source = machine_source()
    name = f"machine-{source.suite}"
    layer = _bootstrapped(name, source, PLATFORMS[platform].debian, ("--variant=essential", packages))
    root = layer.path.parent / "root"
    with locked(root.with_name("root.lock")):
        if not root.exists():
            with tempfile.TemporaryDirectory(prefix="root.", dir=root.parent) as work:
                unpack = ["tar", "--numeric-owner", "--xattrs", "-xpf", str(layer.path), "-C", work]
                subprocess.run(unpack, check=True)
                os.chmod(work, 0o755)
                os.rename(work, root)
                os.mkdir(work)  # which is removed
    return root


def _bootstrapped(name: str, source: Source, arch: str, options: Sequence[str]) -> Layer:
    """Return what mmdebstrap makes of ``source`` with ``options``, from the cache of layers if it is there."""

    def make(work: Path) -> Layer:
        if shutil.which("mmdebstrap") is None:
            raise UnavailableError("mmdebstrap is not installed")
        tar = work / "layer.tar"
        command = [
            "mmdebstrap", "--mode=root", *options, f"--architectures={arch}", "--skip=check/qemu",
            "--dpkgopt=force-unsafe-io", *(f"--aptopt={line}" for line in machine_apt_settings()),
            source.suite, str(tar), f"deb {_keyring()}{source.uri} {source.suite} main",
        ]  # fmt: skip
        try:
            done = emulators.run_mapped(arch, command, MAKING_TIMEOUT)
        except RuntimeError as problem:
            raise UnavailableError(str(problem)) from problem
        if done.returncode:
            raise UnavailableError(f"mmdebstrap for {arch} ended with {done.returncode}:\n{done.stdout[-2000:]}")
        with tar.open("rb") as stream:
            return pack(stream, work / "layer.tar.gz")

    return _kept(f"{name}-{arch}-{RECIPE}", make)


def machine_apt_settings() -> tuple[str, ...]:
    """The machine's settings for *reaching* an archive (proxies, certificates), as apt.conf lines."""
    dumped = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    wanted = re.compile(r'Acquire::https?(::[^ ]+)?::(Proxy|CaInfo|Verify-Peer)(::[^ ]+)? ".+";', re.I)
    return tuple(line for line in dumped.splitlines() if wanted.fullmatch(line))


def _lines(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def settings_layer(platform: str, suite: str = "") -> Layer:
    """Return a layer with what a container needs to reach package indexes from here: apt's sources, certificates, pip's
    settings.

    Made when requested and not cached, as it depends on the machine.
    """
    del platform  # the same for all
    files: dict[str, bytes] = {}
    for path in ("/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf"):
        with contextlib.suppress(OSError):
            files[path.lstrip("/")] = Path(path).read_bytes()
    local = Path("/usr/local/share/ca-certificates")
    for certificate in sorted(local.rglob("*.crt")) if local.is_dir() else ():
        files[str(certificate).lstrip("/")] = certificate.read_bytes()
    source = debian_source(suite)
    files["etc/apt/sources.list"] = _lines(f"deb {_keyring()}{source.uri} {source.suite} main")
    files["etc/apt/apt.conf.d/90machine"] = _lines(*machine_apt_settings(), 'Acquire::Languages "none";')
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(files[name]), MTIME
            archive.addfile(entry, io.BytesIO(files[name]))
    tar.seek(0)
    folder = cache_directory()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="settings.") as scratch:
        layer = pack(tar, Path(scratch.name))
        kept = folder / f"settings-{layer.digest[7:19]}.tar.gz"
        if not kept.exists():
            os.link(scratch.name, kept)
    return Layer(kept, layer.digest, layer.diff_id, layer.size)


# -- layouts --------------------------------------------------------------------------------------------------------

RECIPES: dict[str, tuple[Callable[..., Layer], ...]] = {
    "busybox": (busybox_layer,),
    "debian": (debian_layer, settings_layer),
}


def make_layout(base: str, dest: Path, platforms: Sequence[str]) -> str:
    """Write the base image ``base`` for ``platforms`` as an OCI layout at ``dest``; returns the digest of the index."""
    name, _, suite = base.partition(":")
    recipe = [partial(each, suite=suite) if suite else each for each in RECIPES[name]]
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        layers = list(pool.map(lambda name: tuple(step(name) for step in recipe), platforms))
    config = {"Env": [f"PATH={PATH}"], "Cmd": ["/bin/sh"]}
    images = [Image(PLATFORMS[name].oci, parts, config) for name, parts in zip(platforms, layers, strict=True)]
    return write_layout(dest, "latest", images)


def main(arguments: Sequence[str]) -> int:
    """``bases.py busybox|debian[:SUITE] DIR [PLATFORM,...]``, or ``bases.py machine PLATFORM``."""
    if len(arguments) not in (2, 3) or not re.fullmatch(r"busybox|debian(:[a-z]+)?|machine", arguments[0]):
        print("usage: bases.py busybox|debian[:SUITE] DIR [PLATFORM,...] | machine PLATFORM", file=sys.stderr)
        return 2
    if arguments[0] == "machine":
        return _printed(lambda: str(machine_root(arguments[1])))
    base, dest = arguments[0], Path(arguments[1])
    default = tuple(PLATFORMS) if base == "busybox" else DEBIAN_PLATFORMS
    platforms = tuple(arguments[2].split(",")) if len(arguments) == 3 else default
    if unknown := [name for name in platforms if name not in PLATFORMS]:
        print(f"bases.py: unknown platform {unknown[0]}; known: {', '.join(PLATFORMS)}", file=sys.stderr)
        return 2
    return _printed(lambda: make_layout(base, dest, platforms))


def _printed(make: Callable[[], str]) -> int:
    try:
        print(make())
    except UnavailableError as problem:
        print(f"bases.py: {problem}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
