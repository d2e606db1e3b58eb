"""``kanifold matrix``: the jobs of a CI system that build the platforms of one image, each where it runs natively.

A platform for which there is a runner has a job of its own there; 32-bit x86 runs on x86-64. All others are built in
one job, emulated. Each job pushes by digest and leaves its metadata in a file; the join has the platforms in the order
that was asked for.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from orchestrator.project_file import NAME
from platforms import parsing
from platforms.errors import UsageError
from platforms.platform import Platform

SCHEMA: Final = 1
"""Version of the JSON document: raised when a key is removed or changes its meaning."""
VARIABLE: Final = "KANIFOLD_RUNNERS"
"""The environment variable with the runners: ``linux/amd64=LABEL,linux/arm64=LABEL``."""
FOLDER: Final = "kanifold-metadata"
"""The directory in which jobs leave their metadata."""
REPORTS: Final = "kanifold-reports"
"""The directory in which GitLab's jobs leave their reports."""
TEMPLATE: Final = ".kanifold"
"""The hidden GitLab job that the printed ones extend: an image with kanifold in it, credentials, and so on."""


Labels = tuple[str, ...]
"""The labels of a runner; a job runs on one that has all of them."""


class RunnerJob(msgspec.Struct, frozen=True):
    """A job that builds some platforms on one runner."""

    name: str
    runner: Labels
    platforms: tuple[Platform, ...]
    emulated: bool
    metadata: str
    """The file, below ``FOLDER``, that its metadata is written to."""


class Matrix(msgspec.Struct, frozen=True):
    """The jobs of one image."""

    jobs: tuple[RunnerJob, ...]
    platforms: tuple[Platform, ...]
    context: str
    tags: tuple[str, ...]
    options: tuple[str, ...] = ()
    """Additional arguments of ``kanifold build``."""

    def build(self, job: RunnerJob) -> list[str]:
        """Return the command of ``job``."""
        names = [word for tag in self.tags for word in ("-t", tag)]
        return [
            "kanifold", "build", _argument(self.context), "--platform", _list(job.platforms), *names,
            "--push-by-digest", "--metadata-file", f"{FOLDER}/{job.metadata}", *self.options,
        ]  # fmt: skip

    def join(self) -> list[str]:
        """Return the command that joins the images of the jobs."""
        names = [word for tag in self.tags for word in ("-t", tag)]
        return ["kanifold", "index", "create", *names, "--metadata", FOLDER, "--platform", _list(self.platforms)]


def _argument(context: str) -> str:
    """Return ``context`` as the argument of a command that does not take it for an option."""
    return f"./{context}" if context.startswith("-") and context != "-" else context


def runners(
    flags: Sequence[str], variable: str, project: Iterable[tuple[Platform, Labels]] = ()
) -> dict[Platform, Labels]:
    """Return the labels of the runner for each platform.

    Flags and the variable have ``PLATFORM=LABEL``; flags override the variable, and that overrides ``project``.
    """
    found: dict[Platform, Labels] = {}
    for source, text in (
        *((f"--runner {each}", each) for each in flags),
        *((VARIABLE, each) for each in _words(variable)),
    ):
        name, equals, label = text.partition("=")
        if not equals or not label.strip():
            raise UsageError(f"{source}: {text!r} is not PLATFORM=LABEL", remedy="such as linux/arm64=ubuntu-24.04-arm")
        found.setdefault(parsing.parse(name.strip()), (label.strip(),))
    for platform, labels in project:
        found.setdefault(platform, labels)
    return found


def jobs(
    platforms: Sequence[Platform], known: Mapping[Platform, Labels], emulating: Labels = ()
) -> tuple[RunnerJob, ...]:
    """Return the jobs for ``platforms`` on ``known`` runners; platforms without one are emulated on ``emulating``.

    Raises ``UsageError`` when there is no runner to emulate on.
    """
    native = {platform: labels for platform in platforms if (labels := _runner(platform, known))}
    others = tuple(platform for platform in platforms if platform not in native)
    groups: list[tuple[tuple[Platform, ...], Labels, bool]]
    groups = [((platform,), labels, False) for platform, labels in native.items()]
    if others:
        labels = emulating or known.get(Platform("linux", "amd64")) or next(iter(known.values()), ())
        if not labels:
            raise UsageError(
                f"there is no runner for {_list(others)}",
                why="nothing says which runners there are",
                remedy=f"give --runner PLATFORM=LABEL, set {VARIABLE}, or write `runners` or `emulate-on` into {NAME}",
            )
        groups.append((others, labels, True))
    return tuple(
        RunnerJob(name := _name(each, emulated), labels, each, emulated, f"{name}.json")
        for each, labels, emulated in groups
    )


def github(matrix: Matrix) -> str:
    """Return one line of JSON for ``strategy.matrix`` (``fromJSON``)."""
    include = [
        {
            "name": each.name,
            "runner": written(each.runner),
            "platform": _list(each.platforms),
            "metadata": each.metadata,
            "emulated": each.emulated,
            "annotations": "errors" if number else "all",  # warnings are the same in all jobs
        }
        for number, each in enumerate(matrix.jobs)
    ]
    return json.dumps({"include": include}, separators=(",", ":"))


def gitlab(matrix: Matrix) -> str:
    """Return the child pipeline as YAML. Raises ``UsageError`` without tags: they are part of the commands."""
    import yaml

    if not matrix.tags:
        raise UsageError("--format gitlab prints commands, which push", remedy="name the image with --tag REF")
    pipeline: dict[str, Any] = {"stages": ["build", "index"]}
    for each in matrix.jobs:
        pipeline[f"build {each.name}"] = {
            "extends": TEMPLATE,
            "stage": "build",
            "tags": list(each.runner),
            "script": [
                f"mkdir -p {FOLDER} {REPORTS}",
                shlex.join(
                    [
                        *matrix.build(each),
                        f"--report=junit={REPORTS}/{each.name}.xml",
                        f"--report=codequality={REPORTS}/{each.name}.json",
                    ]
                ),
            ],
            "artifacts": {
                "when": "always",
                "paths": [f"{FOLDER}/"],
                "reports": {"junit": f"{REPORTS}/*.xml", "codequality": f"{REPORTS}/*.json"},
            },
        }
    pipeline["create index"] = {"extends": TEMPLATE, "stage": "index", "script": [shlex.join(matrix.join())]}
    return str(yaml.safe_dump(pipeline, sort_keys=False, allow_unicode=True, width=10_000)).rstrip("\n")


def document(matrix: Matrix) -> dict[str, Any]:
    """Return the document of ``--format json``: the jobs with their commands."""
    return {
        "schemaVersion": SCHEMA,
        "platforms": [str(each) for each in matrix.platforms],
        "jobs": [
            {
                "name": each.name,
                "runner": written(each.runner),
                "platforms": [str(platform) for platform in each.platforms],
                "emulated": each.emulated,
                "metadata": f"{FOLDER}/{each.metadata}",
                "command": matrix.build(each),
            }
            for each in matrix.jobs
        ],
        "join": matrix.join(),
    }


def written(labels: Labels) -> str | list[str]:
    """Return ``labels`` as ``runs-on`` takes them: a single one as a text."""
    return labels[0] if len(labels) == 1 else list(labels)


def _runner(platform: Platform, known: Mapping[Platform, Labels]) -> Labels:
    """Return the labels of the runner on which ``platform`` needs no emulator; () for none."""
    if platform in known:
        return known[platform]
    if platform.architecture in ("386", "amd64"):  # levels of amd64 are its processor's, as is 32-bit x86
        return known.get(Platform(platform.os, "amd64"), ())
    return ()


def _name(platforms: Sequence[Platform], emulated: bool) -> str:
    return "emulated" if emulated and len(platforms) > 1 else str(platforms[0]).replace("/", "-")


def _list(platforms: Sequence[Platform]) -> str:
    return ",".join(map(str, platforms))


def _words(text: str) -> list[str]:
    return [each for each in text.replace("\n", ",").split(",") if each.strip()]
