"""One job on an executor of a node, and the answers to its requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from executor import protocol
from orchestrator import job_session, warnings
from orchestrator.answers import answers
from orchestrator.job_session import Answer, Executor, OnAsk, Stream
from orchestrator.node_services import NodeServices
from orchestrator.nodes.node import Acquire
from orchestrator.nodes.placement import Placement
from orchestrator.request import BuildRequest
from orchestrator.session import Session
from orchestrator.translation import Translation
from orchestrator.view import events
from platforms.errors import KanifoldError

if TYPE_CHECKING:
    from executor.solver.lazy import Lazy
    from orchestrator.node_caches import NodeCaches


class ExecutorRun(msgspec.Struct, frozen=True):
    """A job on a node. ``label`` stands for it in events."""

    session: Session
    request: BuildRequest
    placement: Placement
    job: protocol.Job
    translation: Translation
    label: str

    async def do(self, acquire: Acquire, services: NodeServices, hear: Callable[[protocol.Message], None]) -> Executor:
        """Have the executor that ``acquire`` returns do the job; ``hear`` gets its events. Raises ``KanifoldError``."""
        session = self.session
        job = replace(self.job, lends=self.translation.job.lends)
        routes = self.placement.contexts
        repository = "" if routes is None else routes.repository_for(job)
        on_ask = answers(self.request, job, session.keychain, session.registry, services, repository)
        connection = await acquire(self.placement.node, self._waits)
        for warning in warnings.wrong_clock(self.placement.node.name, connection.ahead):
            session.emit(warning)
        ahead = connection.ahead if abs(connection.ahead) >= warnings.CLOCKS_DIFFER else 0.0
        try:
            return await job_session.run(
                connection,
                replace(self.translation.job, clock_ahead=ahead),
                partial(self._hear, hear),
                partial(self._answer, on_ask),
                partial(self._cache_blob, services.caches),
            )
        except KanifoldError as error:
            raise KanifoldError.of(self.translation.received(error.problem)) from error

    def _waits(self, words: str) -> None:
        self.session.emit(events.PlatformWaiting(platform=self.label, node=self.placement.node.name, why=words))

    def _hear(self, hear: Callable[[protocol.Message], None], message: protocol.Message) -> None:
        if isinstance(message, protocol.BuildWarning):
            message = replace(message, problem=self.translation.received(message.problem))
        self.session.emit(events.FromExecutor(platform=self.label, message=message))
        hear(message)

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
