r"""Paths in Dockerfiles of Windows images: ``C:\app\``, ``\app`` and ``/app`` are the same directory.

The rules are those of BuildKit (util/system/path.go): paths are on drive C, which is left out; both slashes separate; a
path after ``C:`` without a slash is relative. The results have forward slashes, as the archives of layers have.
"""

from __future__ import annotations

import posixpath

from platforms.errors import DockerfileError


def slashed(path: str) -> str:
    """Return ``path`` with forward slashes."""
    return path.replace("\\", "/")


def normal_path(directory: str, path: str) -> str:
    """Return ``path``, relative to ``directory``, as a clean absolute path without a drive. Raises ``DockerfileError``
    (without location)."""
    joined = posixpath.join("/", _without_drive(directory), _without_drive(path))
    return "/" + posixpath.normpath(joined).lstrip("/")


def source(path: str) -> str:
    """Return the source argument ``path`` with forward slashes and without a drive. Raises as ``normal_path``."""
    return _without_drive(path)


def working_directory(current: str, path: str) -> str:
    """Return the working directory after ``WORKDIR path`` in ``current``, as a config has it: with backslashes."""
    return normal_path(current, path).replace("/", "\\")


def _without_drive(path: str) -> str:
    path = slashed(path)
    if path.startswith("//"):
        raise DockerfileError(f"{path}: UNC paths are not supported", remedy="name a path on drive C:")
    drive, colon, rest = path.partition(":")
    if not colon:
        return path
    if drive.lower() != "c":
        raise DockerfileError(f"{path} is not on the system drive (C:)", remedy="name a path on drive C:")
    if not rest:
        raise DockerfileError(
            f"{path} names no path", why="a drive alone is its current directory", remedy="C:\\ is its root"
        )
    return rest
