"""Predefined build arguments: platform ARGs, and arguments that configure the builder.

Source: Dockerfile reference, "Automatic platform ARGs in the global scope" and "BuildKit built-in build args";
BuildKit's dockerfile2llb/platform.go.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from platforms.platform import Platform

SILENT_ARGUMENTS: Final = frozenset({"BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"})
"""Arguments that configure a builder and are never part of a step's environment."""


def platform_arguments(build: Platform, target: Platform, stage: str) -> dict[str, str]:
    """Return the automatic platform ARGs; ``stage`` is the name of the target stage ("" for an unnamed last one)."""
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


def host_name(build_args: Iterable[tuple[str, str]]) -> str:
    """Return the host name of steps."""
    return dict(build_args).get("BUILDKIT_SANDBOX_HOSTNAME") or "buildkitsandbox"


def cache_name(build_args: Iterable[tuple[str, str]], name: str) -> str:
    """Return the name of a cache mount in the namespace of the build, if there is one."""
    namespace = dict(build_args).get("BUILDKIT_CACHE_MOUNT_NS", "")
    return f"{namespace}/{name}" if namespace else name
