"""The arguments that every build has without being told.

Source: Dockerfile reference, "Automatic platform ARGs in the global scope"; BuildKit's dockerfile2llb/platform.go.
"""

from __future__ import annotations

from typing import Final

from platforms.platform import Platform

SILENT_ARGUMENTS: Final = frozenset({"BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"})
"""Arguments that steer a builder and are never part of a step's environment."""


def platform_arguments(build: Platform, target: Platform, stage: str) -> dict[str, str]:
    """The automatic platform ARGs; ``stage`` is the target stage's name ("" for a nameless last one)."""
    return {
        "BUILDPLATFORM": str(build),
        "BUILDOS": build.os,
        "BUILDOSVERSION": build.os_version,
        "BUILDARCH": build.architecture,
        "BUILDVARIANT": build.variant,
        "TARGETPLATFORM": str(target),
        "TARGETOS": target.os,
        "TARGETOSVERSION": target.os_version,
        "TARGETARCH": target.architecture,
        "TARGETVARIANT": target.variant,
        "TARGETSTAGE": stage or "default",
    }
