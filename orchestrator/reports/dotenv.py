"""``--report dotenv=FILE``: the result as variables of later jobs (GitLab's ``artifacts:reports:dotenv``).

GitLab takes 20 variables and 5 kB from a file; a name has letters, digits and underscores, and a value is the rest of
the line, without spaces and quotes (docs.gitlab.com, "artifacts:reports:dotenv").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from orchestrator.view.build_state import BuildState

PLATFORMS: Final = 15
"""Maximum number of platforms with a variable of their own."""
_VALUE: Final = re.compile(r"[\w./:@,+-]*", re.ASCII)


def render(state: BuildState, _environ: Mapping[str, str]) -> str:
    """Return a line for each variable; of a build that was not successful only ``KANIFOLD_OUTCOME``."""
    found = {"KANIFOLD_OUTCOME": state.outcome or "cancelled"}
    if state.outcome == "built":
        tag = state.tags[0] if state.tags else ""
        found["KANIFOLD_DIGEST"] = state.digest
        found["KANIFOLD_PLATFORMS"] = ",".join(each.platform for each in state.platforms)
        if tag:
            found["KANIFOLD_IMAGE"] = tag
            found["KANIFOLD_IMAGE_DIGEST"] = f"{_repository(tag)}@{state.digest}"
        for each in state.platforms[:PLATFORMS]:
            found[f"KANIFOLD_DIGEST_{re.sub('[^A-Za-z0-9]', '_', each.platform).upper()}"] = each.digest
    return "".join(f"{name}={value}\n" for name, value in found.items() if _VALUE.fullmatch(value))


def _repository(tag: str) -> str:
    """Return the repository of a reference; a colon before the last slash is that of a port."""
    head, slash, last = tag.rpartition("/")
    return head + slash + last.partition(":")[0]
