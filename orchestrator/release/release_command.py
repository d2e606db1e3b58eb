"""The command ``kanifold release``, from its plan to the exit status."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import click
import msgspec
from msgspec.structs import replace

from executor.registry import auth
from executor.store import policy
from executor.store.store import default_root
from orchestrator import build_history, metadata_file, session
from orchestrator.build import PlatformsFailedError
from orchestrator.nodes.local_node import LocalNode
from orchestrator.nodes.node import Node
from orchestrator.prefork import PreforkServer
from orchestrator.registries import Connect
from orchestrator.release import release_jobs, tag_publication
from orchestrator.release.bake import bake_json
from orchestrator.release.model import ReleaseImage
from orchestrator.release.release_build import BuiltImage, ReleaseBuild, started
from orchestrator.release.release_flags import ReleaseFlags, ReleasePlan, plan
from orchestrator.release.release_jobs import ReleaseJob
from orchestrator.request import BuildRequest
from orchestrator.session import SharedCapacity
from orchestrator.view import events, open_display
from orchestrator.view.events import Emit
from orchestrator.view.stdout import print_json, print_line
from platforms.emulation import ImageEmulators
from platforms.errors import Interrupted, KanifoldError, Problem, UsageError


@click.command(short_help="Build, test and publish several images together.")
@click.argument("names", metavar="[GROUP|IMAGE]...", nargs=-1)
@ReleaseFlags.declare
def release(names: tuple[str, ...], **given: Any) -> None:
    """Build the images of a release file, test them, and publish all of them or none.

    The file is kanifold.yaml (docs/releases.md). Without names, the group default is built, or all images. Images that
    others are built from are built, too; only those that were named are published, where --push, --load or their
    outputs say.
    """
    click.get_current_context().exit(_run(plan(given, names, os.environ)))


def _run(planned: ReleasePlan) -> int:
    flags, requests = ReleaseFlags(planned.given), planned.first_requests()
    if flags.show:
        print_json(bake_json.document(planned.selected.images, planned.release.groups, planned.names))
        return 0
    own = [
        each for each in zip(planned.selected.images, requests, strict=True) if each[0].name in planned.selected.wanted
    ]
    tag_publication.check([image for image, _ in own], [request for _, request in own])
    from orchestrator import bootstrap, prefork, registries

    if flags.join:
        return _joined(planned, requests)
    gc.disable()
    with prefork.opened(None) as server:
        from platforms import emulation

        platforms = tuple(dict.fromkeys(each for request in requests for each in request.platforms))
        with bootstrap.image_emulators(platforms, requests[0]) as emulators:
            tried = emulation.prefetch(platforms, emulators)
            gc.freeze()
            gc.enable()
            tried()
            nodes = _nodes(planned, requests, server, emulators)
            if flags.dry_run:
                from orchestrator.release import release_dry_run

                return release_dry_run.show(planned, requests, nodes)
            connect = registries.direct if server is None else server.registries.connect
            with _agents(requests) as sockets:
                return _built_and_collected(_Running(planned, requests, nodes, connect, sockets))


def _joined(planned: ReleasePlan, requests: Sequence[BuildRequest]) -> int:
    """Join what the jobs of a CI system have built, and return the exit status."""
    from orchestrator import registries
    from orchestrator.release import release_join

    settings = requests[0].options.registries
    with open_display(requests[0].progress) as display:
        found = release_join.join(planned, requests, registries.direct(settings, auth.docker_keychain()), display.emit)
    for image, digest in found:
        print_line(f"{image} {digest}")
    return 0


def _nodes(
    planned: ReleasePlan,
    requests: Sequence[BuildRequest],
    server: PreforkServer | None,
    emulators: ImageEmulators | None,
) -> tuple[Node, ...]:
    """Return the nodes that some image may be built on."""
    jobs = 0
    for image, request in zip(planned.selected.images, requests, strict=True):
        jobs += len(request.platforms) * (1 + len(image.tests))
    here = LocalNode(server, requests[0].options.isolation, emulators, min(jobs, _FORKED))
    found: dict[str, Node] = {}
    platforms = tuple(each for request in requests for each in (*request.platforms, request.build_platform))
    build = "\0".join((os.getcwd(), *(each.name for each in planned.selected.images)))
    for request in requests:
        if request.nodes is None:
            found.setdefault(here.name, here)
            continue
        from orchestrator.nodes import node_selection

        sends = not request.dry_run
        for each in node_selection.nodes(request.nodes, here, sends=sends, platforms=platforms, build=build):
            found.setdefault(each.name, each)
    return tuple(found.values())


@contextlib.contextmanager
def _agents(requests: Sequence[BuildRequest]) -> Iterator[dict[str, str]]:
    """Yield the sockets of the SSH agents of all images, by name."""
    wanted: dict[str, str] = {}
    for name, place in (each for request in requests for each in request.ssh):
        if wanted.setdefault(name, place) != place:
            raise UsageError(f"two images have an SSH agent {name}, at different places")
    if not wanted:
        yield {}
        return
    from orchestrator.ssh_agent import start_agents

    with start_agents(tuple(wanted.items())) as sockets:
        yield sockets


class _Running(msgspec.Struct, frozen=True):
    """A release that is run."""

    planned: ReleasePlan
    requests: tuple[BuildRequest, ...]
    """Those of all images, as far as they are known before anything is built."""
    nodes: tuple[Node, ...]
    connect: Connect
    agents: Mapping[str, str]
    """The sockets of SSH agents by name."""

    @property
    def first(self) -> BuildRequest:
        """A request with what all have in common."""
        return self.requests[0]

    def request(self, image: ReleaseImage, places: Mapping[str, str]) -> BuildRequest:
        """Return the request of ``image``, as ``ReleasePlan.request``."""
        return replace(self.planned.request(image, places), agents=self.agents)

    async def run(self, emit: Emit) -> tuple[BuiltImage, ...]:
        """Build, test and publish."""
        insecure = frozenset(each for request in self.requests for each in request.options.registries.insecure)
        settings = replace(self.first.options.registries, insecure=insecure)
        jobs = self.first.jobs
        capacity = SharedCapacity(asyncio.Semaphore(jobs) if jobs else None)
        selected, release = self.planned.selected, self.planned.release
        emit(started(selected.images, self.requests, release.file, jobs))
        if not any(request.outputs for request in self.requests):
            emit(events.WarningRaised(problem=_NOT_PUBLISHED))
        async with session.opened(self.nodes, self.first.options.root, settings, self.connect, emit) as opened:
            shared = replace(opened, capacity=capacity)
            work = ReleaseBuild(shared, selected, self.request, release.directory, self.planned.provided)
            every = await work.build()
            built = tuple(each for each in every if each.image.name in selected.wanted)
            await tag_publication.publish_all([each.prepared for each in built], opened.registry, emit)
        flags = ReleaseFlags(self.planned.given)
        if flags.metadata_file:
            documents: dict[str, object] = {each.image.name: _metadata(each) for each in built}
            metadata_file.write_document(flags.metadata_file, documents)
        if self.planned.job is not None:
            self._write_job(self.planned.job, built[0], every)
        return built

    def _write_job(self, job: ReleaseJob, built: BuiltImage, every: Sequence[BuiltImage]) -> None:
        """Write the metadata of ``job``, which has ``built`` an image out of ``every`` one that it depends on."""
        digests = {each.image.name: images[job.platform] for each in every if (images := _digests(each))}
        used = {
            name: digests.get(name) or self.planned.provided[name].rpartition("@")[2] for name in built.image.depends_on
        }
        release_jobs.write(self.planned.metadata, job, _metadata(built), used)


_FORKED: Final = 64
"""Maximum number of executors that are forked before they are wanted; further ones are started as commands."""
_NOT_PUBLISHED: Final = Problem(
    "UsageError",
    "nothing will be published",
    why="no image has outputs, and there is neither --push nor --load",
    remedy="add --push when it is to be",
)


def _built_and_collected(running: _Running) -> int:
    """Run the release and return the exit status; then collect garbage in the store, unless it was interrupted."""
    root = os.path.abspath(running.first.options.root or default_root())
    wanted = policy.load(root)
    status = _displayed(root, running)
    if status != Interrupted.exit_code:
        from orchestrator import store_gc

        store_gc.collect_after_build(root, wanted)
    return status


def _displayed(root: str, running: _Running) -> int:
    """Run the release with a display, print the digests, and return the exit status.

    It is recorded in the history of the store ``root``.
    """
    from orchestrator import command

    request = running.first
    with (
        open_display(request.progress) as display,
        command.traced(request.trace, display.emit) as traced_emit,
        command.reported(request.reports, traced_emit) as reported_emit,
        build_history.recorded(root, request.reports, reported_emit) as emit,
    ):
        try:
            with command.descriptors_needed():
                built = asyncio.run(command.interruptible(running.run(emit)))
        except KanifoldError as error:
            outcome: events.Outcome = "cancelled" if isinstance(error, Interrupted) else "failed"
            troubles = error.troubles if isinstance(error, PlatformsFailedError) else (events.Failure(error.problem),)
            emit(events.BuildEnded(outcome=outcome, troubles=troubles))
            return error.exit_code
        emit(events.BuildEnded(outcome="built"))
    for each in built:
        print_line(f"{each.image.name} {each.prepared.result.root.digest}")
    return 0


def _metadata(built: BuiltImage) -> dict[str, object]:
    return metadata_file.document(built.request, built.prepared.result)


def _digests(built: BuiltImage) -> dict[str, str]:
    """Return the digests of the manifests of an image by platform."""
    return {str(each.platform): each.descriptor.digest for each in built.prepared.result.images}


def plan_of(words: Sequence[str], environ: Mapping[str, str]) -> ReleasePlan:
    """Return the plan of ``kanifold release`` with ``words``. Raises ``KanifoldError``."""
    try:
        given = dict(release.make_context("release", list(words)).params)
    except click.ClickException as error:
        raise UsageError(f"kanifold release {' '.join(words)}: {error.format_message()}") from error
    return plan(given, given.pop("names"), environ)
