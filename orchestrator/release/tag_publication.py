"""Setting the tags of a release, after all images are in their registries by digest: what moved is always known."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from executor.registry.reference import Reference
from orchestrator import publish
from orchestrator.outputs import DockerArchive, LocalArchive, OciArchive
from orchestrator.publish import PreparedImage
from orchestrator.registries import Registry
from orchestrator.release.model import ReleaseImage
from orchestrator.request import BuildRequest
from orchestrator.view import events
from orchestrator.view.events import Emit
from platforms.errors import Interrupted, KanifoldError, RegistryError, UsageError

_ANSWER: Final = 1.0
"""Seconds to wait for a registry's answer about a tag when the publication is interrupted."""
_LISTED: Final = 100
"""Maximum number of tags that an error lists."""


class _Tag(msgspec.Struct, frozen=True):
    """A tag to set."""

    reference: Reference
    prepared: PreparedImage
    present: str
    """Its digest before; "" if it is new or unknown."""


def check(images: Sequence[ReleaseImage], requests: Sequence[BuildRequest]) -> None:
    """Raise ``UsageError`` if two of ``images`` would set one tag or write one archive, however their ``requests`` name
    it."""
    owners: dict[tuple[str, str], str] = {}
    for image, request in zip(images, requests, strict=True):
        for kind, name, whole in _destinations(request):
            owner = owners.setdefault((kind, whole), image.name)
            if owner != image.name:
                raise UsageError(
                    f"two images have the {kind} {name}: {owner} and {image.name}",
                    remedy=f"give each {kind} a name of its own, for example with a value of the matrix in it",
                    where=image.where,
                )


def _destinations(request: BuildRequest) -> Iterator[tuple[str, str, str]]:
    """Yield what ``request`` replaces: of which kind it is, what it is called, and what identifies it."""
    for tag in publish.tags_of(request):
        yield "tag", tag.familiar(), str(tag)
    for output in request.outputs:
        if isinstance(output, OciArchive | DockerArchive | LocalArchive):
            yield "archive", output.dest, os.path.realpath(output.dest) if output.dest != "-" else "-"


async def publish_all(images: Sequence[PreparedImage], registry: Registry, emit: Emit) -> None:
    """Set all tags of ``images``, in order. This is the last change of a release to registries.

    A tag that has the digest already is not set again, so that a publication that was interrupted can be finished.
    Raises ``RegistryError`` or ``Interrupted``, which say which tags were set.
    """
    tags = [_Tag(tag.reference, each, tag.digest) for each in images for tag in each.tags]
    done: list[_Tag] = []
    for number, each in enumerate(tags):
        emit(events.Publishing(what="tags", done=number, total=len(tags)))
        if each.present != each.prepared.result.root.digest:
            await _set(each, done, tags, registry)
        done.append(each)
        emit(events.Published(ref=str(each.reference), digest=each.prepared.result.root.digest))
    if tags:
        emit(events.Publishing(what="tags", done=len(tags), total=len(tags)))


async def _set(tag: _Tag, done: Sequence[_Tag], tags: Sequence[_Tag], registry: Registry) -> None:
    """Set ``tag``; ``done`` are those of ``tags`` that have their digests."""
    root = tag.prepared.result.root
    put = asyncio.create_task(
        asyncio.to_thread(registry.put_manifest, tag.reference, tag.prepared.result.data, root.media_type)
    )
    try:
        await asyncio.shield(put)
    except asyncio.CancelledError as error:
        await asyncio.wait([put], timeout=_ANSWER)
        known = put.done() and put.exception() is None
        interrupted = Interrupted("the release was interrupted")
        raise _incomplete(interrupted, tag, [*done, tag] if known else done, tags) from error
    except KanifoldError as error:
        found = await asyncio.to_thread(_is_set, tag, registry)
        raise _incomplete(error, tag, [*done, tag] if found else done, tags) from error


def _is_set(tag: _Tag, registry: Registry) -> bool:
    with contextlib.suppress(KanifoldError):
        found = registry.has_manifest(tag.reference)
        return found is not None and found.digest == tag.prepared.result.root.digest
    return False


def _incomplete(error: KanifoldError, at: _Tag, done: Sequence[_Tag], tags: Sequence[_Tag]) -> KanifoldError:
    """Return ``error``, met at the tag ``at``, with what has moved and what has not."""
    moved = [str(each.reference) for each in done]
    left = [str(each.reference) for each in tags if each not in done]
    problem = error.problem
    reason = f"{problem.what}: {problem.why}" if problem.why else problem.what
    told = [
        f"{at.reference}: {reason}",
        f"has its new digest: {_listed(moved)}",
        f"does not: {_listed(left)}",
    ]
    kind = Interrupted if isinstance(error, Interrupted) else RegistryError
    return kind(
        f"{len(moved)} of {len(tags)} tags of the release were set",
        why="\n".join(told),
        remedy="run the same command again: what is built and set stays, and the other tags follow",
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "none") + more
