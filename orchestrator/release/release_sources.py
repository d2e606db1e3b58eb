"""Finding and reading the file of a release."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from orchestrator import project_file
from orchestrator.release import overrides, release_file
from orchestrator.release.bake import bake_names
from orchestrator.release.model import Release
from orchestrator.release.overrides import Override
from platforms.errors import UsageError


def read(path: str, given: Mapping[str, str], environ: Mapping[str, str], changes: Sequence[Override] = ()) -> Release:
    """Return the release of the file ``path`` with ``changes``, the overrides of ``--set``. ``given`` is ``--var``.

    "" stands for what is in the current directory: kanifold.yaml, else bake files and Compose files, as bake finds
    them. Raises ``UsageError``.
    """
    files = (path,) if bake_names.handles(path) else () if path else _bake_files()
    if files:
        from orchestrator.release.bake import bake_file

        return bake_file.read(files, given, tuple(each.text for each in changes))
    return overrides.apply(_read(path, given, environ), changes)


def _bake_files() -> tuple[str, ...]:
    return () if os.path.exists(project_file.NAME) else bake_names.found_in(os.curdir)


def _read(path: str, given: Mapping[str, str], environ: Mapping[str, str]) -> Release:
    name = path or project_file.NAME
    if os.path.isdir(name):
        name = os.path.join(name, project_file.NAME)
    try:
        return release_file.read(name, given, environ)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"there is no release file {name}",
            remedy="write kanifold.yaml (docs/releases.md), or name the file with --file (docker-bake.hcl, say)",
        ) from error
