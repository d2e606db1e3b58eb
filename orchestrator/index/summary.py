"""The step summary of ``kanifold index`` and ``kanifold copy``: what was written under which names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from executor.image.manifest import Index
from orchestrator.index import entries
from orchestrator.index.editing import PlannedImage
from orchestrator.index.names import ImageName
from orchestrator.reports.markdown import code, table, text_of
from orchestrator.reports.recording import write
from orchestrator.request import Report
from orchestrator.view.events import Emit, WarningRaised
from platforms.errors import StoreError

VARIABLE: Final = "GITHUB_STEP_SUMMARY"
_ROWS: Final = 100
"""Maximum number of platforms in the table."""


def append(planned: PlannedImage, names: Sequence[ImageName], emit: Emit) -> None:
    """Append the summary of what was written to the file of the CI system, if there is one; a failure is a warning."""
    path = os.environ.get(VARIABLE, "")
    if not path:
        return
    try:
        write(Report("step-summary", path), render(planned, names))
    except StoreError as error:
        emit(WarningRaised(problem=error.problem))


def render(planned: PlannedImage, names: Sequence[ImageName]) -> str:
    """Return the Markdown."""
    root = planned.root.document
    lines = [f"### kanifold: {text_of(str(names[0]))}", "", f"Digest: {code(root.descriptor.digest)}", ""]
    lines += [*(f"- {code(str(each))}" for each in names), ""]
    if isinstance(root.content, Index):
        listed = [each for each in entries.entries_of(root.content, root.data) if each.platform]
        rows = ((text_of(str(each.platform)), code(each.descriptor.digest)) for each in listed[:_ROWS])
        lines += table(("platform", "digest"), rows)
    return "\n".join(lines) + "\n"
