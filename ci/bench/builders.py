"""The builders, each behind the same two calls: a session with an empty store, and builds in it.

Every build is for all platforms at once and ends with an index in the registry, whatever it takes the builder to get
there: that is the job that is compared. What a builder keeps running between builds (a daemon) is started before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import published
import throwaway
from measuring import Command, FailedError, Measured, forget_peak, measure, peak_of, tail

START_TIMEOUT = 30.0
"""Seconds in which a daemon must have started."""


@dataclass(frozen=True)
class Build:
    """One build: a context with its Dockerfile, for ``platforms``, to be pushed as ``ref``."""

    context: Path
    platforms: tuple[str, ...]
    ref: str
    timeout: float

    @property
    def registry(self) -> str:
        """``HOST:PORT``."""
        return self.ref.partition("/")[0]


class Session(Protocol):
    """A builder with a store of its own."""

    def build(self, build: Build) -> Measured:
        """Build and push. Raises ``FailedError``."""
        ...

    def prepare_again(self, build: Build) -> None:
        """Whatever has to be done, unmeasured, so that ``build`` finds a warm cache the next time."""
        ...


class Builder(Protocol):
    """A program that builds."""

    name: str
    version: str

    def session(self, home: Path, registry: str) -> contextlib.AbstractContextManager[Session]:
        """A session that keeps everything below the empty directory ``home``, and reads bases from ``registry``."""
        ...


@runtime_checkable
class Traced(Protocol):
    """A builder that writes down when it did what."""

    name: str

    def traces(self, home: Path, build: Build, count: int) -> Iterator[Path]:
        """The traces of ``build`` in an empty store, and then of the same with nothing changed, ``count`` in all."""
        ...


def version_of(*command: str) -> str:
    """What a program says about its version, in one line."""
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return (said.stdout or said.stderr).strip().partition("\n")[0]


def environment(home: Path, *programs: str) -> dict[str, str]:
    """What a user has: PATH, a home, room for temporary files on the same file system as everything."""
    scratch = home / "tmp"
    scratch.mkdir(exist_ok=True)
    folders = dict.fromkeys(str(Path(each).parent) for each in programs)
    path = ":".join((*folders, os.environ["PATH"], "/usr/sbin"))
    return {"PATH": path, "HOME": str(home), "TMPDIR": str(scratch), "LANG": "C.UTF-8"}


# -- kanifold ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kanifold:
    """The command as it is installed, with ``options`` for every build."""

    program: str
    name: str = "kanifold"
    options: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        return version_of(self.program, "--version")

    @contextlib.contextmanager
    def session(self, home: Path, _registry: str) -> Iterator[Session]:
        yield _Kanifold(self, home)

    def traces(self, home: Path, build: Build, count: int) -> Iterator[Path]:
        """The traces of ``build`` in an empty store, and then of the same with nothing changed, ``count`` in all."""
        session = _Kanifold(self, home)
        for number in range(count):
            trace = home / f"trace-{number}"
            session.build(build, "--trace", str(trace))
            yield trace


@dataclass(frozen=True)
class _Kanifold:
    builder: Kanifold
    home: Path

    def build(self, build: Build, *more: str) -> Measured:
        words = (
            self.builder.program, "build", str(build.context), "--platform", ",".join(build.platforms), "--push",
            "--tag", build.ref, "--insecure-registry", build.registry, "--root", str(self.home / "store"),
            *self.builder.options, *more,
        )  # fmt: skip
        return measure(Command(words, environment(self.home), self.home / "log"), timeout=build.timeout)

    def prepare_again(self, build: Build) -> None:
        """Its store is its cache."""


# -- buildah ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Buildah:
    """buildah with layer caching, chroot isolation, overlay storage and all platforms at once."""

    program: str
    prefix: tuple[str, ...]
    name: str = "buildah"

    @property
    def version(self) -> str:
        return version_of(self.program, "--version")

    @contextlib.contextmanager
    def session(self, home: Path, _registry: str) -> Iterator[Session]:
        yield _Buildah(self, home)


@dataclass(frozen=True)
class _Buildah:
    builder: Buildah
    home: Path

    def _general(self) -> tuple[str, ...]:
        return (
            *self.builder.prefix, self.builder.program, "--root", str(self.home / "root"),
            "--runroot", str(self.home / "run"), "--storage-driver", "overlay",
        )  # fmt: skip

    def build(self, build: Build) -> Measured:
        built = (
            *self._general(), "build", "--isolation", "chroot", "--layers", "--jobs", "0", "--tls-verify=false",
            "--platform", ",".join(build.platforms), "--manifest", build.ref, str(build.context),
        )  # fmt: skip
        pushed = (
            *self._general(),
            "manifest",
            "push",
            "--all",
            "--tls-verify=false",
            build.ref,
            f"docker://{build.ref}",
        )
        around = environment(self.home)
        measured = measure(Command(built, around, self.home / "log"), timeout=build.timeout)
        return measured.then(measure(Command(pushed, around, self.home / "log"), timeout=build.timeout))

    def prepare_again(self, build: Build) -> None:
        """Remove the manifest list, to which another build would only add."""
        command = (*self._general(), "manifest", "rm", build.ref)
        subprocess.run(command, env=environment(self.home), check=True, capture_output=True)


# -- BuildKit ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BuildKit:
    """A daemon of our own for each session: OCI worker, Debian's runc, overlay snapshots; and its client."""

    daemon: str
    client: str
    prefix: tuple[str, ...]
    name: str = "buildkit"

    @property
    def version(self) -> str:
        return version_of(self.daemon, "--version")

    @contextlib.contextmanager
    def session(self, home: Path, registry: str) -> Iterator[Session]:
        address = f"unix://{home}/sock"
        settings = home / "buildkitd.toml"
        settings.write_text(
            f'[registry."{registry}"]\nhttp = true\ninsecure = true\n'
            '[worker.containerd]\nenabled = false\n[worker.oci]\nenabled = true\nsnapshotter = "overlayfs"\n'
        )
        around = environment(home, self.daemon, self.client)
        words = (
            *self.prefix, "setpriv", "--pdeathsig=KILL",
            self.daemon, "--config", str(settings), "--root", str(home / "root"), "--addr", address,
        )  # fmt: skip
        log = home / "daemon.log"
        with (
            log.open("wb") as out,
            subprocess.Popen(words, env=around, stdin=subprocess.DEVNULL, stdout=out, stderr=out) as process,
        ):
            try:
                self._await(address, around, process, log)
                daemon = _innermost(process.pid)
                yield _BuildKit(self, home, address, around, daemon)
                os.kill(daemon, signal.SIGTERM)  # nsenter, where there is one, passes no signal on
                process.wait(START_TIMEOUT)
            finally:
                process.kill()

    def _await(self, address: str, around: dict[str, str], process: subprocess.Popen[bytes], log: Path) -> None:
        ask = [*self.prefix, self.client, "--addr", address, "debug", "workers"]
        end = time.monotonic() + START_TIMEOUT
        while subprocess.run(ask, env=around, capture_output=True, check=False).returncode:
            if process.poll() is not None or time.monotonic() > end:
                raise FailedError(f"buildkitd did not start\n{tail(log)}")
            time.sleep(0.05)  # nothing announces that it listens


def _innermost(pid: int) -> int:
    """The last of a chain of processes that each have one child: who does the work behind nsenter."""
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[0])
    return pid


@dataclass(frozen=True)
class _BuildKit:
    builder: BuildKit
    home: Path
    address: str
    around: dict[str, str]
    daemon: int

    def build(self, build: Build) -> Measured:
        forget_peak(self.daemon)
        words = (
            *self.builder.prefix, self.builder.client, "--addr", self.address, "build", "--progress", "plain",
            "--frontend", "dockerfile.v0", "--local", f"context={build.context}", "--local",
            f"dockerfile={build.context}", "--opt", f"platform={','.join(build.platforms)}",
            "--output", f"type=image,name={build.ref},push=true,registry.insecure=true",
        )  # fmt: skip
        measured = measure(Command(words, self.around, self.home / "log"), timeout=build.timeout)
        return Measured(measured.seconds, max(measured.memory, peak_of(self.daemon)), measured.processor)

    def prepare_again(self, build: Build) -> None:
        """The daemon's root is its cache."""


# -- kaniko -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kaniko:
    """kaniko's executor: a process a platform, all at once, each in a root of its own; their images joined at the end.

    It keeps nothing on disk. Its cache is a repository, which is filled, unmeasured, before the first warm build.
    """

    program: str
    prefix: tuple[str, ...]
    name: str = "kaniko"

    @property
    def version(self) -> str:
        return version_of(self.program, "version")

    @contextlib.contextmanager
    def session(self, home: Path, _registry: str) -> Iterator[Session]:
        yield _Kaniko(self, home)


@dataclass
class _Kaniko:
    builder: Kaniko
    home: Path
    cached: bool = False

    def build(self, build: Build) -> Measured:
        images = {each: f"{build.ref.rpartition(':')[0]}:{each.replace('/', '-')}" for each in build.platforms}
        commands = [self._command(build, platform, image) for platform, image in images.items()]
        measured = measure(*commands, timeout=build.timeout)
        began = time.perf_counter()
        published.join(build.ref, images)
        return measured.then(Measured(time.perf_counter() - began, 0))

    def _command(self, build: Build, platform: str, image: str) -> Command:
        arguments = [
            "--force", "--context", f"dir://{throwaway.CONTEXT}", "--destination", image, "--custom-platform", platform,
            "--insecure", "--insecure-pull", "--cache-copy-layers",
        ]  # fmt: skip
        if self.cached:
            repository = build.ref.rpartition(":")[0].replace("/out/", "/cache/", 1)
            arguments += ["--cache=true", "--cache-repo", repository]
        root = Path(tempfile.mkdtemp(prefix="root.", dir=self.home))
        around = {"PATH": f"{os.environ['PATH']}:/usr/sbin", "HOME": "/root"}
        words = (*self.builder.prefix, *throwaway.words(root, build.context, self.builder.program, arguments))
        return Command(words, around, self.home / f"log-{platform.replace('/', '-')}")

    def prepare_again(self, build: Build) -> None:
        """Fill the cache, and remove the roots that builds have left."""
        if not self.cached:
            self.cached = True
            self.build(build)
        for each in self.home.glob("root.*"):
            shutil.rmtree(each)


# -- kanifold in other modes ------------------------------------------------------------------------------------------

PLAIN = "plain"
"""Beside the isolation modes: the usual one, without an overlay."""
MODES = frozenset({"namespaces", "mapped", "single", "chroot", "answered", PLAIN})


def check_modes(names: Sequence[str]) -> None:
    """Raise ``FailedError`` unless ``names`` are isolation modes."""
    unknown = set(names) - MODES
    if unknown or not names:
        raise FailedError(f"no such mode: {', '.join(sorted(unknown))}; there are {', '.join(sorted(MODES))}")


def modes(program: str, names: Sequence[str]) -> Iterator[Kanifold]:
    """kanifold in the isolation modes ``names``."""
    for name in names:
        yield Kanifold(program, name, ("--snapshotter", PLAIN) if name == PLAIN else ("--isolation", name))


# -- finding them -----------------------------------------------------------------------------------------------------


def find(peers: Sequence[str], prefix: tuple[str, ...]) -> Iterator[Builder]:
    """The other builders on PATH or in the directories ``peers``, to be run behind ``prefix``."""
    if found := _program("buildah", peers):
        yield Buildah(found, prefix)
    if (daemon := _program("buildkitd", peers)) and (client := _program("buildctl", peers)) and _program("runc", peers):
        yield BuildKit(daemon, client, prefix)
    if found := find_kaniko(peers):
        yield Kaniko(found, prefix)


def find_kaniko(peers: Sequence[str]) -> str | None:
    """kaniko's executor, on PATH or in the directories ``peers``."""
    found = _program("executor", peers)
    return found if found and "kaniko" in version_of(found, "version").lower() else None


def _program(name: str, peers: Sequence[str]) -> str | None:
    return shutil.which(name, path=":".join((*peers, os.environ["PATH"], "/usr/sbin")))
