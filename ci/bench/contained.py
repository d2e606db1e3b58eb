"""kanifold and kaniko, each in a container of the same kind, as CI jobs have it (``tests/containers.py``).

Each build is in a new container, which is made before the clock starts: what is measured is the first process of the
container, from the moment at which it executes the builder. The store, or whatever the builder writes, is on the file
system of everything else.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import containers
import kaniko_image
import published
from builders import Build, Builder, Session, find_kaniko, version_of
from containers import BOX, Created, Environment, Root
from mapped import Handlers
from measuring import FailedError, Measured, measure


@dataclass(frozen=True)
class _Held:
    """A container that is waiting, as a command to measure."""

    words: Sequence[str]
    log: Path
    container: Created

    def start(self) -> Created:
        self.container.start()
        return self.container


@contextlib.contextmanager
def _held(
    environment: Environment, words: Sequence[str], build: Build, home: Path, root: Root, variables: dict[str, str]
) -> Iterator[_Held]:
    """A container with the volume ``home``/box and the context of ``build``, which has not begun."""
    box, log = home / "box", home / "log"
    box.mkdir(exist_ok=True)
    before, tempfile.tempdir = tempfile.tempdir, str(home)
    try:
        with (
            log.open("ab") as output,
            containers.created(
                environment, words, box, root=root, variables=variables, seen=[build.context], output=output
            ) as container,
        ):
            yield _Held(words, log, container)
    finally:
        tempfile.tempdir = before


@dataclass(frozen=True)
class ContainedKanifold:
    """The command as it is installed, in a container on the machine's own root, with the store on a volume.

    No handler for foreign platforms is lent to it.
    """

    program: str
    environment: Environment
    name: str = "kanifold"

    @property
    def version(self) -> str:
        return version_of(self.program, "--version")

    @contextlib.contextmanager
    def session(self, home: Path, _registry: str) -> Iterator[Session]:
        yield _ContainedKanifold(self, home)

    def traces(self, home: Path, build: Build, count: int) -> Iterator[Path]:
        """The traces of ``build`` in an empty store, and then of the same with nothing changed, ``count`` in all."""
        session = _ContainedKanifold(self, home)
        for number in range(count):
            session.build(build, "--trace", f"{BOX}/trace-{number}")
            yield home / "box" / f"trace-{number}"


@dataclass(frozen=True)
class _ContainedKanifold:
    builder: ContainedKanifold
    home: Path

    def build(self, build: Build, *more: str) -> Measured:
        words = (
            self.builder.program, "build", str(build.context), "--platform", ",".join(build.platforms), "--push",
            "--tag", build.ref, "--insecure-registry", build.registry, "--root", f"{BOX}/store", *more,
        )  # fmt: skip
        with _held(self.builder.environment, words, build, self.home, Root(), {}) as held:
            return measure(held, timeout=build.timeout)

    def prepare_again(self, build: Build) -> None:
        """Its store is its cache."""


@dataclass(frozen=True)
class ContainedKaniko:
    """kaniko's own image: a container a platform, all at once; their images are joined at the end.

    As it has no emulation of its own, the container is in the user namespace that has the handlers.
    """

    program: str
    environment: Environment
    name: str = "kaniko"

    @property
    def version(self) -> str:
        return version_of(self.program, "version")

    @contextlib.contextmanager
    def session(self, home: Path, _registry: str) -> Iterator[Session]:
        yield _ContainedKaniko(self, home, kaniko_image.make(home / "image", self.program, BOX))


@dataclass
class _ContainedKaniko:
    builder: ContainedKaniko
    home: Path
    image: Root
    cache: tuple[str, ...] = ()

    def build(self, build: Build) -> Measured:
        images = {each: f"{build.ref.rpartition(':')[0]}:{each.replace('/', '-')}" for each in build.platforms}
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(self._held(build, *each)) for each in images.items()]
            measured = measure(*held, timeout=build.timeout)
        began = time.perf_counter()
        published.join(build.ref, images)
        return measured.then(Measured(time.perf_counter() - began, 0))

    def _held(self, build: Build, platform: str, image: str) -> contextlib.AbstractContextManager[_Held]:
        words = kaniko_image.words(str(build.context), platform, "--destination", image, *self.cache)
        home = self.home / platform.replace("/", "-")
        home.mkdir(exist_ok=True)
        return _held(self.builder.environment, words, build, home, self.image, kaniko_image.VARIABLES)

    def prepare_again(self, build: Build) -> None:
        """Fill the cache, which is a repository."""
        if not self.cache:
            repository = build.ref.rpartition(":")[0].replace("/out/", "/cache/", 1)
            self.cache = ("--cache=true", "--cache-copy-layers", "--cache-repo", repository)
            self.build(build)


def find(program: str, environment: Environment, peers: Sequence[str], handlers: Handlers | None) -> Iterator[Builder]:
    """kanifold, and kaniko if it is found and can run what the workloads need."""
    yield ContainedKanifold(program, environment)
    found = find_kaniko(peers)
    if found and handlers is not None:
        joined = replace(environment, own_ids=True, joined=handlers.user_namespace) if handlers.pid else environment
        yield ContainedKaniko(found, joined)


def environment(name: str) -> Environment:
    """The kind of container called ``name``. Raises ``FailedError``."""
    if name not in containers.ENVIRONMENTS:
        raise FailedError(f"no such container: {name}; there are {', '.join(containers.ENVIRONMENTS)}")
    return containers.ENVIRONMENTS[name]
