"""One build in a session: from a request to published images.

The phases, which comments below name by their numbers:

(1) placement: a node for every platform;
(2) plan: read the Dockerfile, resolve external images;
(3) build: cached results, or executors;
(4) verification and audit of the results;
(5) push by digest, and local outputs.

Then tags can be set (``publish.commit``). An error or Ctrl-C before (5) leaves nothing.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from executor import protocol
from executor.image.digest import sha256
from executor.registry.reference import Reference
from executor.solver.graph import External
from executor.store.removal import remove_tree
from executor.store.store import Store
from orchestrator import jobs as making
from orchestrator import publish, result_cache, warnings
from orchestrator.nodes.node import ExecutorPool
from orchestrator.nodes.placement import (
    Placement,
    Placements,
    build_platform,
    declared_name,
    place_all,
    refuse_unfit,
)
from orchestrator.outputs import Push
from orchestrator.plan import BuildPlan
from orchestrator.publish import PreparedImage
from orchestrator.registries import Registry
from orchestrator.request import BuildRequest
from orchestrator.results import BuildResult, Image, PlatformFailure, PlatformResult
from orchestrator.session import Session
from orchestrator.view import events
from orchestrator.view.events import Emit
from platforms import debug
from platforms.errors import BuildError, KanifoldError, UsageError
from platforms.platform import Platform

if TYPE_CHECKING:
    from orchestrator.local_outputs import LocalOutputs

_Push = Callable[[BuildResult, Sequence[Reference], Sequence[Reference], Registry, Emit], Awaitable[None]]
"""Pushes the root document of a build to its repositories; the third argument are the tags that will be set."""
Accept = Callable[[BuildResult], Awaitable[None]]
"""Called when all images of a build are there by digest, before local outputs; what it raises fails the build."""
_RESOLVED_AT_ONCE: Final = 8
"""Number of images that are resolved concurrently."""


class PlatformsFailedError(BuildError):
    """Platforms were not built. Has all errors; the exit status is that of the first."""

    troubles: tuple[events.Failure, ...] = ()

    @classmethod
    def because_of(cls, failures: Sequence[PlatformFailure]) -> PlatformsFailedError:
        """Return the error for ``failures``, at least one."""
        first = failures[0].error
        made = cls(first.problem.what, why=first.problem.why)
        made.troubles = tuple(events.Failure(each.error.problem, str(each.placement.platform)) for each in failures)
        made.exit_code = first.exit_code  # type: ignore[misc]
        return made


class _Build(msgspec.Struct, frozen=True):
    """The state of a build."""

    session: Session
    request: BuildRequest
    placements: tuple[Placement, ...]
    scratch: str
    """A path for temporary files, not made yet."""
    local: LocalOutputs | None
    """The local outputs of the build; None if there are none."""
    push: _Push
    pushing: asyncio.Event
    """Set as soon as it is known that something will be pushed."""
    may_push: asyncio.Task[None]
    """Done when the registries have accepted the push."""
    executors: ExecutorPool
    accept: Accept | None

    @property
    def emit(self) -> Emit:
        return self.session.emit


async def build(session: Session, request: BuildRequest, plan: BuildPlan | None = None) -> BuildResult:
    """Build the request and publish the result. ``plan`` is given if it was made already."""
    prepared = await _prepared(session, request, plan, publish.push_untagged)
    await publish.commit(prepared, session.registry, session.emit)
    return prepared.result


async def prepare(
    session: Session, request: BuildRequest, plan: BuildPlan | None = None, accept: Accept | None = None
) -> PreparedImage:
    """Build the request, push by digest, and write local outputs. ``publish.commit`` sets the tags."""
    return await _prepared(session, request, plan, publish.push, accept)


async def _placed(session: Session, request: BuildRequest, plan: BuildPlan | None) -> Placements:
    """Return a node for every platform, and warn of nodes that could not be asked."""
    found = await place_all(request, plan, session.nodes, session.capacity.placed)
    for each in found.skipped:
        session.emit(events.WarningRaised(problem=each.warning))
    if request.nodes is not None and request.nodes.unknown:
        from orchestrator.nodes import node_selection

        for problem in node_selection.unknown_nodes(request.nodes):
            session.emit(events.WarningRaised(problem=problem))
    return found


def _for_builder(
    request: BuildRequest, plan: BuildPlan | None, builder: Platform
) -> tuple[BuildRequest, BuildPlan | None]:
    """Return ``request`` with BUILDPLATFORM ``builder``, and its plan."""
    if builder == request.build_platform:
        return request, plan
    from orchestrator import plan as planning

    request = replace(request, builder=builder)
    return request, None if plan is None else planning.at_hand(request)


async def _prepared(
    session: Session, request: BuildRequest, plan: BuildPlan | None, push: _Push, accept: Accept | None = None
) -> PreparedImage:
    found = await _placed(session, request, plan)  # (1)
    placements = found.each
    request, plan = _for_builder(request, plan, build_platform(found, session.nodes))
    for each in placements:
        debug.log("placed", platform=str(each.platform), node=each.node.name, runs=each.how or "nothing")
    local = await _local_outputs(session, request)
    session.emit(_started(request, placements, chosen=len(session.nodes) > 1))
    scratch, executors = session.store.session.temporary(), ExecutorPool()
    try:
        async with asyncio.TaskGroup() as group:  # a failure cancels the other task
            pushing = asyncio.Event()
            may_push = group.create_task(_may_push(request, session.registry, pushing))
            begun = _Build(session, request, placements, scratch, local, push, pushing, may_push, executors, accept)
            made = group.create_task(_made(begun, plan))
        return made.result()
    except ExceptionGroup as errors:
        raise errors.exceptions[0]  # noqa: B904 - its own cause is the better one
    finally:
        session.leave(executors.release())
        session.leave(asyncio.to_thread(remove_tree, scratch))


def _started(request: BuildRequest, placements: Iterable[Placement], *, chosen: bool) -> events.BuildStarted:
    """Return the first event of the build; ``chosen``: whether there was a choice of nodes, and a reason."""
    return events.BuildStarted(
        platforms=tuple(
            events.PlatformPlacement(
                str(each.platform), "" if each.shares_disk else each.node.name, each.how, each.why if chosen else ""
            )
            for each in placements
        ),
        name=str(request.tags[0].familiar()) if request.tags else _named(request.context),
        tags=tuple(each.familiar() for each in request.tags),
        jobs=request.jobs,
    )


def _named(context: str) -> str:
    """Return ``context`` for display: a password in a URL is masked."""
    if "://" not in context:
        return context
    from executor.context.http import shown

    return shown(context)


async def _may_push(request: BuildRequest, registry: Registry, pushing: asyncio.Event) -> None:
    """Check that registries accept pushes, once it is known that something will be pushed."""
    await pushing.wait()
    await publish.check_push(request.repositories, registry)


async def _local_outputs(session: Session, request: BuildRequest) -> LocalOutputs | None:
    """Return the local outputs of the build. Raises ``KanifoldError`` if a program for one is missing."""
    if all(isinstance(each, Push) for each in request.outputs):
        return None
    from orchestrator import local_outputs

    return await asyncio.to_thread(local_outputs.find, request, session.store)


async def _made(build: _Build, plan: BuildPlan | None) -> PreparedImage:
    request, session = build.request, build.session
    # Fetched files are temporary, so they could not be checked again.
    cacheable = plan is not None and result_cache.is_cacheable(request, build.placements)
    if plan is None:
        from orchestrator import fetching

        plan = await fetching.plan(request, build.scratch, build.emit, session.capacity.fetched)  # (2)
    refuse_unfit(plan, build.placements)
    for warning in warnings.missing_epoch(request, plan):
        build.emit(warning)
    name = os.path.basename(build.scratch)
    jobs = [(each, making.job(request, plan, each, name)) for each in build.placements]
    cached = await asyncio.to_thread(result_cache.find, jobs, session.store) if cacheable else ()
    pins, holding = await _pinned(build, plan, jobs, cached)
    checked = asyncio.create_task(
        asyncio.to_thread(warnings.check_warnings, request, plan, pins, session.registry, session.store)
    )
    if warnings.may_fail(request, plan):
        await checked
    jobs = [(each, replace(job, pins=pins)) for each, job in jobs]
    built, failed = await _built(build, jobs, cached if holding else ())  # (3)
    staying = list(built)

    def release(each: PlatformResult) -> None:
        staying.remove(each)
        session.leave(each.executor.close())

    try:
        taken = {name for each in built for name in each.result.contexts}
        for warning in (*await checked, *warnings.unused_contexts(plan, taken)):
            build.emit(warning)
        if failed:
            raise PlatformsFailedError.because_of(failed)
        prepared = await _finish(build, plan, built, release)
        prepared = replace(prepared, result=replace(prepared.result, pins=pins, dockerfile=sha256(plan.data)))
        if cacheable:
            session.leave(asyncio.to_thread(result_cache.store_results, built, jobs, session.store))
        return prepared
    finally:
        for each in tuple(staying):
            release(each)


async def _pinned(
    build: _Build, plan: BuildPlan, jobs: result_cache.Jobs, cached: Sequence[result_cache.CachedResult]
) -> tuple[tuple[protocol.Pin, ...], bool]:
    """Return the pins of all external images, and whether the ``cached`` results are valid for them."""
    stop = threading.Event()

    def otherwise() -> None:
        build.pushing.set()
        _start_executors(build)

    try:
        pins, holding = await asyncio.gather(
            _pin(build, plan, cached, stop),
            result_cache.are_valid(cached, jobs, build.session.store, stop, otherwise),
        )
    except KanifoldError:  # an image cannot be resolved, perhaps because a named context has a wrong name
        for warning in warnings.unused_contexts(plan, ()):
            build.emit(warning)
        raise
    return pins, holding and not stop.is_set()


async def _pin(
    build: _Build, plan: BuildPlan, cached: Sequence[result_cache.CachedResult], stop: threading.Event
) -> tuple[protocol.Pin, ...]:
    """Resolve all external images. Sets ``stop`` if one fails, or if ``cached`` results are for other images.

    With a lock file (``--pins``) an image that it lacks is an error, as in pip with --require-hashes or cargo with
    --locked: a build that asked for locked images would have others tomorrow. One that is named by digest needs none.
    """
    locked = build.request.pins
    known = {each.name: each for each in locked or () if "@" not in each.name}

    async def resolve(image: External) -> protocol.Pin:
        if image.name in known:
            return known[image.name]
        if locked is not None and "@" not in image.name:
            stop.set()
            raise _not_locked(image)
        try:
            return await build.session.pins.resolve(image.name)
        except KanifoldError as error:
            stop.set()
            what = error.problem.what
            if image.name not in what:
                what = f"cannot resolve the image {image.name}: {what}"  # the registry alone is not enough
            raise KanifoldError.of(replace(error.problem, what=what, where=image.where)) from error

    if len(plan.images) > _RESOLVED_AT_ONCE:
        from asyncio_pool import AioPool

        pool = AioPool(size=_RESOLVED_AT_ONCE)
        resolving = [pool.spawn_n(resolve(each)) for each in plan.images]
    else:
        resolving = [asyncio.ensure_future(resolve(each)) for each in plan.images]
    pins = tuple(await asyncio.gather(*resolving))
    if any(each.pins != pins for each in cached):
        stop.set()
    return pins


def _not_locked(image: External) -> UsageError:
    return UsageError(
        f"--pins: the file has no digest of {image.name}",
        why="with a file of digests, no tag is asked for",
        remedy="write the file again (kanifold pin --lock), take the --metadata-file of a build with the same "
        "arguments, or name the image by its digest",
        where=image.where,
    )


def _start_executors(build: _Build) -> None:
    """Start executors for a build that will need them, before their jobs are known."""
    if build.session.capacity.jobs is not None:
        return  # an executor for each job of all builds would be too many
    at_once = build.request.jobs or len(build.placements)
    started: list[str] = []
    nodes = []
    for each in build.placements[:at_once]:
        name = declared_name(each.node.name)
        if not each.most or started.count(name) < each.most:
            started.append(name)
            nodes.append(each.node)
    build.executors.start(nodes)


async def _built(
    build: _Build, jobs: result_cache.Jobs, cached: Sequence[result_cache.CachedResult]
) -> tuple[tuple[PlatformResult, ...], tuple[PlatformFailure, ...]]:
    """Return the results of ``jobs``: ``cached`` ones, or those of executors."""
    session = build.session
    if cached and await result_cache.are_published(cached, jobs, session.registry):
        debug.log("cached results: no executor is started")
        return result_cache.replay(cached, jobs, build.emit), ()
    build.pushing.set()
    _start_executors(build)
    from orchestrator import fanout

    if any(job.pins or job.push for _, job in jobs):  # else no registry was contacted
        probed = await asyncio.to_thread(session.registry.probed_settings)
        jobs = [(each, replace(job, options=replace(job.options, registries=probed))) for each, job in jobs]
    return await fanout.build_all(session, build.request, build.executors, jobs)


def _streamed(built: PlatformResult, image: Image, store: Store) -> Image:
    """Return ``image``, built on a node with another disk, with blobs that are received when they are written."""
    from orchestrator.received_blobs import ReceivedBlobs

    return replace(image, content=ReceivedBlobs(built.executor, image.manifest, store).open)


async def _finish(
    build: _Build, plan: BuildPlan, built: Sequence[PlatformResult], release: Callable[[PlatformResult], None]
) -> PreparedImage:
    """Verify, join and push what was ``built``. Executors are released when they are no longer needed."""
    request, session = build.request, build.session
    repositories, tags = request.repositories, publish.tags_of(request)
    standing = asyncio.create_task(publish.look_up(tags, session.registry))
    images: list[Image] = []
    for each in built:  # (4)
        repository = repositories[0] if repositories else None
        image = each.image or await publish.verify(each, session.registry, repository, session.store)
        if making.needs_blobs(request) and not making.keeps_blobs(request) and not each.placement.shares_disk:
            image = _streamed(each, image, session.store)
        images.append(image)
        if request.audit != "off" and (each.result.findings or b"audit-allow" in plan.data):
            from orchestrator import audit

            audit.check(request, plan, each, build.emit)
        if build.local is None and not request.staged:
            release(each)
    result = publish.join(request, images)
    if build.pushing.is_set():
        await build.may_push
    else:  # everything was pushed: whether a tag may be set is found out by setting it
        build.may_push.cancel()
    await build.push(result, repositories, tags, session.registry, build.emit)  # (5)
    if request.staged:
        from orchestrator import local_outputs

        await local_outputs.stage(request, result, session.store)
        for each in built if build.local is None else ():
            release(each)
    if build.accept is not None:
        await build.accept(result)
    if build.local is not None:
        await build.local.write(built, result, build.emit)
    return PreparedImage(result, await standing)
