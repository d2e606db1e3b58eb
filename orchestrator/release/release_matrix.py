"""``kanifold matrix`` of a release: a job for each platform of each image, on a runner where that is native."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from orchestrator.index import matrix
from orchestrator.index.matrix import Labels, RunnerJob
from orchestrator.release import release_jobs
from orchestrator.release.release_command import plan_of
from orchestrator.release.release_jobs import FOLDER, ReleaseJob
from orchestrator.view.stdout import print_json, print_line
from platforms import parsing
from platforms.errors import UsageError
from platforms.platform import Platform


class RunnerLabels(msgspec.Struct, frozen=True):
    """The runners that there are."""

    known: Mapping[Platform, Labels]
    emulating: Labels
    """The labels of the runner for platforms that have none."""


class _RunnerJob(msgspec.Struct, frozen=True):
    """A job of a release on a runner."""

    job: ReleaseJob
    runner: RunnerJob
    command: tuple[str, ...]


class _ReleaseMatrix(msgspec.Struct, frozen=True):
    """The jobs of a release."""

    jobs: tuple[_RunnerJob, ...]
    join: tuple[str, ...]
    levels: int


def show(labels: RunnerLabels, file: str, options: Sequence[str], form: str, level: int | None) -> None:
    """Print the jobs of the release ``file`` ("": kanifold.yaml) in the format ``form``, of ``level`` or of all.

    ``options`` are further words of each ``kanifold release``. Raises ``UsageError``.
    """
    found = _matrix(labels, file, options)
    if level is not None:
        if level >= found.levels:
            raise UsageError(f"--level {level}: the release has the levels 0 to {found.levels - 1}")
        found = msgspec.structs.replace(found, jobs=tuple(each for each in found.jobs if each.job.level == level))
    if form == "json":
        print_json(_document(found))
        return
    for line in (_github(found) if form == "github" else _gitlab(found)).split("\n"):
        print_line(line)


def _matrix(labels: RunnerLabels, file: str, options: Sequence[str]) -> _ReleaseMatrix:
    words = [*(["--file", file] if file else []), *options]
    jobs = release_jobs.jobs(plan_of(words, os.environ).selected)
    if not jobs:
        raise UsageError("the release has no jobs", why="a job pushes, and no image has tags")
    found = []
    for job in jobs:
        (runner,) = matrix.jobs((parsing.parse(job.platform),), labels.known, labels.emulating)
        found.append(_RunnerJob(job, runner, ("kanifold", "release", "--job", job.name, *words)))
    return _ReleaseMatrix(tuple(found), ("kanifold", "release", "--join", *words), max(each.level for each in jobs) + 1)


def _github(found: _ReleaseMatrix) -> str:
    """Return one line of JSON for ``strategy.matrix`` (``fromJSON``)."""
    include = [
        {
            "name": each.job.name,
            "image": each.job.image,
            "platform": each.job.platform,
            "level": each.job.level,
            "runner": matrix.written(each.runner.runner),
            "metadata": each.job.file,
            "emulated": each.runner.emulated,
        }
        for each in found.jobs
    ]
    return json.dumps({"include": include}, separators=(",", ":"))


def _gitlab(found: _ReleaseMatrix) -> str:
    """Return the child pipeline as YAML, with a stage for each level."""
    import yaml

    levels = sorted({each.job.level for each in found.jobs})
    pipeline: dict[str, Any] = {"stages": [*(f"build {level}" for level in levels), "publish"]}
    for each in found.jobs:
        report = f"--report=junit={matrix.REPORTS}/{each.job.name}.xml"
        pipeline[f"build {each.job.name}"] = {
            "extends": matrix.TEMPLATE,
            "stage": f"build {each.job.level}",
            "tags": list(each.runner.runner),
            "script": [f"mkdir -p {matrix.REPORTS}", shlex.join((*each.command, report))],
            "artifacts": {
                "when": "always",
                "paths": [f"{FOLDER}/"],
                "reports": {"junit": f"{matrix.REPORTS}/*.xml"},
            },
        }
    pipeline["publish release"] = {
        "extends": matrix.TEMPLATE,
        "stage": "publish",
        "script": [shlex.join(found.join)],
    }
    return str(yaml.safe_dump(pipeline, sort_keys=False, allow_unicode=True, width=10_000)).rstrip("\n")


def _document(found: _ReleaseMatrix) -> dict[str, Any]:
    """Return the document of ``--format json``: the jobs with their commands."""
    return {
        "schemaVersion": matrix.SCHEMA,
        "jobs": [
            {
                "name": each.job.name,
                "image": each.job.image,
                "platform": each.job.platform,
                "level": each.job.level,
                "runner": matrix.written(each.runner.runner),
                "emulated": each.runner.emulated,
                "metadata": f"{FOLDER}/{each.job.file}",
                "command": list(each.command),
            }
            for each in found.jobs
        ],
        "join": list(found.join),
    }
