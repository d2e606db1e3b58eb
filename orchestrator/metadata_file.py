"""``--metadata-file`` and ``--iidfile``: writing the digests of a build for other programs."""

from __future__ import annotations

import json
import os

from orchestrator import ci_run
from orchestrator.pin_lock import DOCKERFILE, KEY
from orchestrator.request import BuildRequest
from orchestrator.results import BuildResult
from platforms.errors import BuildError
from platforms.replacing import replacing


def write(request: BuildRequest, result: BuildResult) -> None:
    """Write the files that ``request`` names. Raises ``BuildError``."""
    if request.metadata_file:
        write_document(request.metadata_file, document(request, result))
    if request.iid_file:
        only = result.images[0] if len(result.images) == 1 else None
        _write_file(request.iid_file, only.manifest.config.digest if only else result.root.digest)


def write_document(path: str, found: dict[str, object]) -> None:
    """Write ``found`` as JSON to the file ``path``. Raises ``BuildError``."""
    _write_file(path, json.dumps(found, indent=2) + "\n")


def document(request: BuildRequest, result: BuildResult) -> dict[str, object]:
    """Return the metadata of a build, with buildx's keys, and kanifold's own: the digests of each platform, of the
    external images and of the Dockerfile, and the run of the CI system."""
    root = result.root
    found: dict[str, object] = {
        "containerimage.digest": root.digest,
        "containerimage.descriptor": {
            "mediaType": root.media_type,
            "digest": root.digest,
            "size": root.size,
            **({"annotations": dict(sorted(root.annotations))} if root.annotations else {}),
            **_platform(result),
        },
    }
    if len(result.images) == 1:
        found["containerimage.config.digest"] = result.images[0].manifest.config.digest
    if request.tags:
        found["image.name"] = ",".join(str(each) for each in request.tags)
    found["kanifold.platforms"] = {
        str(each.platform): {"digest": each.descriptor.digest, "config": each.manifest.config.digest}
        for each in result.images
    }
    found[KEY] = {each.name: each.digest for each in result.pins}
    found[DOCKERFILE] = result.dockerfile
    if run := ci_run.run_of(os.environ):
        found[ci_run.KEY] = run
    return found


def _platform(result: BuildResult) -> dict[str, object]:
    """Return the platform of a result that is a single manifest, as a field of its descriptor; {} for an index."""
    only = result.images[0].descriptor
    if only.digest != result.root.digest or only.platform is None:
        return {}
    spec = only.platform
    fields = {
        "architecture": spec.architecture,
        "os": spec.os,
        "variant": spec.variant,
        "os.version": spec.os_version,
        "os.features": list(spec.os_features),
    }
    return {"platform": {key: value for key, value in fields.items() if value}}


def _write_file(path: str, text: str) -> None:
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise BuildError(f"cannot write {path}", why=error.strerror or str(error)) from error
