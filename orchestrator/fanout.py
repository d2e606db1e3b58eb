"""One build becomes many jobs: an executor per platform, at most so many at once, and all of them or none.

``asyncio-pool`` bounds the fan-out. A platform that fails cancels the others, unless the user wants to see them end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from msgspec.structs import replace

from executor import protocol
from orchestrator import conversation
from orchestrator.answers import answers
from orchestrator.conversation import OnAsk
from orchestrator.node import Placement
from orchestrator.request import Request
from orchestrator.results import PlatformFailure, PlatformResult, StepEvent
from orchestrator.session import Session
from orchestrator.view import events
from orchestrator.view.events import Emit
from platforms.errors import KanifoldError

_EVENTS: Final = 10_000
"""Messages of an executor about its steps that are kept; of one that says more, none is."""


async def build_all(
    session: Session, request: Request, jobs: Sequence[tuple[Placement, protocol.Job]]
) -> tuple[tuple[PlatformResult, ...], tuple[PlatformFailure, ...]]:
    """Do all ``jobs``; returns what was built and what was not, each in the order of the platforms.

    Cancelling ends all executors.
    """
    from asyncio_pool import AioPool

    stop: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    pool = AioPool(size=request.jobs or len(jobs))
    waiting = [
        pool.spawn_n(
            _one(
                placement,
                job,
                answers(request, job, session.keychain, session.registry),
                request.keep_going,
                session.emit,
                stop,
            )
        )
        for placement, job in jobs
    ]
    try:
        outcomes = await asyncio.shield(asyncio.gather(*waiting))
    except BaseException:
        _stop(stop, "interrupted")
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.gather(*(each.executor.abandon() for each in ended if isinstance(each, PlatformResult)))
        raise
    built = tuple(each for each in outcomes if isinstance(each, PlatformResult))
    lost = tuple(each for each in outcomes if isinstance(each, PlatformFailure))
    return built, lost


def _stop(stop: asyncio.Future[str], why: str) -> None:
    if not stop.done():
        stop.set_result(why)


async def _one(
    placement: Placement, job: protocol.Job, answers: OnAsk, keep_going: bool, emit: Emit, stop: asyncio.Future[str]
) -> PlatformResult | PlatformFailure | None:
    """One platform; None when ``stop``, whose result is the reason, came first."""
    name = str(placement.platform)
    if stop.done():
        emit(events.PlatformEnded(platform=name, outcome="cancelled", reason=stop.result()))
        return None
    emit(events.PlatformStarted(platform=name, node=placement.node.name, how=placement.how))
    kept: list[StepEvent] = []

    def hear(message: protocol.Message) -> None:
        emit(events.FromExecutor(platform=name, message=message))
        if isinstance(message, StepEvent) and len(kept) <= _EVENTS:
            kept.append(message)

    told = job if placement.node.shares_disk else _without_our_disk(job)
    running = asyncio.create_task(conversation.run(placement.node, told, hear, answers))
    either: set[asyncio.Future[Any]] = {running, stop}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        emit(events.PlatformEnded(platform=name, outcome="cancelled", reason=stop.result()))
        return None
    try:
        executor = running.result()
    except KanifoldError as error:
        emit(events.PlatformEnded(platform=name, outcome="failed", reason=error.problem.what))
        if not keep_going:
            _stop(stop, "another platform failed")
        return PlatformFailure(placement, error)
    emit(events.PlatformEnded(platform=name, outcome="built"))
    return PlatformResult(placement, executor.result, executor, tuple(kept) if len(kept) <= _EVENTS else ())


def _without_our_disk(job: protocol.Job) -> protocol.Job:
    """``job`` as an executor is told it that has another disk: directories are sent to it."""
    contexts = tuple(
        protocol.SentContext(each.name, each.ignore, each.owners)
        if isinstance(each, protocol.DirectoryContext)
        else each
        for each in job.contexts
    )
    return replace(job, contexts=contexts)
