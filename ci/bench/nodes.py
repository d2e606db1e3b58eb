#!/usr/bin/env python3
"""Measures builds on nodes beside those on this machine, over a real sshd in network namespaces. As root.

    .venv/bin/python ci/bench/nodes.py [--kanifold PROGRAM] [--rounds N] [--scale 1.0] [--only sent,nothing,builds]

- ``sent``: bytes that arrive at a node, and that leave it, in a first build, in one with nothing changed, and in one
  with a line added to one of 400 files.
- ``nothing``: a build of which everything is cached, on a node behind a delay, beside the same on this machine.
- ``builds``: workloads of ``workloads.py`` for amd64 and arm64: on this machine, which emulates arm64; on one node,
  which does so, too; and on two, of which one has the arm64 build, which it emulates. All share the processors of this
  machine: the ratios are what nodes cost, not what other machines gain.

All builds are pushed to a registry that every machine reaches; those of ``builds`` are done with --no-cache, with bases
that have been pulled and unpacked. Durations are medians of rounds in which all take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

import bases  # noqa: E402 - of the tests
import debian_registry  # noqa: E402
from hosts import Host, Hosts, running  # noqa: E402
from measuring import Command, FailedError, measure  # noqa: E402
from workloads import TWO, WORKLOADS, Workload, application, steps  # noqa: E402

DELAYS = (0, 1, 50)
"""Milliseconds that are added to a round trip."""
SENT = Workload(
    "sent", "400 sources", TWO[:1], "FROM scratch\nCOPY src /src\n", application, edited="src/part00/module000.py"
)
NOTHING = Workload("nothing", "busybox, 10 tiny RUN steps", TWO[:1], steps(10), lambda *_: None)
BUILDS = ("steps", "base", "copy", "dag")


@dataclass(frozen=True)
class Setting:
    """The command, its home, a registry, and the seconds that a build may take."""

    program: str
    home: Path
    hosts: Hosts
    registry: str
    timeout: float = 900.0

    def build(self, context: Path, platforms: Sequence[str], nodes: Sequence[Host], *more: str) -> float:
        """Build ``context`` on ``nodes``, or on this machine if there are none; return the seconds."""
        ref = f"{self.registry}/out/{context.name}-{'-'.join(each.name for each in nodes) or 'here'}:latest"
        where = [word for each in nodes for word in ("--node", f"{each.name}={each.url}")] or ["--node", "local"]
        words = (
            self.program, "build", str(context), "--platform", ",".join(platforms), "--push", "--tag", ref,
            "--insecure-registry", self.registry, *where, *more,
        )  # fmt: skip
        environment = {
            **self.hosts.environment, "HOME": str(self.home), "KANIFOLD_ROOT": str(self.home / "store"),
            "XDG_CONFIG_HOME": str(self.home / "config"), "XDG_CACHE_HOME": str(self.home / "cache"),
        }  # fmt: skip
        return measure(Command(words, environment, self.home / "log"), timeout=self.timeout).seconds


def moved(host: Host) -> tuple[int, int]:
    """Return the bytes that have come to ``host`` and that have left it."""
    (link,) = json.loads(host.run("ip", "-s", "-j", "link", "show", "dev", "eth0").stdout)
    return link["stats64"]["rx"]["bytes"], link["stats64"]["tx"]["bytes"]


def sent(setting: Setting, node: Host, folder: Path) -> Iterator[str]:
    """Yield lines about the bytes between the machines."""
    context = SENT.make(folder, setting.registry, 1.0)
    setting.build(NOTHING.make(folder / "warm", setting.registry, 1.0), TWO[:1], (node,))  # kanifold is there now
    for name in ("first", "nothing changed", "a line added", "nothing changed"):
        if name == "a line added":
            SENT.change(context)
        before = moved(node)
        seconds = setting.build(context, TWO[:1], (node,))
        rx, tx = (after - old for after, old in zip(moved(node), before, strict=True))
        yield f"{name:20}{rx:>12,} B to the node{tx:>12,} B from it{seconds:8.2f} s"


def nothing(setting: Setting, node: Host, folder: Path, rounds: int) -> Iterator[str]:
    """Yield lines about cached builds."""
    context = NOTHING.make(folder, setting.registry, 1.0)
    for delay in DELAYS:
        if delay:
            node.slow_down(delay)
        there, here = [], []
        for number in range(rounds + 1):
            found = setting.build(context, TWO[:1], (node,)), setting.build(context, TWO[:1], ())
            if number:  # the first builds
                there.append(found[0])
                here.append(found[1])
        yield f"delay {delay:3} ms       {_beside(there, here)}"
        if delay:
            node.full_speed()


def builds(setting: Setting, near: Host, arm: Host, folder: Path, rounds: int, scale: float) -> Iterator[str]:
    """Yield lines about workloads."""
    ways: dict[str, tuple[tuple[Host, ...], tuple[str, ...]]] = {
        "here": ((), TWO),
        "one node": ((near,), TWO),
        "two nodes": ((near, arm), (f"{TWO[0]}={near.name}", f"{TWO[1]}={arm.name}")),
    }
    for workload in (each for each in WORKLOADS if each.name in BUILDS):
        context = workload.make(folder, setting.registry, scale)
        taken: dict[str, list[float]] = {name: [] for name in ways}
        try:
            for number in range(rounds + 1):
                for name, (nodes, platforms) in ways.items():
                    seconds = setting.build(context, platforms, nodes, "--no-cache")
                    if number:  # the first pulls the bases
                        taken[name].append(seconds)
        except FailedError as error:
            yield f"{workload.name:10} failed: {error}"
            continue
        for name in tuple(ways)[1:]:
            yield f"{workload.name:10}{name:11}{_beside(taken[name], taken['here'])}"


def _beside(found: Sequence[float], local: Sequence[float]) -> str:
    ratios = [each / other for each, other in zip(found, local, strict=True)]
    return (
        f"{statistics.median(found):7.2f} s, here {statistics.median(local):6.2f} s: "
        f"{statistics.median(ratios):5.2f} times ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures builds on nodes.")
    parser.add_argument("--kanifold", default=str(ROOT / ".venv" / "bin" / "kanifold"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of what workloads copy")
    parser.add_argument("--only", default="sent,nothing,builds")
    return parser.parse_args()


def main() -> int:
    """Measure what is asked for, and print it."""
    arguments = _arguments()
    wanted = arguments.only.split(",")
    with tempfile.TemporaryDirectory(prefix="bench.") as name, running(Path(name) / "hosts") as hosts:
        folder = Path(name)
        home = folder / "home"
        home.mkdir()
        with debian_registry.serve(folder / "registry", hosts.address) as registry:
            _push_bases(registry, folder)
            setting = Setting(arguments.kanifold, home, hosts, registry)
            near = hosts.add("near")
            if "sent" in wanted:
                _print("sent", sent(setting, near, folder / "a"))
            if "nothing" in wanted:
                _print("nothing", nothing(setting, near, folder / "b", arguments.rounds))
            if "builds" in wanted:
                arm = hosts.add("arm")
                _print("builds", builds(setting, near, arm, folder / "c", arguments.rounds, arguments.scale))
    return 0


def _push_bases(registry: str, folder: Path) -> None:
    for name in ("busybox", "debian"):
        layout = folder / name
        bases.make_layout(name, layout, TWO)
        command = ["skopeo", "copy", "--quiet", "--all", "--dest-tls-verify=false", f"oci:{layout}:latest"]
        subprocess.run([*command, f"docker://{registry}/base/{name}:latest"], check=True, capture_output=True)


def _print(title: str, lines: Iterator[str]) -> None:
    print(f"-- {title}", flush=True)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
