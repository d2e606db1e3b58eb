"""Build checks, targets and outlines as JSON, in the format of ``docker buildx build --call``.

Field names, nesting and base64 sources are buildx's, so that tools can read either. Source: github.com/moby/buildkit,
frontend/subrequests: lint, targets, outline.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from executor.dockerfile.checks import CheckResult
from executor.dockerfile.outline import BuildTarget, Outline, SecretRequirement
from platforms.errors import Location


def lint_document(report: CheckResult, name: str, data: bytes) -> dict[str, Any]:
    """Return the findings on the Dockerfile ``name``, whose bytes are ``data``."""
    document: dict[str, Any] = {
        "warnings": [
            {
                "ruleName": found.rule.name,
                "description": found.rule.description,
                **_without_empty(url=found.rule.url),
                "detail": found.message,
                "location": _location(found.location),
            }
            for found in report.violations
        ],
        "sources": [{"filename": name, "language": "Dockerfile", "data": _source(data)}],
    }
    wrong = report.failure or report.refusal
    if wrong is not None:
        where = wrong.where if report.failure is not None else None
        document["buildError"] = {
            "message": wrong.what,
            "location": _location(where) if where is not None else {},
        }
    return document


def targets_document(targets: tuple[BuildTarget, ...], data: bytes) -> dict[str, Any]:
    """Return the stages that can be built."""
    return {
        "targets": [
            _without_empty(
                name=target.name,
                default=target.default,
                description=target.description,
                base=target.base,
                platform=target.platform,
                location=_location(target.location),
            )
            for target in targets
        ],
        "sources": [_source(data)],
    }


def outline_document(outline: Outline, data: bytes) -> dict[str, Any]:
    """Return the arguments, secrets and SSH agents of one target."""
    return _without_empty(
        name=outline.name,
        description=outline.description,
        args=[
            {"name": arg.name}
            | _without_empty(description=arg.description, value=arg.value, location=_location(arg.location))
            for arg in outline.arguments
        ],
        secrets=_wanted(outline.secrets),
        ssh=_wanted(outline.ssh),
        sources=[_source(data)],
    )


def _wanted(wanted: tuple[SecretRequirement, ...]) -> list[dict[str, Any]]:
    return [
        {"name": each.name} | _without_empty(required=each.required, location=_location(each.location))
        for each in wanted
    ]


def _without_empty(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


def _location(location: Location) -> dict[str, Any]:
    """Return one range for each line, as BuildKit does."""
    lines = range(location.line, location.end_line + 1)
    return {"ranges": [{"start": {"line": line}, "end": {"line": line}} for line in lines]}


def _source(data: bytes) -> str:
    return b64encode(data).decode("ascii")
