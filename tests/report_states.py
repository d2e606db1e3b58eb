"""States of builds, for tests of reports."""

from __future__ import annotations

from executor import protocol
from executor.image.manifest import Descriptor
from orchestrator.view import events
from orchestrator.view.build_state import BuildState, fold
from platforms.errors import Location, Problem

DIGEST = "sha256:" + "ab12" * 16
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x1b[31m</style></title>"
SOURCE = ("FROM debian AS base", "RUN apt-get update", "COPY . /src", "RUN make -C /src", "CMD ['/app']")
STAGES = ("base", "deps", "build", "test", "docs", "final")
NEEDS = ((), ("base",), ("deps",), ("build",), ("base",), ("base", "build", "docs"))


def descriptor(number: int) -> Descriptor:
    return Descriptor(
        "application/vnd.oci.image.layer.v1.tar+gzip", f"sha256:{number:064x}", number * 7_654_321 % 90_000_000
    )


def state(steps: int = 24, *, outcome: events.Outcome = "built", hostile: bool = False) -> BuildState:
    """The state at the end of a build of three platforms with ``steps`` steps each."""
    platforms = ("linux/amd64", "linux/arm64", "linux/riscv64")
    name = HOSTILE if hostile else "registry.example.com/team/app:1.4.2"
    found = BuildState()

    def tell(event: events.Event) -> None:
        nonlocal found
        found = fold(found, event)

    places = tuple(events.PlatformPlacement(each, "", "native" if "amd64" in each else "qemu") for each in platforms)
    tell(events.BuildStarted(at=100.0, platforms=places, name=name, tags=(name,)))
    for shift, platform in enumerate(platforms):
        _platform(tell, platform, shift, steps, outcome, hostile=hostile)
    where = Location("Dockerfile", 4, 4, SOURCE, 1)
    warning = Problem(
        "Warning",
        HOSTILE if hostile else "the stage name 'Build' is not in lower case",
        "why it is so",
        "rename it",
        where,
    )
    tell(events.WarningRaised(at=150.0, problem=warning, rule="StageNameCasing"))
    troubles: tuple[events.Failure, ...] = ()
    if outcome != "built":
        log = ("gcc -c main.c", "main.c:3: error: expected ';'" if not hostile else HOSTILE, "make: *** [all] Error 1")
        failed = Problem("StepFailed", "RUN make -C /src failed", "it exited with 2", "see its output", where, log)
        troubles = (events.Failure(failed, platforms[1]),)
    else:
        tell(events.Published(at=160.0, ref=name, digest=DIGEST))
    tell(events.BuildEnded(at=161.5, outcome=outcome, digest=DIGEST if outcome == "built" else "", troubles=troubles))
    return found


def _platform(
    tell: events.Emit, platform: str, shift: int, steps: int, outcome: events.Outcome, *, hostile: bool
) -> None:
    def say(at: float, message: protocol.Message) -> None:
        tell(events.FromExecutor(at=at, platform=platform, message=message))

    tell(events.PlatformStarted(at=100.4 + shift, platform=platform))
    infos = tuple(
        protocol.StepInfo(
            at, STAGES[at * len(STAGES) // steps],
            HOSTILE if hostile and at == 1 else f"RUN --mount=type=cache,target=/root/.cache make target-{at} A=b-{at}",
            at + 2, at % (steps // len(STAGES) or 1) + 1, steps // len(STAGES) or 1,
        )
        for at in range(steps)
    )  # fmt: skip
    stages = tuple(
        protocol.StageInfo(*each, ("debian:12",) * (not each[1])) for each in zip(STAGES, NEEDS, strict=True)
    )
    say(100.5 + shift, protocol.Planned(infos, "", stages))
    say(101.0 + shift, protocol.Transfer(protocol.Action.PULL, "sha256:base", 20_000_000, 48_000_000))
    say(106.0 + shift, protocol.Transfer(protocol.Action.PULL, "sha256:base", 48_000_000, 48_000_000))
    at = 102.0 + shift
    for step in range(steps):
        cached = step % 3 == 0
        seconds = 0.01 if cached else (step * 37 % 11 + 1) * 40 / steps / 6
        failing = outcome != "built" and platform == "linux/arm64" and step == steps - 1
        say(at, protocol.Started(step))
        at += seconds
        missed = (
            ""
            if cached
            else (
                "changed: the environment, what it mounts",
                "changed: the files below",
                "it was not made before, as it is written",
            )[step % 3]
        )
        say(at, protocol.Finished(step, seconds, cached, error="it exited with 2" if failing else "", missed=missed))
    say(at, protocol.Transfer(protocol.Action.PUSH, "sha256:layer", 9_000_000, 9_000_000))
    layers = tuple(descriptor(number + 1) for number in range(7))
    size = sum(each.size for each in layers)
    if outcome == "built":
        say(
            at + 1,
            protocol.Result(
                descriptor(900 + shift), descriptor(800), layers, size, cached=steps // 3, ran=steps - steps // 3
            ),
        )
    tell(events.PlatformEnded(at=at + 1.2, platform=platform, outcome=outcome))
