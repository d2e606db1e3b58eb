"""What a registry has under a tag, seen without any builder; and an index made for a builder that makes none."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from measuring import FailedError

INDEX = "application/vnd.oci.image.index.v1+json"
ACCEPTED = ", ".join(
    (
        INDEX,
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


def check(ref: str, platforms: Sequence[str]) -> None:
    """See that ``ref`` is an image for every one of ``platforms``. Raises ``FailedError``."""
    document = json.loads(_get(ref)[0])
    manifests = [each for each in document.get("manifests", (document,)) if "attestation" not in json.dumps(each)]
    if len(manifests) != len(platforms):
        raise FailedError(f"{ref} has {len(manifests)} images instead of {len(platforms)}")


def join(ref: str, images: Mapping[str, str]) -> None:
    """Let ``ref`` be the index of ``images``: by platform, the references of images in the same repository."""
    entries = []
    for platform, image in images.items():
        data, headers = _get(image)
        system, architecture, *variant = platform.split("/")
        named = {"os": system, "architecture": architecture} | ({"variant": variant[0]} if variant else {})
        entries.append(
            {
                "mediaType": headers["Content-Type"],
                "digest": headers["Docker-Content-Digest"],
                "size": len(data),
                "platform": named,
            }
        )
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    asked = urllib.request.Request(_url(ref), data=index, method="PUT", headers={"Content-Type": INDEX})
    urllib.request.urlopen(asked, timeout=30).close()


def _get(ref: str) -> tuple[bytes, Any]:
    asked = urllib.request.Request(_url(ref), headers={"Accept": ACCEPTED})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return answer.read(), answer.headers


def _url(ref: str) -> str:
    host, _, rest = ref.partition("/")
    repository, _, tag = rest.rpartition(":")
    return f"http://{host}/v2/{repository}/manifests/{tag}"
