"""Finding and reading the file of a release."""

from __future__ import annotations

import os
from collections.abc import Mapping

from orchestrator import project_file
from orchestrator.release import release_file
from orchestrator.release.model import Release
from platforms.errors import UsageError


def read(path: str, given: Mapping[str, str], environ: Mapping[str, str]) -> Release:
    """Return the release of the file ``path``; "" for that of the current directory. ``given`` is ``--var``.

    Raises ``UsageError``.
    """
    name = path or project_file.NAME
    if os.path.isdir(name):
        name = os.path.join(name, project_file.NAME)
    try:
        return release_file.read(name, given, environ)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"there is no release file {name}",
            remedy="write kanifold.yaml (docs/releases.md), or name the file with --file",
        ) from error
