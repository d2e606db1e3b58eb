"""kanifold beside other builders: the same builds, on one file system, against one registry, round by round.

Every round builds every workload with every builder in a store that begins empty, and then again with nothing changed,
and with a line changed, where the workload says so. What comes out is checked in the registry before a time counts.
Everything lives in one temporary directory that goes in the end. Standard library only, except for
containers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import bases
import builders
import debian_registry
import mapped
import phases
import published
import report
import table
from builders import Build, Builder, Kanifold, Traced
from mapped import Handlers
from measuring import FailedError, Measured
from workloads import TWO, WORKLOADS, Workload


@dataclass(frozen=True)
class Settings:
    """What was asked for on the command line."""

    workloads: tuple[Workload, ...]
    rounds: int
    scale: float
    timeout: float
    repeats: int
    builders: frozenset[str]
    """Those that were asked for by name."""
    tidy: bool
    """Whether stores are removed at once, and not at the end."""


@dataclass(frozen=True)
class Comparison:
    """The builders of a run, and the part of the page that their table is for; "" for the page's own."""

    part: str
    builders: tuple[Builder, ...]

    @property
    def traced(self) -> tuple[Traced, ...]:
        """Those that say where the time went: the first, if it can."""
        return tuple(each for each in self.builders[:1] if isinstance(each, Traced))


def say(text: str) -> None:
    """Progress, beside the table."""
    print(text, file=sys.stderr, flush=True)


# -- the world of a run -----------------------------------------------------------------------------------------------


def push_bases(registry: str, folder: Path, wanted: Sequence[Workload]) -> None:
    """Put the bases that ``wanted`` build on into ``registry``, as ``base/NAME``."""
    for name in ("busybox", "debian"):
        if not any(f"base/{name}" in each.dockerfile for each in wanted):
            continue
        layout = folder / name
        bases.make_layout(name, layout, TWO)
        copy = ["skopeo", "copy", "--quiet", "--all", "--dest-tls-verify=false"]
        where = f"docker://{registry}/base/{name}:latest"
        subprocess.run([*copy, f"oci:{layout}:latest", where], check=True, capture_output=True)
        shutil.rmtree(layout)


def make_contexts(settings: Settings, registry: str, folder: Path) -> dict[str, Path]:
    """The build contexts by workload, made by another process: what this one takes shows in its children's peaks."""
    with ProcessPoolExecutor(1) as maker:
        return {
            each.name: maker.submit(each.make, folder, registry, settings.scale).result() for each in settings.workloads
        }


# -- measuring --------------------------------------------------------------------------------------------------------


def rounds(
    settings: Settings, compared: Comparison, registry: str, contexts: Mapping[str, Path], folder: Path
) -> Iterator[tuple[str, str, Measured]]:
    """Everything that is measured, as (row, builder, what it took); failures are told and left out."""
    for number in range(settings.rounds):
        for workload in settings.workloads:
            chosen = _chosen(settings, workload, compared)
            for turn in range(len(chosen)):
                builder = chosen[(turn + number) % len(chosen)]
                ref = f"{registry}/out/{builder.name}-{workload.name}-{number}:latest"
                build = Build(contexts[workload.name], workload.platforms, ref, settings.timeout)
                try:
                    yield from _session(settings, workload, builder, build, folder)
                except FailedError as error:
                    say(f"  {workload.name}: {builder.name} failed: {error}")


def _session(
    settings: Settings, workload: Workload, builder: Builder, build: Build, folder: Path
) -> Iterator[tuple[str, str, Measured]]:
    home = Path(tempfile.mkdtemp(prefix=f"{builder.name}.", dir=folder))
    try:
        with builder.session(home, build.registry) as session:
            os.sync()  # what others have written is not this one's to wait for
            measured = session.build(build)
            published.check(build.ref, build.platforms)
            if workload.cold:
                yield workload.name, builder.name, _told(workload.name, builder, measured)
            for _ in range(settings.repeats if workload.warm else 0):
                session.prepare_again(build)
                os.sync()
                measured = session.build(build)
                published.check(build.ref, build.platforms)
                yield f"{workload.name}, again", builder.name, _told(f"{workload.name}, again", builder, measured)
            for _ in range(settings.repeats if workload.edited else 0):
                workload.change(build.context)
                session.prepare_again(build)
                os.sync()
                measured = session.build(build)
                published.check(build.ref, build.platforms)
                yield f"{workload.name}, changed", builder.name, _told(f"{workload.name}, changed", builder, measured)
    finally:
        if settings.tidy or not workload.usual:
            shutil.rmtree(home, ignore_errors=True)  # gigabytes
        # The others stay until the end of the run: ext4 does not hand out the inodes of what was deleted in the last
        # minutes, and passes over them one by one, so that whoever builds beside them is measured searching.


def profiles(
    settings: Settings, traced: Sequence[Traced], registry: str, contexts: Mapping[str, Path], folder: Path
) -> Iterator[str]:
    """For every workload, the phases of a build of ours, and of a warm one; not among the measured ones."""
    for workload in settings.workloads:
        ref = f"{registry}/out/traced-{workload.name}"
        build = Build(contexts[workload.name], workload.platforms, ref, settings.timeout)
        titles = [workload.name, f"{workload.name}, again"][: 2 if workload.warm and settings.repeats else 1]
        for builder in traced:
            by = f" ({builder.name})" if len(traced) > 1 else ""
            with tempfile.TemporaryDirectory(prefix="traced.", dir=folder, ignore_cleanup_errors=True) as home:
                try:
                    for title, trace in zip(titles, builder.traces(Path(home), build, len(titles)), strict=True):
                        yield f"{title}{by}: {workload.about}\n\n{phases.summary(json.loads(trace.read_text()))}"
                except FailedError as error:
                    say(f"  {workload.name}: no trace: {error}")


def _told(row: str, builder: Builder, measured: Measured) -> Measured:
    load = os.getloadavg()[0]
    say(f"  {row:<16} {builder.name:<11}{measured.seconds:8.2f} s {measured.memory >> 20:6} MB  (load {load:.1f})")
    return measured


# -- the command ------------------------------------------------------------------------------------------------------


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ci/bench/run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kanifold", required=True, help="the installed command")
    parser.add_argument("--against", metavar="PROGRAM", help="another kanifold to compare with, as the builder before")
    names = ", ".join(each.name for each in WORKLOADS)
    usual = ", ".join(each.name for each in WORKLOADS if each.usual)
    parser.add_argument("--only", metavar="LIST", default="", help=f"workloads, of {names} (default: {usual})")
    parser.add_argument("--all", action="store_true", help="all workloads")
    parser.add_argument(
        "--builders",
        metavar="LIST",
        default="",
        help="of kanifold, buildah, buildkit, kaniko (default: those that are found; for unusual workloads kanifold)",
    )
    parser.add_argument(
        "--isolation",
        metavar="LIST",
        default="",
        help="kanifold alone, in these isolation modes; `plain`: the usual mode without an overlay. The first is what "
        "the others are compared with",
    )
    parser.add_argument(
        "--container", metavar="NAME", default="", help="kanifold and kaniko in containers (ci/containers)"
    )
    parser.add_argument("--peers", metavar="DIR", action="append", default=[], help="where to look besides PATH")
    parser.add_argument("--rounds", type=_positive, default=3, help="how often (default: 3)")
    parser.add_argument(
        "--again", type=_count, default=2, help="rebuilds with nothing changed in each round (default: 2)"
    )
    parser.add_argument("--quick", action="store_true", help="one round of a twentieth of the size: does it work?")
    parser.add_argument("--timeout", type=_positive, default=600, help="seconds that a build may take (default: 600)")
    parser.add_argument("--tmp", metavar="DIR", help="where everything is made and removed (default: $TMPDIR)")
    parser.add_argument(
        "--tidy",
        action="store_true",
        help="remove each store at once: takes less room, and on ext4 slows down the next",
    )
    parser.add_argument(
        "--part",
        metavar="NAME",
        default="",
        help="the part of docs/performance.md that --isolation or --container is for",
    )
    parser.add_argument("--docs", action="store_true", help="put the results into docs/performance.md as well")
    parser.add_argument("--out", metavar="DIR", default="out/bench", help="for the results (default: out/bench)")
    return parser.parse_args()


def _count(value: str) -> int:
    if not value.isdecimal():
        raise argparse.ArgumentTypeError("it is no number")
    return int(value)


def _positive(value: str) -> int:
    found = _count(value)
    if not found:
        raise argparse.ArgumentTypeError("it is 1 at least")
    return found


def _settings(arguments: argparse.Namespace) -> Settings:
    """What the command line asks for. Raises ``FailedError``."""
    every = {each.name for each in WORKLOADS}
    wanted = every if arguments.all else set(filter(None, arguments.only.split(",")))
    unknown = wanted - every
    if unknown:
        raise FailedError(f"no such workload: {', '.join(sorted(unknown))}")
    if arguments.isolation and arguments.container:
        raise FailedError("--isolation and --container are different comparisons: ask for one")
    if arguments.isolation:
        builders.check_modes(_modes(arguments))
    if arguments.part and not (arguments.isolation or arguments.container):
        raise FailedError("--part is for a comparison: --isolation or --container")
    return Settings(
        workloads=tuple(each for each in WORKLOADS if (each.name in wanted if wanted else each.usual)),
        rounds=1 if arguments.quick else arguments.rounds,
        scale=0.05 if arguments.quick else 1.0,
        timeout=arguments.timeout,
        repeats=arguments.again,
        builders=frozenset(filter(None, arguments.builders.split(","))),
        tidy=arguments.tidy,
    )


def _modes(arguments: argparse.Namespace) -> list[str]:
    return [*dict.fromkeys(filter(None, arguments.isolation.split(",")))]


def _chosen(settings: Settings, workload: Workload, compared: Comparison) -> list[Builder]:
    """Who builds ``workload``."""
    if settings.builders:
        return [each for each in compared.builders if each.name in settings.builders]
    return [each for each in compared.builders if workload.usual or compared.part or isinstance(each, Kanifold)]


@contextlib.contextmanager
def _handlers() -> Iterator[Handlers | None]:
    """Where other builders are run; None when none can run here."""
    with contextlib.ExitStack() as stack:
        handlers: Handlers | None = None
        try:
            handlers = stack.enter_context(mapped.handlers(TWO))
        except RuntimeError as problem:
            say(f"no other builders: {problem}")
        yield handlers


def _comparison(arguments: argparse.Namespace, handlers: Handlers | None) -> Comparison:
    """What the command line asks for. Raises ``FailedError``."""
    program = str(Path(arguments.kanifold).resolve())
    if arguments.isolation:
        return Comparison(arguments.part or "modes", tuple(builders.modes(program, _modes(arguments))))
    if arguments.container:
        import contained  # with the modules of the project that make containers

        kind = contained.environment(arguments.container)
        return Comparison(
            arguments.part or "containers", tuple(contained.find(program, kind, arguments.peers, handlers))
        )
    earlier = [Kanifold(str(Path(arguments.against).resolve()), "before")] if arguments.against else []
    others = builders.find(arguments.peers, handlers.words) if handlers is not None else ()
    return Comparison("", (Kanifold(program), *earlier, *others))


def main() -> int:
    try:
        return _run(_arguments())
    except FailedError as error:
        sys.exit(f"ci/bench/run: {error}")


def _run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks for. Raises ``FailedError``."""
    settings = _settings(arguments)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    taken: dict[str, dict[str, list[Measured]]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="kanifold-bench.", dir=arguments.tmp, ignore_cleanup_errors=True) as name,
        _handlers() as handlers,
    ):
        folder = Path(name)
        folder.chmod(0o755)
        compared = _comparison(arguments, handlers)
        if arguments.docs:
            report.check_page(compared.part)
        missing = settings.builders - {each.name for each in compared.builders}
        if missing:
            raise FailedError(f"no such builder here: {', '.join(sorted(missing))}")
        for each in compared.builders:
            say(f"{each.name}: {each.version}")
        with debian_registry.serve(folder / "registry") as registry:
            push_bases(registry, folder, settings.workloads)
            contexts = make_contexts(settings, registry, folder / "contexts")
            for row, builder, measured in rounds(settings, compared, registry, contexts, folder):
                taken.setdefault(row, {}).setdefault(builder, []).append(measured)
            profile = "\n\n".join(profiles(settings, compared.traced, registry, contexts, folder))
    if not taken:
        raise FailedError("nothing was built")
    rows = table.rows(taken, WORKLOADS)
    names = [each.name for each in compared.builders if any(each.name in row.times for row in rows)]
    if arguments.isolation:
        shown = f"{table.ratios(rows, names)}\n\n{table.processors(rows, names)}"
    elif compared.part:
        shown = f"{table.markdown(rows, names)}\n\n{table.processors(rows, names[::-1])}"
    else:
        shown = table.markdown(rows, names)
    print(shown)
    versions = {each.name: each.version for each in compared.builders if each.name in names}
    about = report.machine(versions, settings.rounds)
    if compared.part:
        parts = report.write_part(out, compared.part, rows, shown, profile, about)
    else:
        parts = report.write(out, rows, names, profile, about)
    say(f"written to {out}: {', '.join(parts)}")
    if arguments.docs:
        report.publish(out, compared.part)
        say(f"and into {report.PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
