"""The build of an image of a release: as the words of a ``kanifold build``, and as its request.

All that a release file says goes through the flags, so that it is read, checked and refused as they are.
"""

from __future__ import annotations

import csv
import functools
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from msgspec.structs import replace

from orchestrator import contexts, flags
from orchestrator.release.build_order import refused
from orchestrator.release.model import IMAGE_CONTEXT, Fields, ReleaseImage
from orchestrator.request import BuildRequest
from platforms.errors import KanifoldError, UsageError
from platforms.paths import below, named_by_user

_PLACES = ("dest", "src", "source")
"""The keys of fields whose values are paths."""
_SCHEMES = ("docker-image://", "oci-layout://")


def csv_of(fields: Iterable[tuple[str, str]]) -> str:
    """Return ``fields`` as a flag takes them: ``key=value,key=value`` in CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow([f"{key}={value}" for key, value in fields])
    return out.getvalue()


def arguments(image: ReleaseImage, directory: str, images: Mapping[str, str]) -> list[str]:
    """Return the arguments of the ``kanifold build`` that builds ``image``, whose paths are relative to ``directory``.

    ``images`` are the places of those that it is built from, by name.
    """
    context = image.context
    if context.startswith(IMAGE_CONTEXT):
        raise UsageError(
            f"{image.name}: the build context cannot be another image",
            remedy="make it a named context, and COPY --from= that",
            where=image.where,
        )
    here = not (contexts.is_remote(context) or context == "-")
    place = _path(directory, context) if here else context
    inside = here and not os.path.isabs(image.dockerfile)
    dockerfile = named_by_user(place, image.dockerfile) if inside and image.dockerfile else image.dockerfile
    given: list[tuple[str, Iterable[str]]] = [
        ("--file", filter(None, (dockerfile,))),
        ("--build-context", (f"{name}={_context(directory, each, images)}" for name, each in image.contexts)),
        ("--build-arg", (name if value is None else f"{name}={value}" for name, value in image.args)),
        ("--label", (f"{name}={value or ''}" for name, value in image.labels)),
        ("--annotation", image.annotations),
        ("--tag", image.tags),
        ("--platform", image.platforms),
        ("--node", image.nodes or ()),
        ("--secret", _flags(directory, image.secrets)),
        ("--ssh", map(_agent, image.ssh)),
        ("--cache-from", _flags(directory, image.cache_from)),
        ("--cache-to", _flags(directory, image.cache_to)),
        ("--output", _flags(directory, image.outputs or ((("type", "cacheonly"),),))),
        ("--no-cache-filter", image.no_cache_filter),
        ("--ulimit", image.ulimits),
        ("--add-host", (f"{name}={address or ''}" for name, address in image.extra_hosts)),
        ("--target", filter(None, (image.target,))),
        ("--network", filter(None, (image.network,))),
        ("--shm-size", filter(None, (image.shm_size,))),
    ]
    words = [f"{flag}={value}" for flag, values in given for value in values]
    return [*words, *(["--no-cache"] if image.no_cache else []), "--", place]


def _flags(directory: str, values: Iterable[Fields]) -> Iterable[str]:
    """Return ``values`` as a flag takes them, with paths that do not depend on the current directory."""
    for fields in values:
        named = ((key.strip().lower(), key, value) for key, value in fields if value)
        yield csv_of(
            (key, _path(directory, value) if name in _PLACES and value != "-" else value) for name, key, value in named
        )


def _path(directory: str, path: str) -> str:
    return os.path.normpath(named_by_user(directory, path))


def _context(directory: str, place: str, images: Mapping[str, str]) -> str:
    if place.startswith(IMAGE_CONTEXT):
        return images[place.removeprefix(IMAGE_CONTEXT)]
    if place.startswith("oci-layout://"):
        return f"oci-layout://{_path(directory, place.removeprefix('oci-layout://'))}"
    return place if place.startswith(_SCHEMES) or contexts.is_remote(place) else _path(directory, place)


def _agent(fields: Fields) -> str:
    values = dict(fields)
    paths = values.get("paths", "")
    return f"{values.get('id', 'default')}={paths}" if paths else values.get("id", "default")


def parameters(image: ReleaseImage, words: Sequence[str], shared: Mapping[str, Any]) -> BuildRequest:
    """Return the request of ``kanifold build`` with ``words``, and ``shared`` values of flags over these.

    Raises ``KanifoldError``, which names the image.
    """
    try:
        return flags.request({**_build().make_context("build", list(words)).params, **shared})
    except click.ClickException as error:
        raise UsageError(f"{image.name}: {error.format_message()}", where=image.where) from error
    except KanifoldError as error:
        raise refused(image, error) from error


@functools.cache
def _build() -> click.Command:
    """Return a command with the flags of ``kanifold build``."""
    return click.command()(flags.BuildFlags.declare(lambda **_: None))


def with_inline_dockerfile(image: ReleaseImage, scratch: str) -> ReleaseImage:
    """Return ``image`` with its inline Dockerfile as a file in the directory ``scratch``."""
    if image.dockerfile_inline is None:
        return image
    path = below(scratch, f"{image.name}.Dockerfile")
    with open(path, "w", encoding="utf-8") as file:
        file.write(image.dockerfile_inline)
    return replace(image, dockerfile=os.path.abspath(path), dockerfile_inline=None)
