"""Fixtures: a registry, base images, the installed command, users, and a reader of images."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import bases
import debian_registry
import hypothesis
import ordinary_user
import pytest
from oci_layout import Seen, image_manifests, read_image
from ordinary_user import User
from registry_server import MemoryRegistry, Served, served

# How long a test takes says nothing on a busy machine.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

pytest_plugins = (
    "hosts",
    "arm_machine",
    "sandbox_modes",
    "security_modes",
    "cluster",
    "cluster_images",
    "cluster_builds",
    "cluster_gate",
)

BUILD_TIMEOUT = 300.0
"""Timeout of a build in seconds."""
_KEPT = ("PATH", "LANG", "SSL_CERT_FILE", "SSL_CERT_DIR", "KANIFOLD_ISOLATION")
"""Variables of the test run that builds have, too."""


TEST_TIMEOUT = 600
"""Timeout of a test in seconds; it fails with the line at which it hangs."""


@pytest.fixture(autouse=True)
def _no_test_hangs() -> Iterator[None]:
    def late(number: int, frame: object) -> None:
        del number, frame
        raise AssertionError(f"still running after {TEST_TIMEOUT} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(TEST_TIMEOUT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def needs(*programs: str) -> None:
    """Skip the test unless all ``programs`` are on PATH."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (ci/packages installs it on Debian, as root)")


# -- registry and bases ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``127.0.0.1:PORT`` of a registry for the session. Use a repository name of your own."""
    if debian_registry.program() is None:
        pytest.skip("docker-registry is not installed (ci/packages installs it on Debian, as root)")
    with debian_registry.serve(tmp_path_factory.mktemp("registry")) as host:
        yield host


@dataclass(frozen=True)
class Base:
    """A base image, as an OCI layout on disk and as a reference in the session's registry."""

    layout: Path
    ref: str
    digest: str
    platforms: tuple[str, ...]


def _base(name: str, registry: str, folder: Path, platforms: tuple[str, ...]) -> Base:
    needs("skopeo")
    layout = folder / name
    try:
        digest = bases.make_layout(name, layout, platforms)
    except bases.UnavailableError as problem:
        pytest.skip(f"no {name} base: {problem}")
    ref = f"{registry}/base/{name}:latest"
    copy = ["skopeo", "copy", "--quiet", "--all", "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{ref}"]
    subprocess.run(copy, check=True, capture_output=True, text=True)
    _open_to_all(folder)
    return Base(layout, ref, digest, platforms)


def _open_to_all(folder: Path) -> None:
    """Let other users read below ``folder``: pytest's temporary directories are private."""
    for step in (folder, *folder.parents):
        if step.stat().st_uid != os.getuid() or step == Path(tempfile.gettempdir()):
            break
        step.chmod(step.stat().st_mode | 0o055)


@pytest.fixture(scope="session")
def busybox(registry: str, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A base of busybox alone, for seven platforms: starts quickly even under emulation."""
    return _base("busybox", registry, tmp_path_factory.mktemp("bases"), tuple(bases.PLATFORMS))


@pytest.fixture(scope="session")
def debian(registry: str, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A Debian with a working apt-get, for amd64, arm64 and arm/v7."""
    return _base("debian", registry, tmp_path_factory.mktemp("bases"), bases.DEBIAN_PLATFORMS)


@pytest.fixture
def server(busybox: Base) -> Iterator[tuple[MemoryRegistry, Served]]:
    """A registry in memory that has the image ``busybox``, and where it is served."""
    registry = MemoryRegistry()
    registry.add_layout("busybox", busybox.layout)
    with served(registry) as found:
        yield registry, found


# -- the store ------------------------------------------------------------------------------------------------------


class Clock:
    """Seconds since the epoch, as the test wants them."""

    def __init__(self) -> None:
        self.now = 2_000_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock for ``open_store``."""
    return Clock()


# -- the command ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """The exit status and output of a command."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Stdout and stderr."""
        return f"{self.out}\n{self.err}"


@dataclass(frozen=True)
class Kanifold:
    """The installed command, run as a user with a HOME and a store of its own: ``kanifold("build", ".", …)``."""

    home: Path
    user: User = field(default_factory=ordinary_user.me)
    command: tuple[str, ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The store (KANIFOLD_ROOT)."""
        return self.home / "store"

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a user, without that of the test run."""
        kept = {key: os.environ[key] for key in _KEPT if key in os.environ}
        own = {"HOME": str(self.home), "KANIFOLD_ROOT": str(self.root), "TERM": "dumb", "USER": self.user.name}
        return {**kept, **own, **self.extra, **more}

    def start(self, *arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
        """Start the command and return; the caller ends it."""
        return subprocess.Popen(
            [*self.command, *map(str, arguments)],
            cwd=cwd or self.home, env=self.environment(**environment), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", **self.user.becoming(),
        )  # fmt: skip

    def run(self, *arguments: str | Path, cwd: Path | None = None, **environment: str) -> Outcome:
        """Run the command to its end, whatever its status."""
        with self.start(*arguments, cwd=cwd, **environment) as process:
            try:
                out, err = process.communicate(timeout=BUILD_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                raise AssertionError(f"still running after {BUILD_TIMEOUT} s:\n{out}\n{err}") from None
        return Outcome(process.returncode, out, err)

    def __call__(self, *arguments: str | Path, cwd: Path | None = None, **environment: str) -> Outcome:
        """Run the command; the test fails with its output unless it exits with 0."""
        outcome = self.run(*arguments, cwd=cwd, **environment)
        assert outcome.code == 0, f"kanifold {' '.join(map(str, arguments))}\nended with {outcome.code}\n{outcome.said}"
        return outcome

    def folder(self, name: str) -> Path:
        """Make a directory that this user owns."""
        made = self.home / name
        made.mkdir(parents=True)
        if os.geteuid() != self.user.uid:
            os.chown(made, self.user.uid, self.user.gid)
        return made


def installed() -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the command and its environment for the user who runs the tests."""
    own = Path(sys.executable).with_name("kanifold")
    if own.exists():
        return (str(own),), {}
    # Not installed here (a developer's environment): the sources, by the same entry point.
    return (sys.executable, "-m", "orchestrator"), {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}


@pytest.fixture
def kanifold(tmp_path: Path) -> Kanifold:
    """The command as the user who runs the tests, with an empty home and an empty store."""
    home = tmp_path / "home"
    home.mkdir()
    command, extra = installed()
    return Kanifold(home, command=command, extra=extra)


@pytest.fixture(scope="session")
def _user_with_ids() -> Iterator[User]:
    yield from _user("ids", subordinate_ids=True)


@pytest.fixture(scope="session")
def _user_without_ids() -> Iterator[User]:
    yield from _user("bare", subordinate_ids=False)


def _user(label: str, *, subordinate_ids: bool) -> Iterator[User]:
    if os.geteuid() == 0:
        needs("useradd", "userdel")
        with ordinary_user.made(label, subordinate_ids=subordinate_ids) as user:
            yield user
        return
    user = ordinary_user.me()
    granted = any(line.startswith(f"{user.name}:") for line in Path("/etc/subuid").read_text().splitlines())
    if granted != subordinate_ids:
        pytest.skip(f"not root, and {user.name} {'has' if granted else 'has no'} subordinate ids")
    yield user


def as_user(user: User, scratch: Path) -> Kanifold:
    """Return the command as ``user``, with a home of its own; ``scratch`` is for a copy of the installation if
    necessary."""
    found = ordinary_user.reachable(user, scratch)
    if found is None:
        pytest.skip(f"no Python that an ordinary user may run (this one is {sys.executable})")
    command, extra = found
    home = Path(tempfile.mkdtemp(prefix="home.", dir=user.home if os.geteuid() == 0 else None))
    if os.geteuid() == 0:
        os.chown(home, user.uid, user.gid)
    return Kanifold(home, user, tuple(command), extra)


@pytest.fixture(scope="session")
def _scratch() -> Iterator[Path]:
    """A directory that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="kanifold-tests.") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def kanifold_as_user(_user_with_ids: User, _scratch: Path) -> Iterator[Kanifold]:
    """The command as an ordinary user with ranges in /etc/subuid and /etc/subgid."""
    yield from _at_home(as_user(_user_with_ids, _scratch))


@pytest.fixture
def kanifold_as_bare_user(_user_without_ids: User, _scratch: Path) -> Iterator[Kanifold]:
    """The command as an ordinary user without subordinate ids."""
    yield from _at_home(as_user(_user_without_ids, _scratch))


def _at_home(kanifold: Kanifold) -> Iterator[Kanifold]:
    """Yield ``kanifold``, and remove its home with its store, rather than those of all tests at the end."""
    yield kanifold
    subprocess.run(["rm", "-rf", str(kanifold.home)], check=False)


# -- reading what was built -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """Reads images from a layout directory or a registry, without kanifold's code."""

    scratch: Path

    def layout(self, where: Path | str) -> Path:
        """Return ``where`` as a layout: itself, or a copy of the reference's image (by skopeo)."""
        if isinstance(where, Path):
            return where
        needs("skopeo")
        dest = Path(tempfile.mkdtemp(dir=self.scratch))
        copy = ["skopeo", "copy", "--quiet", "--all", "--preserve-digests", "--src-tls-verify=false"]
        subprocess.run([*copy, f"docker://{where}", f"oci:{dest}:copy"], check=True, capture_output=True, text=True)
        return dest

    def platforms(self, where: Path | str) -> list[str]:
        """Return the platforms of the image, in the index's order."""
        return list(image_manifests(self.layout(where)))

    def __call__(self, where: Path | str, platform: str = "linux/amd64") -> Seen:
        """Return the documents and the merged tree of the image for one platform."""
        return read_image(self.layout(where), platform)


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    """``read(layout_or_reference, "linux/arm64").tree["etc/os-release"]``."""
    return Reader(tmp_path)


@pytest.fixture
def inspect_raw() -> Callable[[str], dict[str, object]]:
    """Returns the document of a reference in a registry, by skopeo."""

    def raw(reference: str) -> dict[str, object]:
        needs("skopeo")
        command = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}"]
        document: dict[str, object] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return document

    return raw


@pytest.fixture
def context(tmp_path: Path) -> Callable[[Mapping[str, str | bytes]], Path]:
    """Writes a build context: ``context({"Dockerfile": "FROM scratch", "a/b": "text"})`` is its directory."""

    def write(files: Mapping[str, str | bytes]) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="context.", dir=tmp_path))
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        folder.chmod(0o755)
        _open_to_all(folder)
        return folder

    return write
