"""Publishes images to all of their destinations, or to none: content first, tags last.

Tags are resolved before anything is pushed, and again before the first is set. If one was moved in between, that is an
error, and no tag is set. Registries have no conditional update of tags, so a move after the second look is not noticed.
A failure between two tags is not undone; the error names the tags that were set.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from executor.registry.client import Client
from executor.registry.reference import Reference
from orchestrator.index import destinations
from orchestrator.index.destinations import CompleteImage, PushDestination
from orchestrator.index.names import ImageName, LayoutName, RegistryName
from orchestrator.view import events
from orchestrator.view.events import Emit
from orchestrator.view.units import size as shown
from platforms.errors import ArchiveError, KanifoldError, RegistryError

NONE: Final = "none"
"""The value of ``--expect`` for a tag that does not exist."""


class Target(msgspec.Struct, frozen=True):
    """A name for the image, and its digest at the start ("" if it did not exist)."""

    name: ImageName
    standing: str


class CommandContext(msgspec.Struct, frozen=True):
    """The registry clients and options of one command."""

    client: Client
    cancelled: threading.Event
    emit: Emit


def targets(
    context: CommandContext, names: Sequence[ImageName], expect: str = "", base: ImageName | None = None
) -> tuple[Target, ...]:
    """Return ``names`` with their current digests. Raises ``RegistryError`` or ``ArchiveError`` if not as expected.

    ``expect`` is a digest, ``none``, or "" for any. If a registry refuses the request, the tag counts as missing,
    unless ``expect`` is set or it is the tag of ``base``, which is edited: some registries refuse requests for a
    repository before the first push to it.
    """
    found = tuple(
        Target(name, standing(context.client, name) if expect or name == base else _standing_if_said(context, name))
        for name in dict.fromkeys(names)
    )
    for each in found:
        if expect and each.standing != ("" if expect == NONE else expect):
            raise _moved(each.name, expect, each.standing, "nothing has been changed")
    return found


def publish(context: CommandContext, complete: CompleteImage, wanted: Sequence[Target]) -> None:
    """Write ``complete`` to all of ``wanted``. Raises ``KanifoldError``, which says what was done if anything was."""
    whole: list[Reference] = []
    for repository in repositories(wanted):
        context.emit(events.Publishing(what=repository.familiar()))
        near = tuple(each.repository for each in whole if each.registry == repository.registry)
        pushed = destinations.push(PushDestination(context.client, repository, context.cancelled, near), complete)
        whole.append(repository)
        context.emit(events.Publishing(what=f"{repository.familiar()}: {_described(pushed)}", done=1, total=1))
    for each in wanted:
        now = standing(context.client, each.name) if each.standing else _standing_if_said(context, each.name)
        if now not in (each.standing, complete.root.descriptor.digest):
            raise _moved(each.name, each.standing or NONE, now, "no tag has been moved")
    done: list[str] = []
    for each in sorted(wanted, key=lambda target: isinstance(target.name, RegistryName)):
        try:
            _give_name(context, each, complete)
        except KanifoldError as error:
            if done:
                left = ", ".join(str(target.name) for target in wanted if str(target.name) not in done)
                why = f"{error.problem.why}; {', '.join(done)} has moved, {left} has not"
                error.problem = replace(error.problem, why=why.removeprefix("; "))
            raise
        done.append(str(each.name))
        context.emit(events.Published(ref=str(each.name), digest=complete.root.descriptor.digest))


def repositories(wanted: Sequence[Target]) -> tuple[Reference, ...]:
    """Return the repositories of ``wanted``, each once."""
    found = (each.name.reference.repository_only() for each in wanted if isinstance(each.name, RegistryName))
    return tuple(dict.fromkeys(found))


def _give_name(context: CommandContext, target: Target, complete: CompleteImage) -> None:
    if isinstance(target.name, LayoutName):
        destinations.write(target.name, complete, context.cancelled)
    elif target.standing != complete.root.descriptor.digest:
        destinations.move(context.client, target.name.reference, complete.root)


def standing(client: Client, name: ImageName) -> str:
    """Return the current digest of ``name``; "" if it does not exist."""
    if isinstance(name, LayoutName):
        return destinations.standing_in(name)
    return destinations.standing(client, name.reference)


def _standing_if_said(context: CommandContext, name: ImageName) -> str:
    try:
        return standing(context.client, name)
    except RegistryError:
        return ""


def _moved(name: ImageName, expected: str, now: str, done: str) -> KanifoldError:
    found = now or "not there"
    kind = RegistryError if isinstance(name, RegistryName) else ArchiveError
    wanted = "it was not to be there" if expected == NONE else f"it was to be {expected}"
    return kind(
        f"{name} is not what was expected",
        why=f"{wanted}, and is {found}; {done}",
        remedy="look at it, and run this again",
    )


def _described(pushed: destinations.Pushed) -> str:
    words = [
        f"{pushed.present} blobs there already" if pushed.present else "",
        f"{pushed.mounted} mounted" if pushed.mounted else "",
        f"{pushed.sent} sent ({shown(pushed.size)})" if pushed.sent else "",
    ]
    return ", ".join(filter(None, words)) or "nothing to send"
