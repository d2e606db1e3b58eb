"""The jobs that build a release in a CI system: one for each platform of each image.

A job pushes by digest and leaves its metadata in a file. One that depends on another image uses what its job has built,
if the metadata is there, and otherwise builds that image itself. ``level`` is a job's place in the order: 0 for those
that depend on none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec.structs import replace

from executor.dockerfile.suggestions import hint
from executor.image.digest import check_digest
from executor.registry import reference
from orchestrator import ci_run, metadata_file, pin_lock
from orchestrator.release import build_order
from orchestrator.release.build_order import Only, SelectedImages
from orchestrator.release.model import Release, ReleaseImage
from platforms import decoding, regular
from platforms.errors import ArchiveError, StoreError, UsageError, printable
from platforms.paths import below

FOLDER: Final = "kanifold-metadata"
"""The directory in which jobs leave their metadata."""
_KEY: Final = "kanifold.release"
_LIMIT: Final = 1 << 20
"""Maximum size of a file of metadata in bytes."""


class ReleaseJob(msgspec.Struct, frozen=True):
    """A job: one platform of one image."""

    image: str
    platform: str
    level: int = 0

    @property
    def name(self) -> str:
        """``web.linux-arm64``."""
        return f"{self.image}.{self.platform.replace('/', '-')}"

    @property
    def file(self) -> str:
        """The file, in ``FOLDER``, that its metadata is written to."""
        return f"{self.name}.json"


class JobResult(msgspec.Struct, frozen=True):
    """What the metadata of a job says."""

    job: ReleaseJob
    digest: str
    """That of the manifest."""
    names: tuple[str, ...]
    """The names of the image, in whose repositories it is."""
    built_from: Mapping[str, str]
    """The digests of the manifests of the images of the release that it is built from, by name."""
    pins: Mapping[str, str]
    run: str


def jobs(selected: SelectedImages) -> tuple[ReleaseJob, ...]:
    """Return the jobs of the images that were asked for and have tags."""
    levels: dict[str, int] = {}
    for each in selected.images:
        levels[each.name] = max((levels[name] + 1 for name in each.depends_on), default=0)
    return tuple(
        ReleaseJob(each.name, str(platform), levels[each.name])
        for each in selected.images
        if each.name in selected.wanted and each.tags
        for platform in build_order.platforms(each)
    )


def find(selected: SelectedImages, name: str) -> ReleaseJob:
    """Return the job ``name``. Raises ``UsageError``."""
    known = {each.name: each for each in jobs(selected)}
    if name not in known:
        raise UsageError(
            f"--job {name}: the release has no such job{hint(name, tuple(known))}",
            remedy=f"it has {', '.join(known)}" if known else "no image has tags",
        )
    return known[name]


def select(release: Release, job: ReleaseJob, folder: str) -> tuple[SelectedImages, dict[str, str]]:
    """Return what ``job`` builds, and the places of images that other jobs have left in ``folder``, by name."""
    selected = build_order.select(release, (job.image,), (Only("platform", (job.platform,)),))
    known = {each.name: each for each in selected.images}
    provided: dict[str, str] = {}
    needed: dict[str, ReleaseImage] = {}
    waiting = [job.image]
    while waiting:
        name = waiting.pop()
        needed[name] = known[name]
        for each in known[name].depends_on:
            there = None if each in provided or each in needed else result(folder, ReleaseJob(each, job.platform))
            if there is not None:
                repository = reference.parse(there.names[0]).repository_only()
                provided[each] = f"docker-image://{repository.with_digest(there.digest)}"
            elif each not in provided and each not in needed:
                waiting.append(each)
    images = tuple(each for each in selected.images if each.name in needed)
    return replace(selected, images=images), provided


def write(folder: str, job: ReleaseJob, document: Mapping[str, object], built_from: Mapping[str, str]) -> None:
    """Write the metadata of ``job``: that of its build, and what it was built from. Raises ``KanifoldError``."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the directory {folder}", why=error.strerror or str(error)) from error
    own = {"image": job.image, "platform": job.platform, "built_from": dict(built_from)}
    metadata_file.write_document(below(folder, job.file), {**document, _KEY: own})


def result(folder: str, job: ReleaseJob) -> JobResult | None:
    """Return what ``job`` has left in ``folder``; None if there is nothing. Raises ``UsageError`` for anything else."""
    path = below(folder, job.file)
    try:
        with regular.open_file(path) as file:
            data = file.read(_LIMIT + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"cannot read {path}", why=error.strerror or str(error)) from error
    try:
        if len(data) > _LIMIT:
            raise ValueError(f"more than {_LIMIT} bytes")
        return _parsed(job, decoding.decode(_METADATA, data))
    except (ValueError, ArchiveError, UsageError) as error:
        raise UsageError(f"{path} is not the metadata of the job {job.name}", why=printable(str(error))) from error


class _Part(msgspec.Struct, frozen=True):
    """The part that ``write`` adds."""

    image: str
    platform: str
    built_from: dict[str, str]


class _Manifest(msgspec.Struct, frozen=True):
    digest: str


class _Metadata(msgspec.Struct, frozen=True):
    """What is read of a job's metadata."""

    release: _Part = msgspec.field(name=_KEY)
    platforms: dict[str, _Manifest] = msgspec.field(name="kanifold.platforms")
    names: str = msgspec.field(name="image.name")
    pins: dict[str, str] = msgspec.field(name=pin_lock.KEY)
    run: str = msgspec.field(name=ci_run.KEY, default="")


_METADATA: Final[msgspec.json.Decoder[_Metadata]] = msgspec.json.Decoder(_Metadata)


def _parsed(job: ReleaseJob, document: _Metadata) -> JobResult:
    own = document.release
    if (own.image, own.platform) != (job.image, job.platform) or job.platform not in document.platforms:
        raise ValueError("it is that of another job")
    names = tuple(document.names.split(","))
    for each in names:
        reference.parse(each)
    return JobResult(
        job,
        check_digest(document.platforms[job.platform].digest),
        names,
        {name: check_digest(digest) for name, digest in own.built_from.items()},
        document.pins,
        document.run,
    )
