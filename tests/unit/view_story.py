"""Invented builds as streams of events, for the tests of the displays.

As a script it plays one on the terminal:

    python tests/unit/view_story.py [STORY] [--speed 4] [--mode live] [--pause 8]
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from msgspec.structs import replace

from executor import protocol
from executor.image import mediatypes
from executor.image.manifest import Descriptor
from orchestrator.view import events
from orchestrator.view.events import Event, FromExecutor, PlatformPlacement
from platforms.errors import Location, Problem

START = 1000.0
AMD64 = PlatformPlacement("linux/amd64", how="native")
ARM64 = PlatformPlacement("linux/arm64", how="qemu-aarch64")
ARM64_NODE = PlatformPlacement("linux/arm64", "builder-2", "native")
EIGHT = (
    AMD64,
    ARM64_NODE,
    PlatformPlacement("linux/arm/v7", how="qemu-arm"),
    PlatformPlacement("linux/arm/v6", how="qemu-arm"),
    PlatformPlacement("linux/386", how="native"),
    PlatformPlacement("linux/riscv64", how="qemu-riscv64"),
    PlatformPlacement("linux/ppc64le", how="qemu-ppc64le"),
    PlatformPlacement("linux/s390x", how="qemu-s390x"),
)
DOCKERFILE = (
    "FROM debian:12 AS build",
    "RUN apt-get update && apt-get install -y --no-install-recommends build-essential git ca-certificates",
    "WORKDIR /src",
    "COPY . /src",
    "RUN make -j$(nproc) all",
    "RUN make install DESTDIR=/out",
    "",
    "FROM debian:12-slim",
    "COPY --from=build /out /",
    "RUN ldconfig",
)
STEPS = (
    protocol.StepInfo(1, "build", DOCKERFILE[0], 1, 1, 6),
    protocol.StepInfo(2, "build", DOCKERFILE[1], 2, 2, 6),
    protocol.StepInfo(3, "build", DOCKERFILE[2], 3, 3, 6),
    protocol.StepInfo(4, "build", DOCKERFILE[3], 4, 4, 6),
    protocol.StepInfo(5, "build", DOCKERFILE[4], 5, 5, 6),
    protocol.StepInfo(6, "build", DOCKERFILE[5], 6, 6, 6),
    protocol.StepInfo(7, "1", DOCKERFILE[7], 8, 1, 3),
    protocol.StepInfo(8, "1", DOCKERFILE[8], 9, 2, 3),
    protocol.StepInfo(9, "1", DOCKERFILE[9], 10, 3, 3),
    protocol.StepInfo(10, "", "push layers"),
)
FAILURE = Problem(
    "StepFailed",
    "RUN make -j$(nproc) all",
    why="the command ended with status 2",
    remedy="build it for this platform alone with --platform linux/arm64 to see its whole output",
    where=Location("Dockerfile", 5, 5, DOCKERFILE[2:8], 3),
    log=(
        "cc -O2 -c main.c",
        "main.c:12:10: fatal error: cpuid.h: No such file or directory",
        "make: *** [main.o] Error 1",
    ),
)
TRAP = Problem(
    "DockerfileError",
    "TARGETARCH has a default, which wins over the platform's own value",
    remedy="write ARG TARGETARCH without a default",
    where=Location("Dockerfile", 2, 2),
)
PUSH_REF = "registry.example/team/app:1.4"


def digest(name: str) -> str:
    """Return a digest that is the same on every run."""
    return "sha256:" + random.Random(name).randbytes(32).hex()


def descriptor(name: str, size: int) -> Descriptor:
    """Content that nobody has."""
    return Descriptor(mediatypes.OCI_LAYER_GZIP, digest(name), size)


class Teller:
    """Makes the events of one platform's executor, at times that are scaled by ``pace``."""

    def __init__(self, place: PlatformPlacement, offset: float, pace: float) -> None:
        self.place = place
        self.at = START + offset
        self.pace = pace

    def wait(self, seconds: float) -> None:
        self.at += seconds * self.pace

    def say(self, message: protocol.Message) -> Event:
        return FromExecutor(self.place.platform, message, at=round(self.at, 3))

    def begin(self) -> Iterator[Event]:
        yield events.PlatformStarted(self.place.platform, self.place.node, self.place.how, at=self.at)
        self.wait(0.1)
        yield self.say(protocol.Handshake(protocol.VERSION, "0.1.0", "linux/amd64", "userns+overlay"))
        yield self.say(protocol.Planned(STEPS, self.place.how))

    def step(self, step: int, seconds: float, lines: tuple[str, ...] = (), cached: bool = False) -> Iterator[Event]:
        yield self.say(protocol.Started(step))
        for line in lines:
            self.wait(seconds / (len(lines) + 1))
            yield self.say(protocol.Log(step, line))
        self.wait(seconds / (len(lines) + 1))
        yield self.say(protocol.Finished(step, round(seconds * self.pace, 3), cached))

    def move(self, action: str, name: str, total: int, seconds: float, pieces: int = 10) -> Iterator[Event]:
        for piece in range(1, pieces + 1):
            self.wait(seconds / pieces)
            yield self.say(protocol.Transfer(action, digest(name), total * piece // pieces, total))

    def pull(self) -> Iterator[Event]:
        yield self.say(protocol.Started(1))
        yield from self.move("pull", "base", 49_560_000, 2.0)
        yield self.say(protocol.Finished(1, 2.0))

    def to_make(self) -> Iterator[Event]:
        """Up to the long step."""
        yield from self.begin()
        yield from self.pull()
        yield from self.step(2, 6.0, APT)
        yield from self.step(3, 0.1, cached=True)
        yield from self.step(4, 0.6)

    def rest(self) -> Iterator[Event]:
        yield from self.step(5, 12.0, CC)
        yield from self.step(6, 1.0)
        yield from self.step(7, 0.2, cached=True)
        yield from self.step(8, 0.4)
        yield from self.step(9, 0.3)
        yield self.say(protocol.Started(10))
        yield from self.move("push", "layer-1", 18_200_000, 1.5)
        yield self.say(protocol.Finished(10, 1.5))
        name, size = self.place.platform, 67_800_000
        layers = (descriptor("base", 49_560_000), descriptor(name + "1", 18_200_000))
        manifest = descriptor(name + "m", 1200)
        yield self.say(protocol.Result(manifest, descriptor(name + "c", 900), layers, size, cached=2, ran=7))
        yield events.PlatformEnded(self.place.platform, "built", at=round(self.at, 3))


APT = (
    "Get:1 http://deb.debian.org/debian bookworm InRelease [151 kB]",
    "Get:2 http://deb.debian.org/debian bookworm/main amd64 Packages [8787 kB]",
    "Fetched 8938 kB in 1s (7012 kB/s)",
    "Reading package lists...",
    "The following NEW packages will be installed:",
    "  build-essential ca-certificates cpp cpp-12 dpkg-dev g++ g++-12 gcc gcc-12 git libc6-dev make",
    *(f"Unpacking lib{name} (12.2.0-14) ..." for name in ("gomp1", "itm1", "atomic1", "asan8", "tsan2", "ubsan1")),
    "Setting up build-essential (12.9) ...",
)
CC = tuple(f"cc -O2 -Wall -c -o build/module_{number:02}.o src/module_{number:02}.c" for number in range(1, 31))


def building(places: tuple[PlatformPlacement, ...]) -> Iterator[Event]:
    """Return the first events of every story."""
    yield events.BuildStarted(places, PUSH_REF, (PUSH_REF,), 2, at=START)
    yield events.Resolving("debian:12", at=START + 0.01)
    yield events.Resolving("debian:12-slim", at=START + 0.01)
    yield events.Resolved("debian:12", digest("debian"), at=START + 0.3)
    yield events.Resolved("debian:12-slim", digest("slim"), at=START + 0.4)


def merged(*streams: Iterator[Event]) -> tuple[Event, ...]:
    """Return the events of all streams in the order of their times."""
    return tuple(sorted((event for stream in streams for event in stream), key=lambda event: event.at))


def good(places: tuple[PlatformPlacement, ...] = (AMD64, ARM64)) -> tuple[Event, ...]:
    """All platforms are built, the later ones slower, and published."""
    streams = []
    for number, place in enumerate(places):
        teller = Teller(place, 0.5 + number * 0.2, 1.0 if place.how == "native" else 1.5 + number / 10)
        streams += [teller.to_make(), teller.rest()]
    told = merged(building(places), *streams)
    told += (FromExecutor(places[-1].platform, protocol.BuildWarning(TRAP, "TargetArchDefault"), at=START + 0.7),)
    told = merged(iter(told))
    end = told[-1].at
    return (
        *told,
        events.Publishing("index", 0, 2, at=end + 0.1),
        events.Publishing("index", 1, 2, at=end + 0.3),
        events.Publishing(PUSH_REF, 2, 2, at=end + 0.5),
        events.Published(PUSH_REF, digest("index"), at=end + 0.6),
        events.BuildEnded("built", digest("index"), at=end + 0.7),
    )


IMAGES = {"base": (), "web-3-12": ("base",), "web-3-13": ("base",), "tools": (), "docs": ("web-3-12", "web-3-13")}
"""The images of a release, with those that each is built from."""


def of_release(image: str, place: PlatformPlacement, after: tuple[str, ...] = ()) -> PlatformPlacement:
    """Return ``place`` as one of ``image``."""
    return replace(place, platform=f"{image} {place.platform}", after=after)


def release(places: tuple[PlatformPlacement, ...] = (AMD64, ARM64, EIGHT[2])) -> tuple[Event, ...]:
    """Five images for three platforms; those that are built on others begin when these are there."""
    whole = tuple(of_release(image, replace(each, how=""), after) for image, after in IMAGES.items() for each in places)
    first = (events.BuildStarted(whole, "kanifold.yaml", (PUSH_REF,), at=START),)
    streams: list[Iterator[Event]] = [iter(first)]
    for image, offset in (("base", 0.5), ("tools", 0.6), ("web-3-12", 40.0), ("web-3-13", 40.2), ("docs", 90.0)):
        placed = tuple(of_release(image, each) for each in places)
        streams.append(iter((events.ImagePlaced(placed, at=START + offset - 0.1),)))
        for number, place in enumerate(placed):
            teller = Teller(place, offset + number * 0.2, 1.0 if place.how == "native" else 1.5 + number / 10)
            streams += [teller.to_make(), teller.rest()]
    told = merged(*streams)
    end = told[-1].at
    return (*told, events.Publishing("tags", 0, 5, at=end + 0.1), events.BuildEnded("built", at=end + 0.7))


def failing() -> tuple[Event, ...]:
    """arm64 fails in the long step, and amd64 is cancelled."""
    amd64, arm64 = Teller(AMD64, 0.5, 1.0), Teller(ARM64, 0.5, 1.2)
    told = merged(building((AMD64, ARM64)), amd64.to_make(), arm64.to_make())
    at = told[-1].at
    return (
        *told,
        FromExecutor("linux/arm64", protocol.Started(5), at=at),
        *(FromExecutor("linux/arm64", protocol.Log(5, line, 2), at=at + 0.5) for line in FAILURE.log),
        FromExecutor("linux/arm64", protocol.Finished(5, 0.6, error="the command ended with status 2"), at=at + 0.6),
        FromExecutor("linux/arm64", protocol.Failed(FAILURE), at=at + 0.6),
        events.PlatformEnded("linux/arm64", "failed", at=at + 0.6),
        events.PlatformEnded("linux/amd64", "cancelled", "linux/arm64 failed", at=at + 0.7),
        events.BuildEnded("failed", troubles=(events.Failure(FAILURE, "linux/arm64"),), at=at + 0.8),
    )


def cancelled() -> tuple[Event, ...]:
    """Ctrl-C in the middle."""
    told = tuple(event for event in good() if event.at < START + 8)
    problem = Problem(
        "Interrupted", "the build was interrupted", remedy="run the command again to go on from the cache"
    )
    return (
        *told,
        events.PlatformEnded("linux/amd64", "cancelled", at=START + 8),
        events.PlatformEnded("linux/arm64", "cancelled", at=START + 8.1),
        events.BuildEnded("cancelled", troubles=(events.Failure(problem),), at=START + 8.2),
    )


HOSTILE = (
    "\x1b]0;your title is mine\x07after a title",
    "\x1b[2J\x1b[H\x1b[31mafter clearing the screen",
    "\x1b]52;c;cm0gLXJmIC8=\x07after a clipboard write",
    "[red]rich markup[/red] [link=https://example.org]stays[/link] :smile: as it is",
    "10%\r50%\r100% of a progress bar",
    "\x9b31mafter an 8-bit control sequence",
    "left \u202etfel ot thgir\u202c right",
    "日本語のログは幅が二倍です。" * 10,
    "null \x00 bell \x07 tab\tvertical \x0b form \x0c delete \x7f end",
    "::set-output name=a::b",
    "  ::add-mask::e",
    "before ##[add-mask]e",
    "\x1b[0Ksection_start:1:evil\r\x1b[0Ka GitLab section",
    "a broken character \ufffd and e\u0301 combined, family \U0001f468\u200d\U0001f469\u200d\U0001f467 joined",
    "x" * 5000,
)


def hostile() -> tuple[Event, ...]:
    """A step and a Dockerfile with hostile text."""
    place = PlatformPlacement("linux/amd64", how="native")
    steps = (protocol.StepInfo(1, "build", "RUN printf '\x1b[2J::add-mask::x\u202e' \r\n&& evil", 1, 1, 1),)
    return (
        events.BuildStarted((place,), "x\x1b]0;t\x07y", at=START),
        events.PlatformStarted("linux/amd64", at=START),
        FromExecutor("linux/amd64", protocol.Planned(steps, "native\x1b[1m"), at=START),
        FromExecutor("linux/amd64", protocol.Started(1), at=START),
        *(FromExecutor("linux/amd64", protocol.Log(1, line), at=START + 1 + i / 10) for i, line in enumerate(HOSTILE)),
    )


STORIES = {
    "good": good,
    "eight": lambda: good(EIGHT),
    "failing": failing,
    "cancelled": cancelled,
    "hostile": hostile,
}


def main() -> None:
    """Play a story on this terminal."""
    import argparse
    import sys
    import time

    import msgspec

    from orchestrator.view import open_display

    parser = argparse.ArgumentParser()
    parser.add_argument("story", nargs="?", default="good", choices=STORIES)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--mode", default="auto")
    parser.add_argument("--pause", type=float, metavar="SECONDS", help="there the story waits for a line on stdin")
    options = parser.parse_args()
    pause = START + (options.pause or float("inf"))
    began = time.monotonic()
    with open_display(options.mode, sys.stderr) as display:
        for event in STORIES[options.story]():
            if event.at > pause:
                paused, pause = time.monotonic(), float("inf")
                sys.stdin.readline()
                began += time.monotonic() - paused
            due = began + (event.at - START) / options.speed
            time.sleep(max(0.0, due - time.monotonic()))
            display.emit(msgspec.structs.replace(event, at=time.monotonic()))
    print(time.process_time(), "seconds of processor time", file=sys.stderr)


if __name__ == "__main__":
    main()
