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
from urllib.parse import urlsplit

from executor.dockerfile.suggestions import hint
from executor.protocol import CacheInActions, CacheInContainer, CacheInDirectory
from executor.registry import layout
from orchestrator import contexts
from orchestrator.outputs import DockerArchive, FilesOutput, OciArchive, OciLayout
from orchestrator.release.model import ReleaseImage
from orchestrator.request import BuildRequest
from platforms.errors import UsageError

SCRIPTS: Final = "test.script"
SSH: Final = "ssh"
_LAYOUT: Final = "oci-layout://"
_PATHS: Final = ("fs.read", "fs.write", "fs")
_BUILDS: Final = ("network.host", "security.insecure", "buildx.local.delete", "device")
_SERVICES: Final = (".actions.githubusercontent.com", ".blob.core.windows.net")
"""The ends of the names of hosts to which the user's tokens for caches belong."""
_SERVICE_VARIABLES: Final = ("ACTIONS_CACHE_URL", "ACTIONS_RESULTS_URL", "BUILDKIT_AZURE_STORAGE_ACCOUNT_URL")
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


def check(images: Sequence[ReleaseImage], allowed: Sequence[str]) -> None:
    """Raise ``UsageError`` for the first of ``images`` with scripts or SSH agents that ``allowed`` does not grant."""
    for image in images:
        if any(test.script for test in image.tests) and SCRIPTS not in allowed:
            test = next(test for test in image.tests if test.script)
            raise _refused(image, f"the test {test.name} runs a program of this machine", SCRIPTS)
        if image.ssh and SSH not in allowed:
            raise _refused(image, "it asks for an SSH agent", SSH)


def check_paths(image: ReleaseImage, request: BuildRequest, directory: str, allowed: Sequence[str]) -> None:
    """Raise ``UsageError`` for the first path of ``request``, that of ``image``, which ``allowed`` does not grant.

    The request is what is done, however the file has spelled it. ``directory`` is that of the release file.
    """
    own = tuple(map(os.path.realpath, (directory, os.curdir)))
    for kind, path in _paths(request):
        whole = os.path.realpath(os.path.expanduser(path))
        granted = [os.path.realpath(each.partition("=")[2]) for each in allowed if each.startswith((f"{kind}=", "fs="))]
        if not any(_inside(whole, each) for each in (*granted, *own)):
            verb = "writes" if kind == "fs.write" else "reads"
            raise _refused(image, f"it {verb} {path}, which is outside of the release", f"{kind}={whole}")
    for url in _services(request):
        if url and url not in map(os.environ.get, _SERVICE_VARIABLES) and not _is_known(url):
            raise UsageError(
                f"{image.name}: it has a cache at {url}, which would get a token of yours",
                why="a release file may not decide that",
                remedy=f"if you trust it, set it in the environment: {', '.join(_SERVICE_VARIABLES)}",
                where=image.where,
            )


def _refused(image: ReleaseImage, what: str, entitlement: str) -> UsageError:
    return UsageError(
        f"{image.name}: {what}",
        why="a release file may not decide that",
        remedy=f"if you trust it: --allow {entitlement}",
        where=image.where,
    )


def _inside(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _services(request: BuildRequest) -> Iterator[str]:
    """Yield the URLs of the caches of ``request`` at services that take bearer tokens."""
    for cache in (*request.options.cache_from, *(each.to for each in request.options.cache_to)):
        if isinstance(cache, CacheInActions):
            yield cache.url
        elif isinstance(cache, CacheInContainer):
            yield cache.account_url


def _is_known(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" and (parts.hostname or "").endswith(_SERVICES)


def _paths(request: BuildRequest) -> Iterator[tuple[str, str]]:
    """Yield the paths of this machine that ``request`` names, each with the kind of access."""
    for place in (request.context, *(value for _, value in request.build_contexts)):
        if place.startswith(_LAYOUT):
            yield "fs.read", layout.split_location(place.removeprefix(_LAYOUT))[0]
        elif not (contexts.is_remote(place) or place == "-" or place.startswith("docker-image://")):
            yield "fs.read", place
    if request.dockerfile not in ("", "-") and not contexts.is_remote(request.context):
        yield "fs.read", request.dockerfile
    for secret in request.secrets:
        if secret.file:
            yield "fs.read", secret.file
    for source in request.options.cache_from:
        if isinstance(source, CacheInDirectory):
            yield "fs.read", source.name
    for export in request.options.cache_to:
        if isinstance(export.to, CacheInDirectory):
            yield "fs.write", export.to.name
    for output in request.outputs:
        if isinstance(output, OciLayout | OciArchive | DockerArchive | FilesOutput) and output.dest != "-":
            yield "fs.write", output.dest
