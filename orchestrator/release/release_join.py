"""Joining what the jobs of a release have built to the indexes of its images, and publishing these together.

The documents are those of ``kanifold release`` by one command, made by the same code. Nothing is published unless every
job is there, from one run, and every image was built from the images that are published with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import BinaryIO

from executor.image.manifest import Descriptor, Manifest, PlatformSpec
from orchestrator import command, publish
from orchestrator.publish import PreparedImage
from orchestrator.registries import Registry
from orchestrator.release import release_jobs
from orchestrator.release.release_flags import ReleasePlan
from orchestrator.release.release_jobs import JobResult, ReleaseJob
from orchestrator.release.tag_publication import publish_all
from orchestrator.request import BuildRequest
from orchestrator.results import Image
from orchestrator.view.events import Emit
from platforms.errors import BuildError, ProtocolError
from platforms.platform import Platform


def join(
    planned: ReleasePlan, requests: Sequence[BuildRequest], registry: Registry, emit: Emit
) -> tuple[tuple[str, str], ...]:
    """Publish the images of ``planned`` as its jobs have built them. Returns the names with the digests.

    ``registry`` is closed. Raises ``KanifoldError``.
    """
    try:
        results = _results(planned, requests)
        _check(results)
        return asyncio.run(command.interruptible(_published(planned, requests, results, registry, emit)))
    finally:
        registry.close()


_Results = dict[tuple[str, Platform], JobResult]


def _results(planned: ReleasePlan, requests: Sequence[BuildRequest]) -> _Results:
    """Return what each job has left."""
    found: _Results = {}
    missing = []
    for image, request in zip(planned.selected.images, requests, strict=True):
        for platform in request.platforms:
            job = ReleaseJob(image.name, str(platform))
            there = release_jobs.result(planned.metadata, job)
            if there is None:
                missing.append(job.name)
                continue
            unsaid = [name for name in image.depends_on if name not in there.built_from]
            if unsaid:
                raise BuildError(
                    f"the metadata of {job.name} does not say from which {unsaid[0]} it was built",
                    remedy="run the job again: the release file was another one then",
                )
            found[image.name, platform] = there
    if missing:
        raise BuildError(
            f"{len(missing)} of {len(missing) + len(found)} jobs of the release have left nothing",
            why=f"{planned.metadata} has no metadata of {', '.join(missing)}",
            remedy="let the jobs end before they are joined, and collect what they leave in this directory",
        )
    return found


def _check(results: _Results) -> None:
    """Raise ``BuildError`` unless all belong together."""
    first = next(iter(results.values()))
    pins: dict[str, tuple[str, str]] = {}
    for (_, platform), each in results.items():
        if each.run != first.run:
            raise BuildError(
                "the jobs were not of one run",
                why=f"{first.job.name} of {first.run or 'none'}, {each.job.name} of {each.run or 'none'}",
                remedy="remove the metadata of other runs before the jobs write theirs",
            )
        for name, digest in each.built_from.items():
            base = results.get((name, platform))
            if base is not None and base.digest != digest:
                raise BuildError(
                    f"{each.job.name} was not built from the {name} of this release",
                    why=f"it has used {digest}, the job {base.job.name} has made {base.digest}",
                    remedy=f"run {each.job.name} after {base.job.name}, with the metadata of that, as its level says; "
                    f"or make {name} reproducible",
                )
        for name, digest in each.pins.items():
            other, job = pins.setdefault(name, (digest, each.job.name))
            if other != digest:
                raise BuildError(
                    f"the jobs were not built from the same {name}",
                    why=f"{job} from {other}, {each.job.name} from {digest}",
                    remedy="its tag moved between the jobs: pin it (kanifold pin), and build again",
                )


async def _published(
    planned: ReleasePlan, requests: Sequence[BuildRequest], results: _Results, registry: Registry, emit: Emit
) -> tuple[tuple[str, str], ...]:
    prepared = []
    for image, request in zip(planned.selected.images, requests, strict=True):
        images = await asyncio.gather(
            *(
                asyncio.to_thread(_image, request, results[image.name, each], each, registry)
                for each in request.platforms
            )
        )
        joined = publish.join(request, images)
        await publish.push(joined, request.repositories, (), registry, emit)
        prepared.append(PreparedImage(joined, await publish.look_up(publish.tags_of(request), registry)))
    await publish_all(prepared, registry, emit)
    return tuple(
        (image.name, each.result.root.digest) for image, each in zip(planned.selected.images, prepared, strict=True)
    )


def _image(request: BuildRequest, result: JobResult, platform: Platform, registry: Registry) -> Image:
    """Return the image of a job, whose manifest is read from its registry."""
    name = request.repositories[0].with_digest(result.digest)
    document, data, descriptor = registry.manifest(name)
    if not isinstance(document, Manifest):
        raise ProtocolError(f"{name} is an index, and not the image of {result.job.name}")
    spec = PlatformSpec(platform.architecture, platform.os, platform.variant, platform.os_version, platform.os_features)
    return Image(
        platform, document, Descriptor(document.media_type, descriptor.digest, len(data), spec), data, _no_content
    )


def _no_content(digest: str) -> BinaryIO:
    raise ProtocolError(f"{digest} is in the registry alone")
