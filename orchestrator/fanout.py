"""One build becomes many jobs: an executor per platform, at most so many at once, and all of them or none.

``asyncio-pool`` bounds the fan-out; a node has a queue for the jobs that it has no place for yet. A platform that fails
cancels the others, unless the user wants to see them end.

A job whose node fails (``platforms.errors``, ``retry``) moves to another one, and starts again there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from executor import protocol
from executor.solver.lazy import Lazy
from orchestrator import node_services, publish
from orchestrator.executor_run import ExecutorRun
from orchestrator.job_session import Executor
from orchestrator.jobs import reads_executors
from orchestrator.node_services import NodeServices
from orchestrator.nodes.node import ExecutorPool
from orchestrator.nodes.placement import Placement, declared_name
from orchestrator.request import BuildRequest
from orchestrator.results import NullExecutor, PlatformFailure, PlatformResult, StepEvent
from orchestrator.session import Session
from orchestrator.translation import Translation, loopback_registries, translate
from orchestrator.view import events
from platforms.errors import KanifoldError, ProtocolError, Retry, UsageError

if TYPE_CHECKING:
    from orchestrator.nodes.node import Node
    from orchestrator.sent_contexts import SentContexts
    from orchestrator.shared_stages import SharedStages
    from platforms.platform import Platform

Jobs = Sequence[tuple[Placement, protocol.Job]]
_CLOSING: Final = 30.0
_INTERRUPTED: Final = 1.5
"""Seconds that removing what contexts have left in registries may take, and if the build was interrupted."""
_EVENTS: Final = 10_000
"""Messages of an executor about its steps that are kept; of one that says more, none is."""


async def build_all(
    session: Session, request: BuildRequest, executors: ExecutorPool, jobs: Jobs
) -> tuple[tuple[PlatformResult, ...], tuple[PlatformFailure, ...]]:
    """Do all ``jobs``, each by one of ``executors``: what was built, and what was not, in the order of the platforms.

    Cancelling ends all executors. Raises ``UsageError``, before anything is done, for a job that its node cannot do.
    """
    from asyncio_pool import AioPool

    stop: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    sent = node_services.contexts(session.store, session.registry, session.emit)
    shared, jobs = _shared(jobs, session.nodes)
    queues = _queues((placement for placement, _ in jobs), session.capacity.queues)
    build = _Build(session, request, executors, queues, stop, sent, shared, set())
    work = [
        _Work(build, _Attempt(build, placement, job, translate(job, placement), []), set()) for placement, job in jobs
    ]
    for problem in dict.fromkeys(loopback_registries(job, placement) for placement, job in jobs):
        if problem is not None:
            session.emit(events.WarningRaised(problem=problem, rule=problem.kind))
    pool, patience = AioPool(size=request.jobs or len(jobs)), _CLOSING
    waiting = [pool.spawn_n(each.do()) for each in work]
    try:
        outcomes = await asyncio.shield(asyncio.gather(*waiting))
    except BaseException:
        patience = _INTERRUPTED
        build.end("interrupted")
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.gather(*(each.executor.abandon() for each in ended if isinstance(each, PlatformResult)))
        raise
    finally:
        if sent.done:
            session.leave(_closed(sent(), patience))
    built = tuple(each for each in outcomes if isinstance(each, PlatformResult))
    failed = tuple(each for each in outcomes if isinstance(each, PlatformFailure))
    return built, failed


def _shared(jobs: Jobs, nodes: Iterable[Node]) -> tuple[Mapping[Platform, SharedStages], Jobs]:
    """Return the stages that are made on other nodes than those of their platforms, and ``jobs`` that use them."""
    if all(placement.shares_disk for placement, _ in jobs):
        return {}, jobs
    from orchestrator.shared_stages import shared_stages

    found = shared_stages(jobs, nodes)
    using = [(each, found[each.platform].user(job)) if each.platform in found else (each, job) for each, job in jobs]
    return found, using


async def _closed(sent: SentContexts, patience: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience):
            await asyncio.to_thread(sent.close)


def _queues(placements: Iterable[Placement], known: dict[str, asyncio.Semaphore]) -> Mapping[str, asyncio.Semaphore]:
    """Return the queues of the nodes that do not run any number of jobs at a time, by name; ``known`` with new ones."""
    for placement in placements:
        for each in (placement, *placement.others):
            name = declared_name(each.node.name)
            if each.most and name not in known:
                known[name] = asyncio.Semaphore(each.most)
    return known


class _Build(msgspec.Struct, frozen=True):
    """What the jobs of a build share."""

    session: Session
    request: BuildRequest
    executors: ExecutorPool
    queues: Mapping[str, asyncio.Semaphore]
    """By the name of a node that does not run any number of jobs at a time."""
    stop: asyncio.Future[str]
    """Done when there is nothing more to do, with the reason."""
    sent: Lazy[SentContexts]
    shared: Mapping[Platform, SharedStages]
    """What is made on another node, by the platform of the job that uses it."""
    broken: set[str]
    """The names of nodes that were lost, or that violated the protocol."""

    def end(self, why: str) -> None:
        """Have no further job done."""
        if not self.stop.done():
            self.stop.set_result(why)


class _Work(msgspec.Struct, frozen=True):
    """One platform of a build, and the first attempt at it."""

    build: _Build
    first: _Attempt
    failed: set[str]
    """The names of nodes on which the job has failed."""

    async def do(self) -> PlatformResult | PlatformFailure | None:
        """Have an executor do the job; None when the build came to its end first."""
        build, name = self.build, str(self.first.placement.platform)
        if build.stop.done():
            self._cancelled()
            return None
        running = asyncio.create_task(self._attempts())
        either: set[asyncio.Future[Any]] = {running, build.stop}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            self._cancelled()
            return None
        outcome = running.result()
        if isinstance(outcome, PlatformFailure):
            reason = outcome.error.problem.what
            build.session.emit(events.PlatformEnded(platform=name, outcome="failed", reason=reason))
            if not build.request.keep_going:
                build.end("another platform failed")
        else:
            build.session.emit(events.PlatformEnded(platform=name, outcome="built"))
        return outcome

    async def _attempts(self) -> PlatformResult | PlatformFailure:
        """Do the job, elsewhere if its node fails, and there again if a cluster takes its Pod away."""
        attempt, most = self.first, self.build.request.retry
        failed = disrupted = 0
        while True:
            try:
                return await attempt.do()
            except KanifoldError as error:
                following = None
                if attempt.retry(error) == "again" and disrupted < most:
                    disrupted += 1
                    following = replace(attempt, heard=[])
                elif failed < most:
                    failed += 1
                    following = self._following(attempt, error)
                if following is None:
                    return PlatformFailure(attempt.placement, error)
                self._moved(attempt.placement, following.placement, error)
                attempt = following

    def _following(self, attempt: _Attempt, error: KanifoldError) -> _Attempt | None:
        """Return the attempt after ``attempt``, which has failed with ``error``; None if no other one can succeed.

        Other nodes come first, in the order of the placement, without those on which this job has failed or that this
        build has lost; at last the same node, if only the connection to it was lost.
        """
        retry, placement = attempt.retry(error), attempt.placement
        if retry == "never":
            return None
        self.failed.add(placement.node.name)
        if isinstance(error, ProtocolError):
            self.build.broken.add(placement.node.name)
        left_out = self.failed | self.build.broken
        others = [each for each in self.first.placement.others if each.node.name not in left_out]
        if retry == "anywhere" and not placement.shares_disk:
            others.append(placement)
        for each in others:
            job = replace(self.first.job, emulation=each.support.emulation)
            with contextlib.suppress(UsageError):  # the job refers to something of this machine
                return _Attempt(self.build, each, job, translate(job, each), [])
        return None

    def _moved(self, old: Placement, new: Placement, error: KanifoldError) -> None:
        name, node = str(new.platform), new.node.name
        problem = error.problem
        self.build.session.emit(
            events.PlatformMoved(platform=name, old=old.node.name, node=node, how=new.how, problem=problem)
        )

    def _cancelled(self) -> None:
        name, build = str(self.first.placement.platform), self.build
        build.session.emit(events.PlatformEnded(platform=name, outcome="cancelled", reason=build.stop.result()))


class _Attempt(msgspec.Struct, frozen=True):
    """A job on a node."""

    build: _Build
    placement: Placement
    job: protocol.Job
    translation: Translation
    heard: list[StepEvent]

    async def do(self) -> PlatformResult | PlatformFailure:
        """Have an executor do the job. From a node with another disk, all that is needed of the image is fetched.

        Raises ``KanifoldError``; an error of this machine while it fetches is returned, as no other node could help.
        """
        build, placement = self.build, self.placement
        bound = build.session.capacity.jobs or contextlib.nullcontext()
        async with build.queues.get(declared_name(placement.node.name), contextlib.nullcontext()), bound:
            started = events.PlatformStarted(
                platform=str(placement.platform), node=placement.node.name, how=placement.how
            )
            build.session.emit(started)
            executor = await self._run()
            heard = tuple(self.heard) if len(self.heard) <= _EVENTS else ()
            result = PlatformResult(placement, executor.result, executor, heard)
            if placement.shares_disk:
                return result
            try:
                result = await publish.collect(result, build.request, build.session.registry, build.session.store)
            except BaseException as error:
                await asyncio.shield(executor.abandon())
                if isinstance(error, KanifoldError) and not isinstance(error, ProtocolError):
                    return PlatformFailure(placement, error)
                raise
            if reads_executors(build.request):
                build.executors.keep(placement.node, executor.connection)
                return result
            # On a cluster with a quota other platforms may be waiting for its place.
            build.session.leave(executor.close())
            return replace(result, executor=NullExecutor())

    def retry(self, error: KanifoldError) -> Retry:
        """Return where the job may succeed after it has failed with ``error``."""
        return "never" if self.translation.is_ours(error.problem) else error.retry

    async def _run(self) -> Executor:
        build, shared = self.build, self._shared()
        if shared is None:
            services = NodeServices(build.sent, node_services.caches(self.job, build.session.store))
            return await self._executor_run().do(build.executors.acquire, services, self._hear)
        from orchestrator.stages_elsewhere import StagesElsewhere  # for nodes of several platforms

        return await StagesElsewhere(shared, self._executor_run(), build.executors, build.sent, build.queues).do(
            self._hear
        )

    def _shared(self) -> SharedStages | None:
        """Return the stages of the job that another node makes."""
        found = self.build.shared.get(self.placement.platform)
        return None if found is None or found.builder.node.name == self.placement.node.name else found

    def _executor_run(self) -> ExecutorRun:
        build, label = self.build, str(self.placement.platform)
        return ExecutorRun(build.session, build.request, self.placement, self.job, self.translation, label)

    def _hear(self, message: protocol.Message) -> None:
        if isinstance(message, StepEvent) and len(self.heard) <= _EVENTS:
            self.heard.append(message)
