"""The run of a CI system that a command is a part of, as metadata names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

KEY: Final = "kanifold.run"
"""The key of metadata files."""
_RUNS: Final = (
    ("github", ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID")),
    ("gitlab", ("CI_SERVER_URL", "CI_PROJECT_PATH", "CI_PIPELINE_ID")),
    ("jenkins", ("JENKINS_URL", "BUILD_TAG")),
)
"""Systems with the variables that name a run; the last of them is the run's own. All jobs of a run have the same."""


def run_of(environ: Mapping[str, str]) -> str:
    """Return ``github https://github.com org/app 123``, or "" outside of a known CI system."""
    for system, names in _RUNS:
        values = [environ.get(each, "") for each in names]
        if values[-1]:
            return " ".join((system, *filter(None, values)))
    return ""
