"""The architecture audit: does an image contain programs for another architecture?

Executors report the architectures of the ELF files in new layers. Findings that do not fit the platform are errors or
warnings, unless they are allowed by ``--audit-allow PATTERN`` or a comment in the Dockerfile,

    # kanifold audit-allow=/opt/firmware/**

Patterns are those of .dockerignore, matched against absolute paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from executor import protocol
from executor.dockerfile import Dockerfile, ignore
from orchestrator.plan import BuildPlan
from orchestrator.request import Allowed, BuildRequest
from orchestrator.results import PlatformResult
from orchestrator.view import events
from orchestrator.view.events import Emit
from platforms.errors import AuditError, Problem
from platforms.parsing import parse
from platforms.platform import Platform

_COMMENT: Final = re.compile(r"#\s*kanifold\s+audit-allow\s*=\s*(?:\[(?P<platform>[^\]]+)\])?(?P<pattern>\S+)\s*")
_SHOWN: Final = 5


def allowed_by(dockerfile: Dockerfile) -> tuple[Allowed, ...]:
    """Return the patterns that comments of the Dockerfile allow: ``# kanifold audit-allow=[platform]pattern``."""
    found = (_COMMENT.fullmatch(line.strip()) for line in dockerfile.source)
    return tuple(
        Allowed(match["pattern"], str(parse(match["platform"])) if match["platform"] else "")
        for match in found
        if match
    )


def check(request: BuildRequest, plan: BuildPlan, built: PlatformResult, emit: Emit) -> None:
    """Complain of what was found in an image, as ``--audit`` says: by a warning, or by raising ``AuditError``."""
    platform = built.placement.platform
    allowed = (*request.audit_allow, *allowed_by(plan.dockerfile))
    findings = audit(platform, built.result.findings, allowed)
    if not findings:
        return
    found = problem(platform, findings)
    if request.audit == "error":
        raise AuditError.of(found)
    emit(events.WarningRaised(problem=found, rule="Audit"))


def audit(
    platform: Platform, findings: Iterable[protocol.Finding], allowed: Iterable[Allowed]
) -> tuple[protocol.Finding, ...]:
    """Return the findings that do not fit ``platform`` and are not allowed."""
    findings = tuple(findings)
    if not findings:
        return ()
    from executor.rootfs.elf_audit import foreign

    intended = [
        ignore.parse(each.pattern.lstrip("/"))
        for each in allowed
        if not each.platform or each.platform == str(platform)
    ]
    return tuple(
        each
        for each in findings
        if foreign(each.machine, platform.architecture)
        and not any(patterns.excludes(each.path.lstrip("/"), False) for patterns in intended)
    )


def problem(platform: Platform, findings: tuple[protocol.Finding, ...]) -> Problem:
    """Return ``findings`` as one warning or error."""
    machines = ", ".join(sorted({each.machine for each in findings}))
    listed = [f"/{each.path} is {each.machine} (layer {each.layer[:19]})" for each in findings[:_SHOWN]]
    if len(findings) > _SHOWN:
        listed.append(f"and {len(findings) - _SHOWN} more")
    return AuditError(
        f"the image for {platform} holds programs for {machines}",
        why="; ".join(listed),
        remedy="choose the download by TARGETARCH, build in a stage of the target's platform, "
        "or allow what is intended: --audit-allow PATTERN",
    ).problem
