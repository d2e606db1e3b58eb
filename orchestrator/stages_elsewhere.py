"""A job whose stages on the build platform are made on another node (``shared_stages``), beside it.

They are made when the job asks for the first result that its own store does not have; the answer comes when all are
made. Entries are of this build alone, layers are kept in the store of this machine. A step that fails there fails the
job; if the node fails, the job makes the stages itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from executor import protocol
from orchestrator import node_services
from orchestrator.executor_run import ExecutorRun
from orchestrator.job_session import Executor
from orchestrator.node_caches import SharedSteps
from orchestrator.node_services import NodeServices
from orchestrator.nodes.node import ExecutorPool
from orchestrator.nodes.placement import declared_name
from orchestrator.shared_stages import SharedStages
from orchestrator.translation import translate
from orchestrator.view import events
from platforms.errors import KanifoldError, Problem

if TYPE_CHECKING:
    from executor.solver.lazy import Lazy
    from orchestrator.sent_contexts import SentContexts


class StagesElsewhere:
    """The job of ``user``, and the jobs that make its ``shared`` stages."""

    def __init__(
        self,
        shared: SharedStages,
        user: ExecutorRun,
        executors: ExecutorPool,
        sent: Lazy[SentContexts],
        queues: Mapping[str, asyncio.Semaphore],
    ) -> None:
        self._shared = shared
        self._user = user
        self._executors = executors
        self._sent = sent
        self._queues = queues
        self._steps = SharedSteps()
        self._making: asyncio.Task[None] | None = None
        self._failed: asyncio.Future[KanifoldError] = asyncio.get_running_loop().create_future()
        """The error of a step, with which no node would succeed."""

    async def do(self, hear: Callable[[protocol.Message], None]) -> Executor:
        """Have the job done, as ``ExecutorRun.do``. Afterwards nothing of the others is left."""
        store = self._user.session.store
        caches = node_services.caches(self._user.job, store, self._steps)
        services = NodeServices(self._sent, caches, {self._shared.name: self._made})
        running = asyncio.create_task(self._user.do(self._executors.acquire, services, hear))
        try:
            either: set[asyncio.Future[Any]] = {running, self._failed}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                raise self._failed.result()
            return running.result()
        finally:
            await _end([each for each in (running, self._making) if each is not None])

    async def _made(self) -> None:
        """Have the stages made, once, and wait until that has ended, in whatever way."""
        if self._making is None:
            self._making = asyncio.create_task(self._try())
        await asyncio.shield(self._making)

    async def _try(self) -> None:
        makers = [asyncio.create_task(self._make(job)) for job in self._shared.makers(self._user.job)]
        try:
            await asyncio.gather(*makers)
        except KanifoldError as error:
            if error.retry == "never":
                self._failed.set_result(error)
                await asyncio.Event().wait()  # there is no answer: the job is cancelled
            self._warn(error)
        finally:
            await _end(makers)

    async def _make(self, job: protocol.Job) -> None:
        """Have a job for some of the stages done."""
        user, builder = self._user, self._shared.builder
        label = f"{user.label} (stage {job.options.target})"
        run = ExecutorRun(user.session, user.request, builder, job, translate(job, builder), label)
        services = NodeServices(self._sent, node_services.caches(job, user.session.store, self._steps))
        name = declared_name(builder.node.name)
        ours = name == declared_name(user.placement.node.name)  # whose place this job has already
        queue = None if ours else self._queues.get(name)
        async with queue or contextlib.nullcontext():
            started = events.PlatformStarted(platform=label, node=builder.node.name, how=builder.how)
            user.session.emit(started)
            outcome: Literal["built", "failed", "cancelled"] = "cancelled"
            try:
                executor = await run.do(self._executors.acquire_awaited, services, _ignored)
                outcome = "built"
                await executor.close()
            except KanifoldError:
                outcome = "failed"
                raise
            finally:
                user.session.emit(events.PlatformEnded(platform=label, outcome=outcome))

    def _warn(self, error: KanifoldError) -> None:
        what = f"node {self._shared.builder.node.name} has not made the stages that others share"
        why = "; ".join(filter(None, (error.problem.what, error.problem.why)))
        self._user.session.emit(events.WarningRaised(problem=Problem("StagesNotShared", what, why)))


def _ignored(_message: protocol.Message) -> None:
    """What makers tell is shown, and not kept."""


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
