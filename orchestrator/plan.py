"""The plan of a build, made once: the Dockerfile's text, its ignore file, and every external image pinned to a digest.

Pinning here, before any executor starts, is what makes the platforms of one build agree: a tag that moves while the
build runs cannot give amd64 another base than arm64.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from executor import job
from executor.build import graph, scope
from executor.dockerfile import Dockerfile, global_scope, parse
from executor.registry import reference
from orchestrator.request import Request
from platforms import host
from platforms.errors import ContextError, DockerfileError, UsageError
from platforms.platform import Platform

_TEXT_LIMIT: Final = 16 << 20
"""Bytes of a Dockerfile or an ignore file that we read: far beyond any real one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What all platforms share."""

    dockerfile: Dockerfile
    data: bytes
    """The Dockerfile as it was read."""
    name: str
    """The Dockerfile's path as it is shown in errors."""
    contexts: tuple[job.Context, ...]
    images: tuple[graph.External, ...]
    """Those that some platform needs."""


def read(request: Request, platforms: Iterable[Platform]) -> Plan:
    """Read what the build is made of. Raises ``DockerfileError``, ``ContextError`` or ``UsageError``."""
    data, name = _dockerfile(request)
    dockerfile = parse(data, name)
    contexts = [_main_context(request, name)] if request.context != "-" else []
    contexts += [named_context(key, value) for key, value in request.build_contexts]
    named = [each.name for each in contexts if each.name]
    images: dict[str, graph.External] = {}
    for platform in platforms:
        given = dict(request.build_args)
        arguments = global_scope(
            dockerfile,
            given,
            scope.platform_arguments(host.default_platform(), platform, request.target or dockerfile.stages[-1].name),
        )
        for image in graph.plan(dockerfile, request.target, arguments, named).images:
            images.setdefault(image.name, image)
    for context in contexts:
        if context.kind == "image":
            images.setdefault(context.location, graph.External(context.location))
    return Plan(dockerfile, data, name, tuple(contexts), tuple(images.values()))


def named_context(name: str, value: str) -> job.Context:
    """``--build-context name=value``, with the prefixes that buildx knows."""
    if value.startswith("docker-image://"):
        location = value.removeprefix("docker-image://")
        reference.parse(location)
        return job.Context(name, "image", location)
    if value.startswith("oci-layout://"):
        return job.Context(name, "layout", os.path.abspath(value.removeprefix("oci-layout://")))
    if value.startswith(("https://", "http://", "git://", "git@", "ssh://")):
        is_git = value.partition("#")[0].endswith(".git") or value.startswith(("git://", "git@", "ssh://"))
        return job.Context(name, "git" if is_git else "archive", value)
    path = os.path.abspath(value)
    if not os.path.isdir(path):
        raise ContextError(
            f"build context {name}: no directory {value}",
            remedy="a named context is a directory, docker-image://REF, oci-layout://PATH, or a URL",
        )
    return job.Context(name, "directory", path, _ignore_text(path, ""))


def _dockerfile(request: Request) -> tuple[bytes, str]:
    if request.dockerfile == "-" or (request.context == "-" and not request.dockerfile):
        return _bounded(sys.stdin.buffer.read(_TEXT_LIMIT + 1), "stdin"), "Dockerfile"
    path = request.dockerfile or os.path.join(request.context, "Dockerfile")
    if not request.dockerfile and not os.path.exists(path):
        for other in ("dockerfile", "Containerfile"):
            if os.path.exists(os.path.join(request.context, other)):
                path = os.path.join(request.context, other)
                break
    try:
        with open(path, "rb") as file:
            data = file.read(_TEXT_LIMIT + 1)
    except OSError as error:
        raise DockerfileError(
            f"cannot read the Dockerfile {path}",
            why=error.strerror or str(error),
            remedy="name the file with --file, or the directory that holds it as CONTEXT",
        ) from error
    return _bounded(data, path), os.path.relpath(path) if not os.path.isabs(path) else path


def _bounded(data: bytes, name: str) -> bytes:
    if len(data) > _TEXT_LIMIT:
        raise DockerfileError(f"{name} is too large", why=f"more than {_TEXT_LIMIT >> 20} MiB")
    return data


def _main_context(request: Request, dockerfile: str) -> job.Context:
    path = os.path.abspath(request.context)
    if not os.path.exists(path):
        raise ContextError(f"no build context {request.context}", why="the directory does not exist")
    if not os.path.isdir(path):
        raise ContextError(f"the build context {request.context} is not a directory")
    return job.Context("", "directory", path, _ignore_text(path, dockerfile))


def _ignore_text(directory: str, dockerfile: str) -> str:
    """The ignore file that applies: the Dockerfile's own beside it, else the context's."""
    candidates = [os.path.join(directory, ".dockerignore")]
    if dockerfile:
        candidates.insert(0, dockerfile + ".dockerignore")
    for path in candidates:
        try:
            with open(path, "rb") as file:
                return _bounded(file.read(_TEXT_LIMIT + 1), path).decode("utf-8", "replace")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ContextError(f"cannot read {path}", why=error.strerror or str(error)) from error
    return ""


def check_names(contexts: tuple[tuple[str, str], ...]) -> None:
    """Refuse names of contexts that cannot be: empty, twice."""
    seen: set[str] = set()
    for name, _ in contexts:
        if not name or name.casefold() in seen:
            raise UsageError(f"--build-context: the name {name!r} is empty or there twice")
        seen.add(name.casefold())
