"""The jobs of a build, from the request and the plan."""

from __future__ import annotations

from executor import protocol
from orchestrator.nodes.placement import Placement
from orchestrator.outputs import FilesOutput, ImagesOutput, OciLayout, image_options
from orchestrator.plan import BuildPlan
from orchestrator.request import BuildRequest


def needs_blobs(request: BuildRequest) -> bool:
    """Whether all blobs of the images must be on this machine at the end."""
    return bool(request.staged) or any(isinstance(each, ImagesOutput) for each in request.outputs)


def keeps_blobs(request: BuildRequest) -> bool:
    """Whether blobs that a node with another disk sends are kept in the store: the only destination is not a layout,
    which keeps them itself. The next build is not sent them again, and other builds of the session find them."""
    wanted = [each for each in request.outputs if isinstance(each, ImagesOutput)]
    return bool(request.staged) or len(wanted) != 1 or not isinstance(wanted[0], OciLayout)


def reads_executors(request: BuildRequest) -> bool:
    """Whether outputs are written with what executors elsewhere send then, when all platforms are built."""
    files = any(isinstance(each, FilesOutput) for each in request.outputs)
    return files or (needs_blobs(request) and not keeps_blobs(request))


def job(request: BuildRequest, plan: BuildPlan, placement: Placement, build: str) -> protocol.Job:
    """Return the job for one platform of the build ``build``, without the pins."""
    return protocol.Job(
        version=protocol.VERSION,
        build=build,
        platform=str(placement.platform),
        build_platform=str(request.build_platform),
        emulation=placement.support.emulation,
        dockerfile=plan.data,
        dockerfile_name=plan.name,
        build_args=plan.build_args,
        contexts=plan.contexts,
        epoch=plan.epoch,
        annotations=request.annotated("manifest", str(placement.platform)),
        push=tuple(str(each) for each in request.repositories),
        local=needs_blobs(request),
        oci=all(image_options(each).oci_media_types for each in request.outputs),
        options=request.options,
    )
