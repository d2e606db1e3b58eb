"""Testing the images of a release before anything is published.

A command is a RUN in the image that was built: a build of

    FROM IMAGE
    RUN COMMAND

for one platform, native or emulated, in the sandbox of steps, with the image's user, environment, working directory and
shell. What it changes is dropped. As any step, a test that has passed is not repeated for the same image, by its
digest, unless ``--no-cache`` says so. A script is a program of this machine, which finds the image in its environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Final

import msgspec
from msgspec.structs import replace

from executor import protocol
from executor.store.removal import remove_tree
from orchestrator import build as building
from orchestrator.outputs import LocalDirectory
from orchestrator.release import script_process
from orchestrator.release.image_events import StepEvents, label
from orchestrator.release.model import ImageTest, ReleaseImage
from orchestrator.request import BuildRequest
from orchestrator.results import BuildResult, Image
from orchestrator.session import Session
from orchestrator.view import events
from orchestrator.view.events import Emit
from platforms.errors import BuildError, EnvironmentUnfit, KanifoldError
from platforms.paths import below

NAME: Final = "kanifold-image"
"""The name of the image under test in the Dockerfile of its test."""
_LINES: Final = 24
"""Number of the last lines that an error shows."""
_LINE: Final = 64 << 10
"""Maximum length of a line of a script in bytes; the rest is another line."""
_GRACE: Final = 1.0
"""Seconds that a script has to end after SIGTERM."""
_SCRIPT: Final = 500_000
"""The number of a script's step, which the build that has its files does not reach."""
_PLAIN: Final = re.compile(r"[^-\[<#\s\\][^\n\r\\]*")
"""A command that a line of a Dockerfile holds as it is."""


class TestBench(msgspec.Struct, frozen=True):
    """What the tests of an image need. ``request`` is the image's own, ``layout`` the place of the built image."""

    __test__ = False
    session: Session
    image: ReleaseImage
    request: BuildRequest
    layout: str
    directory: str
    """Where scripts are run: that of the release file."""
    scratch: str
    emit: Emit

    async def test_all(self, result: BuildResult) -> None:
        """Do all tests for all platforms, these at the same time. Raises ``KanifoldError`` for one that fails."""
        try:
            async with asyncio.TaskGroup() as group:
                for each in result.images:
                    group.create_task(self._test_platform(result, each))
        except ExceptionGroup as errors:
            raise errors.exceptions[0]  # noqa: B904 - its own cause is the better one

    async def _test_platform(self, result: BuildResult, built: Image) -> None:
        name = label(self.image.name, str(built.platform))
        try:
            for number, test in enumerate(self.image.tests, 1):
                if not test.platforms or str(built.platform) in test.platforms:
                    await _Test(self, test, number, result, built).do()
        except KanifoldError as error:
            self.emit(events.PlatformEnded(platform=name, outcome="failed", reason=error.problem.what))
            raise
        except asyncio.CancelledError:
            self.emit(events.PlatformEnded(platform=name, outcome="cancelled", reason="another test failed"))
            raise
        self.emit(events.PlatformEnded(platform=name, outcome="built"))


class _Test(msgspec.Struct, frozen=True):
    """A test of one platform; ``number`` counts from 1."""

    bench: TestBench
    test: ImageTest
    number: int
    result: BuildResult
    built: Image
    lines: deque[str] = msgspec.field(default_factory=lambda: deque(maxlen=_LINES))

    @property
    def platform(self) -> str:
        return str(self.built.platform)

    async def do(self) -> None:
        """Do it, within its time. Raises ``BuildError`` if it fails, with what it wrote last."""
        limit = asyncio.timeout(None)
        try:
            async with limit:
                work = self._script(limit) if self.test.script else self._command(limit)
                await work
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise self._failed(
                f"it was stopped after {self.test.timeout:g} seconds", "give it more time: timeout: 20m"
            ) from error
        except EnvironmentUnfit:
            raise
        except BuildError as error:
            problem = error.problem
            raise self._failed(": ".join(filter(None, (problem.what, problem.why))), problem.remedy) from error

    def _failed(self, why: str, remedy: str) -> BuildError:
        return BuildError(
            f"the test {self.test.name} of {self.bench.image.name} has failed on {self.platform}",
            why=why,
            remedy=remedy,
            where=self.test.where,
            log=tuple(self.lines),
        )

    def _heard(self, text: str) -> None:
        self.lines.extend(text.split("\n")[-_LINES:])

    def _events(self, started: Callable[[], None]) -> StepEvents:
        """Return the display of the test; ``started`` is called when it has an executor."""
        name = label(self.bench.image.name, self.platform)
        return StepEvents(self.bench.emit, name, self.number, _stage(self.test.name), started, self._heard)

    def _begin(self, limit: asyncio.Timeout) -> None:
        """Begin to count the time of the test."""
        limit.reschedule(asyncio.get_running_loop().time() + self.test.timeout)

    async def _command(self, limit: asyncio.Timeout) -> None:
        network = "default" if self.test.network else "none"
        text = f"# check=skip=all\nFROM {NAME}\n{instruction(self.test, network)}\n"
        await self._build(text, self._events(partial(self._begin, limit)), ())

    async def _build(self, dockerfile: str, show: StepEvents, outputs: tuple[LocalDirectory, ...]) -> None:
        """Build ``dockerfile`` for the platform, and show it."""
        bench = self.bench
        with _directory(bench.scratch, f"{bench.image.name}.{self.platform.replace('/', '-')}.{self.number}") as place:
            path = below(place, "Dockerfile")
            with open(path, "w", encoding="utf-8") as file:
                file.write(dockerfile)
            request = BuildRequest(
                context=place,
                dockerfile=path,
                platforms=(self.built.platform,),
                outputs=outputs,
                build_contexts=((NAME, bench.layout),),
                audit="off",
                retry=bench.request.retry,
                nodes=bench.request.nodes,
                options=replace(
                    bench.request.options,
                    target="",
                    labels=(),
                    no_cache_stages=(),
                    cache_from=(),
                    cache_to=(),
                    implicit_platform=False,
                ),
            )
            await building.prepare(replace(bench.session, emit=show), request)

    async def _script(self, limit: asyncio.Timeout) -> None:
        """Run the script, with the files of the image beside its layout."""
        bench = self.bench
        with _directory(bench.scratch, f"{bench.image.name}.{self.platform.replace('/', '-')}.files") as place:
            root = below(place, "root")
            show = self._events(lambda: None)
            await self._build(f"# check=skip=all\nFROM {NAME}\n", show, (LocalDirectory(root, False),))
            layout = _own_layout(bench.layout, place, self.built)
            step = protocol.StepInfo(
                _SCRIPT, _stage(self.test.name), f"script {' '.join(self.test.script)}", number=1, of=1
            )
            show(events.FromExecutor(platform="", message=protocol.Planned((step,))))
            show(events.FromExecutor(platform="", message=protocol.Started(_SCRIPT)))
            self._begin(limit)
            began = asyncio.get_running_loop().time()
            status = await self._run(root, layout, show)
            seconds = asyncio.get_running_loop().time() - began
            error = f"exit status {status}" if status else ""
            show(events.FromExecutor(platform="", message=protocol.Finished(_SCRIPT, seconds, error=error)))
            if status:
                raise BuildError(f"{self.test.script[0]} ended with {error}")

    async def _run(self, root: str, layout: str, show: StepEvents) -> int:
        """Run the script until it ends; returns its exit status. Cancelling ends it and its children."""
        environment = {
            **os.environ,
            "KANIFOLD_IMAGE": self.bench.image.name,
            "KANIFOLD_PLATFORM": self.platform,
            "KANIFOLD_DIGEST": self.built.descriptor.digest,
            "KANIFOLD_INDEX_DIGEST": self.result.root.digest,
            "KANIFOLD_ROOTFS": root,
            "KANIFOLD_LAYOUT": layout,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(script_process.__file__),
            root,
            *self.test.script,
            cwd=self.bench.directory,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=_LINE,
        )
        try:
            assert process.stdout is not None
            async for line in _lines(process.stdout):
                show(events.FromExecutor(platform="", message=protocol.Log(_SCRIPT, line)))
            return await process.wait()
        finally:
            await asyncio.shield(_end(process))


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Yield what comes, line by line; a line that is too long in parts."""
    rest = b""
    while block := await stream.read(_LINE):
        *whole, rest = (rest + block).split(b"\n")
        for each in whole:
            yield each.decode(errors="replace")
        if len(rest) >= _LINE:
            yield rest.decode(errors="replace")
            rest = b""
    if rest:
        yield rest.decode(errors="replace")


async def _end(process: asyncio.subprocess.Process) -> None:
    """End what is left of the process group of ``process``."""
    for order in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, order)
        if process.returncode is not None:
            continue
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _GRACE)


@contextlib.contextmanager
def _directory(scratch: str, name: str) -> Iterator[str]:
    """Yield a new directory in ``scratch``, which is removed at the end."""
    place = below(scratch, name)
    os.mkdir(place)
    try:
        yield place
    finally:
        remove_tree(place)


def _stage(name: str) -> str:
    """Return what the stage of the test ``name`` is called in the display."""
    return name if name.startswith("test") else f"test {name}"


def instruction(test: ImageTest, network: str) -> str:
    """Return the RUN of ``test``. A command that a line cannot hold is a here-document."""
    flags = f"RUN --network={network}"
    if test.command:
        return f"{flags} {json.dumps(test.command)}"
    if _PLAIN.fullmatch(test.run) and "<<" not in test.run:
        return f"{flags} {test.run}"
    end = "KANIFOLD_TEST"
    while end in test.run:
        end += "_"
    return f"{flags} <<'{end}'\n{test.run}\n{end}"


def _own_layout(layout: str, place: str, built: Image) -> str:
    """Return a new OCI layout in ``place`` with the image ``built`` alone, whose blobs are those of ``layout``."""
    from executor.registry import layout as layouts

    directory = below(place, "layout")
    os.mkdir(directory)
    source, _ = layouts.split_location(layout.removeprefix("oci-layout://"))
    os.symlink(below(source, "blobs"), below(directory, "blobs"))
    for name, data in (("oci-layout", layouts.MARKER), ("index.json", layouts.index_json([built.descriptor]))):
        with open(below(directory, name), "wb") as file:
            file.write(data)
    return directory
