"""``kanifold convert``: bake files and Compose files as ``kanifold.yaml``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from orchestrator import project_file
from orchestrator.release import conversion
from orchestrator.release.bake import bake_file, bake_names
from orchestrator.view.stdout import print_line, print_warning
from platforms.errors import StoreError, UsageError
from platforms.replacing import replacing


def convert(paths: Sequence[str], variables: Mapping[str, str], output: str, *, force: bool) -> None:
    """Write ``paths``, or the files of the working directory, as the release file ``output``; "-" for stdout.

    Raises ``UsageError``; ``StoreError`` if the file cannot be written.
    """
    files = tuple(paths) or bake_names.found_in(os.curdir)
    if not files:
        raise UsageError(
            "there is nothing to convert",
            why="this directory has no docker-bake.hcl, docker-bake.json or Compose file",
            remedy="name the files",
        )
    name = output or project_file.NAME
    if name != "-" and os.path.realpath(os.path.dirname(name) or os.curdir) != os.path.realpath(os.curdir):
        raise UsageError(
            f"{name} is not in the current directory",
            why="paths in bake files are relative to the current directory, those of a release file to its own",
            remedy="go to the directory where it is to be",
        )
    if name != "-" and os.path.lexists(name) and not force:
        raise UsageError(f"{name} is there already", remedy="--force replaces it; --output - prints the new one")
    made = conversion.convert(bake_file.read(files, variables, ()), project_file.NAME if name == "-" else name)
    if name == "-":
        for line in made.text.splitlines():
            print_line(line)
    else:
        try:
            with replacing(name) as file:
                file.write(made.text.encode())
        except OSError as error:
            raise StoreError(f"cannot write {name}", why=error.strerror or str(error)) from error
    for image, keys in made.lost:
        print_warning(f"{image}: {', '.join(keys)} cannot be in a release file")
