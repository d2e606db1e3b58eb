"""``--report codequality=FILE``: findings on lines of the Dockerfile, as GitLab's code quality report.

The format is a part of Code Climate's (docs.gitlab.com, "Code Quality", "Code Quality report format"): GitLab shows a
finding in a merge request if no finding of the target branch has its fingerprint. A fingerprint is made of the rule,
the file and the text of the line, so it stays when lines are added above.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import msgspec

from orchestrator.view import problems, wording
from orchestrator.view.build_state import BuildState
from orchestrator.view.ci import repository_path
from orchestrator.view.untrusted import clean_line
from platforms.errors import Location, Problem


class QualityIssue(msgspec.Struct, frozen=True):
    """A warning or an error, and the name of its rule."""

    severity: Literal["minor", "blocker"]
    rule: str
    problem: Problem


def render(state: BuildState, environ: Mapping[str, str]) -> str:
    """Return the report of a build: its warnings and errors."""
    return render_findings(
        (
            *(QualityIssue("minor", each.rule or each.problem.kind, each.problem) for each in state.warnings),
            *(QualityIssue("blocker", each.problem.kind, each.problem) for each in problems.distinct(state.troubles)),
        ),
        environ,
    )


def render_findings(found: Iterable[QualityIssue], environ: Mapping[str, str]) -> str:
    """Return the report: a JSON list of those findings that have a line."""
    return json.dumps(list(_issues(found, environ)), indent=2) + "\n"


def _issues(found: Iterable[QualityIssue], environ: Mapping[str, str]) -> Iterator[dict[str, object]]:
    seen: dict[str, int] = {}
    for each in found:
        rule, problem = each.rule, each.problem
        if problem.where is None:
            continue
        path = repository_path(problem.where.file, environ)
        mark = "\0".join((rule, path, problem.what, _line(problem.where)))
        seen[mark] = seen.get(mark, 0) + 1
        yield {
            "description": wording.problem_line(problem),
            "check_name": clean_line(rule),
            "fingerprint": hashlib.sha256(f"{mark}\0{seen[mark]}".encode(errors="replace")).hexdigest(),
            "severity": each.severity,
            "location": {
                "path": clean_line(path),
                "lines": {"begin": problem.where.line, "end": max(problem.where.line, problem.where.end_line)},
            },
        }


def _line(where: Location) -> str:
    at = where.line - where.first
    return where.source[at].strip() if 0 <= at < len(where.source) else ""
