"""``--metadata-file`` of builds: what buildx's has, with buildx's values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Kanifold

SEEN: dict[str, Any] = {
    "buildx.build.provenance": ..., "buildx.build.ref": ..., "containerimage.config.digest": "sha256",
    "containerimage.descriptor": {
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": ..., "size": ..., "annotations": ...,
        "platform": {"architecture": "amd64", "os": "linux"},
    },
    "containerimage.digest": ..., "image.name": "reg.example/app:1",
}  # fmt: skip
"""What buildx 0.38.2 wrote with BuildKit 0.34.2 for one platform, --provenance=false; values that vary left out."""
ABSENT = {"buildx.build.provenance", "buildx.build.ref"}
"""What docs/ci.md says is not there."""


@pytest.mark.parametrize("platforms", ["linux/amd64", "linux/amd64,linux/arm64"])
def test_a_build_writes_buildxs_keys_beside_its_own(kanifold: Kanifold, tmp_path: Path, platforms: str) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    file = tmp_path / "metadata.json"
    words = ("--platform", platforms, "-t", "reg.example/app:1", "-o", f"type=oci,dest={tmp_path / 'out'}")
    digest = kanifold("build", tmp_path, *words, "--metadata-file", file, GITHUB_RUN_ID="7").out.strip()
    found = json.loads(file.read_text())
    descriptor = found["containerimage.descriptor"]
    assert (found["containerimage.digest"], descriptor["digest"]) == (digest, digest)
    assert found["image.name"] == SEEN["image.name"]
    assert found["kanifold.run"] == "github 7"
    assert found["kanifold.dockerfile"].startswith("sha256:")
    assert list(found["kanifold.platforms"]) == platforms.split(",")
    if "," in platforms:
        assert "containerimage.config.digest" not in found, "as in buildx"
        assert "platform" not in descriptor
    else:
        assert set(SEEN) - set(found) == ABSENT
        assert set(SEEN["containerimage.descriptor"]) - set(descriptor) == {"annotations"}, "the moment of the build"
        assert descriptor["platform"] == SEEN["containerimage.descriptor"]["platform"]
        assert descriptor["mediaType"] == SEEN["containerimage.descriptor"]["mediaType"]
