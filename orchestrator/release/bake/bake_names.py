"""The names of bake files and Compose files, by which they are known."""

from __future__ import annotations

import os
from typing import Final

from platforms.paths import below

COMPOSE_NAMES: Final = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
DEFAULT_NAMES: Final = (
    *COMPOSE_NAMES,
    "docker-bake.json",
    "docker-bake.hcl",
    "docker-bake.override.json",
    "docker-bake.override.hcl",
)
"""The files that are read if none is named, in their order."""


def handles(path: str) -> bool:
    """Tell by its name whether ``path`` is a bake file or a Compose file."""
    name = os.path.basename(path).lower()
    return name.endswith((".hcl", ".json")) or name.startswith(("compose.", "docker-compose."))


def found_in(directory: str) -> tuple[str, ...]:
    """Return the files of ``DEFAULT_NAMES`` that are in ``directory``."""
    return tuple(each for each in DEFAULT_NAMES if os.path.isfile(below(directory, each)))
