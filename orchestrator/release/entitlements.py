"""What a release file may not do by itself: ``--allow``, with the names that ``docker buildx bake`` gives them.

A release file comes with a checkout. It may build from the checkout's files; beyond that the user grants each thing:
``fs.read=PATH`` and ``fs.write=PATH`` files outside of the directories of the release file and of the command, ``ssh``
the SSH agent, ``test.script`` programs of this machine as tests, ``network.host`` and ``security.insecure`` what
``kanifold build --allow`` does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final

from executor.dockerfile.suggestions import hint
from orchestrator import contexts
from orchestrator.release.model import IMAGE_CONTEXT, Release, ReleaseImage
from platforms.errors import UsageError
from platforms.paths import named_by_user

SCRIPTS: Final = "test.script"
SSH: Final = "ssh"
_PATHS: Final = ("fs.read", "fs.write", "fs")
_BUILDS: Final = ("network.host", "security.insecure", "buildx.local.delete", "device")
_KNOWN: Final = (SCRIPTS, SSH, *_PATHS, *_BUILDS)


def parse(texts: Sequence[str], flag: str) -> tuple[str, ...]:
    """Return the entitlements ``texts``. Raises ``UsageError`` for an unknown one."""
    for each in texts:
        name, equals, path = each.partition("=")
        if name not in _KNOWN or bool(equals and path) != (name in _PATHS):
            raise UsageError(
                f"{flag} {each}: unknown{hint(name, _KNOWN)}",
                remedy=f"use {', '.join(name if name not in _PATHS else f'{name}=PATH' for name in _KNOWN)}",
            )
    return tuple(texts)


def of_builds(allowed: Sequence[str]) -> tuple[str, ...]:
    """Return those of ``allowed`` that ``kanifold build`` has, too."""
    return tuple(each for each in allowed if each.partition("=")[0] in _BUILDS)


def check(release: Release, images: Sequence[ReleaseImage], allowed: Sequence[str]) -> None:
    """Raise ``UsageError`` for the first thing that ``images`` ask for and ``allowed`` does not grant."""
    for image in images:
        if any(test.script for test in image.tests) and SCRIPTS not in allowed:
            test = next(test for test in image.tests if test.script)
            raise _refused(image, f"the test {test.name} runs a program of this machine", SCRIPTS)
        if image.ssh and SSH not in allowed:
            raise _refused(image, "it asks for an SSH agent", SSH)
        for kind, path in _paths(image):
            whole = os.path.realpath(named_by_user(release.directory, path))
            granted = [
                os.path.realpath(each.partition("=")[2]) for each in allowed if each.startswith((f"{kind}=", "fs="))
            ]
            if not any(
                _inside(whole, each) for each in (*granted, *map(os.path.realpath, (release.directory, os.curdir)))
            ):
                verb = "writes" if kind == "fs.write" else "reads"
                raise _refused(image, f"it {verb} {path}, which is outside of the release", f"{kind}={whole}")


def _refused(image: ReleaseImage, what: str, entitlement: str) -> UsageError:
    return UsageError(
        f"{image.name}: {what}",
        why="a release file may not decide that",
        remedy=f"if you trust it: --allow {entitlement}",
        where=image.where,
    )


def _inside(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _paths(image: ReleaseImage) -> Iterator[tuple[str, str]]:
    """Yield the paths of this machine that ``image`` names, each with the kind of access."""
    for place in (image.context, *(value for _, value in image.contexts)):
        local = place.removeprefix("oci-layout://").partition("@")[0]
        if not (contexts.is_remote(place) or place == "-" or place.startswith((IMAGE_CONTEXT, "docker-image://"))):
            yield "fs.read", local
    if image.dockerfile and not contexts.is_remote(image.context):
        yield "fs.read", named_by_user(image.context, image.dockerfile)
    for fields in (*image.secrets, *image.cache_from):
        for key in ("src", "source"):
            if value := dict(fields).get(key, ""):
                yield "fs.read", value
    for fields in (*image.outputs, *image.cache_to):
        if (value := dict(fields).get("dest", "")) not in ("", "-"):
            yield "fs.write", value
