"""One build becomes many jobs: an executor per platform, at most so many at once, and all of them or none.

``asyncio-pool`` bounds the fan-out; a node has a queue for the jobs that it has no place for yet. A platform that fails
cancels the others, unless the user wants to see them end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from executor import protocol
from executor.solver.lazy import Lazy
from orchestrator import job_session, node_services
from orchestrator.answers import answers
from orchestrator.job_session import Answer, Executor, OnAsk, OnMessage, Stream
from orchestrator.node_services import NodeServices
from orchestrator.nodes.node import ExecutorPool
from orchestrator.nodes.placement import Placement
from orchestrator.request import BuildRequest
from orchestrator.results import PlatformFailure, PlatformResult, StepEvent
from orchestrator.session import Session
from orchestrator.translation import Translation, loopback_registries, translate
from orchestrator.view import events
from platforms.errors import KanifoldError

if TYPE_CHECKING:
    from orchestrator.node_caches import NodeCaches
    from orchestrator.sent_contexts import SentContexts

_EVENTS: Final = 10_000
"""Messages of an executor about its steps that are kept; of one that says more, none is."""


async def build_all(
    session: Session, request: BuildRequest, executors: ExecutorPool, jobs: Sequence[tuple[Placement, protocol.Job]]
) -> tuple[tuple[PlatformResult, ...], tuple[PlatformFailure, ...]]:
    """Do all ``jobs``, each by one of ``executors``: what was built, and what was not, in the order of the platforms.

    Cancelling ends all executors. Raises ``UsageError``, before anything is done, for a job that its node cannot do.
    """
    from asyncio_pool import AioPool

    stop: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    queues = {each.node.name: asyncio.Semaphore(each.most) for each, _ in jobs if each.most}
    sent = node_services.contexts(session.store)
    work = [
        _Work(session, request, executors, queues, stop, sent, placement, job, translate(job, placement))
        for placement, job in jobs
    ]
    for problem in dict.fromkeys(loopback_registries(job, placement) for placement, job in jobs):
        if problem is not None:
            session.emit(events.WarningRaised(problem=problem, rule=problem.kind))
    pool = AioPool(size=request.jobs or len(jobs))
    waiting = [pool.spawn_n(each.do()) for each in work]
    try:
        outcomes = await asyncio.shield(asyncio.gather(*waiting))
    except BaseException:
        _stop(stop, "interrupted")
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.gather(*(each.executor.abandon() for each in ended if isinstance(each, PlatformResult)))
        raise
    finally:
        if sent.done:
            session.leave(asyncio.to_thread(sent().close))
    built = tuple(each for each in outcomes if isinstance(each, PlatformResult))
    failed = tuple(each for each in outcomes if isinstance(each, PlatformFailure))
    return built, failed


def _stop(stop: asyncio.Future[str], why: str) -> None:
    if not stop.done():
        stop.set_result(why)


class _Work(msgspec.Struct, frozen=True):
    """One platform of a build."""

    session: Session
    request: BuildRequest
    executors: ExecutorPool
    queues: Mapping[str, asyncio.Semaphore]
    """By the name of a node that does not run any number of jobs at a time."""
    stop: asyncio.Future[str]
    """Done when there is nothing more to do, with the reason."""
    sent: Lazy[SentContexts]
    placement: Placement
    job: protocol.Job
    translation: Translation

    async def do(self) -> PlatformResult | PlatformFailure | None:
        """Have an executor do the job; None when ``stop`` came first."""
        if self.stop.done():
            self._cancelled()
            return None
        placement, name = self.placement, str(self.placement.platform)
        heard: list[StepEvent] = []

        def hear(message: protocol.Message) -> None:
            if isinstance(message, protocol.BuildWarning):
                message = replace(message, problem=self.translation.received(message.problem))
            self.session.emit(events.FromExecutor(platform=name, message=message))
            if isinstance(message, StepEvent) and len(heard) <= _EVENTS:
                heard.append(message)

        running = asyncio.create_task(self._run(hear))
        either: set[asyncio.Future[Any]] = {running, self.stop}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            self._cancelled()
            return None
        try:
            executor = running.result()
        except KanifoldError as error:
            self.session.emit(events.PlatformEnded(platform=name, outcome="failed", reason=error.problem.what))
            if not self.request.keep_going:
                _stop(self.stop, "another platform failed")
            return PlatformFailure(placement, error)
        self.session.emit(events.PlatformEnded(platform=name, outcome="built"))
        return PlatformResult(placement, executor.result, executor, tuple(heard) if len(heard) <= _EVENTS else ())

    async def _run(self, hear: OnMessage) -> Executor:
        placement = self.placement
        job = replace(self.job, lends=self.translation.job.lends)
        services = NodeServices(self.sent, node_services.caches(self.job, self.session.store))
        on_ask = answers(self.request, job, self.session.keychain, self.session.registry, services)
        async with self.queues.get(placement.node.name, contextlib.nullcontext()):
            started = events.PlatformStarted(
                platform=str(placement.platform), node=placement.node.name, how=placement.how
            )
            self.session.emit(started)
            connection = await self.executors.acquire(placement.node)
            try:
                on_blob = partial(self._cache_blob, services.caches)
                sent = self.translation.job
                return await job_session.run(connection, sent, hear, partial(self._answer, on_ask), on_blob)
            except KanifoldError as error:
                raise KanifoldError.of(self.translation.received(error.problem)) from error

    async def _cache_blob(
        self, caches: Lazy[NodeCaches], message: protocol.CacheBlob, content: AsyncIterator[bytes]
    ) -> None:
        await caches().receive(message, content)

    async def _answer(self, on_ask: OnAsk, ask: protocol.Ask) -> Answer:
        try:
            answer = await on_ask(ask)
        except KanifoldError as error:
            raise KanifoldError.of(self.translation.sent(ask.question, error.problem)) from error
        return partial(self._stream, ask.question, answer) if callable(answer) else answer

    def _stream(self, question: protocol.Question, stream: Stream, out: Callable[[bytes | memoryview], object]) -> None:
        try:
            stream(out)
        except KanifoldError as error:
            raise KanifoldError.of(self.translation.sent(question, error.problem)) from error

    def _cancelled(self) -> None:
        name = str(self.placement.platform)
        self.session.emit(events.PlatformEnded(platform=name, outcome="cancelled", reason=self.stop.result()))
