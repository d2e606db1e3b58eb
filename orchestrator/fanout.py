"""One build becomes many jobs: an executor per platform, at most so many at once, and all of them or none.

``asyncio-pool`` bounds the fan-out. A platform that fails cancels the others, unless the user wants to see them end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from executor import protocol
from executor.registry import reference
from executor.registry.auth import Keychain
from executor.registry.reference import Reference
from orchestrator import conversation
from orchestrator.conversation import Executor, NullExecutor, OnAsk, Stream
from orchestrator.node import Placement
from orchestrator.registries import Registry
from orchestrator.request import Request
from orchestrator.view import events
from platforms import regular
from platforms.errors import BuildError, ContextError, KanifoldError, ProtocolError, UsageError

Emit = Callable[[events.Event], None]
Said = protocol.Planned | protocol.Started | protocol.Finished | protocol.BuildWarning
_SAID: Final = 10_000
"""Messages of an executor that are kept; of one that says more, none is."""


class PlatformResult(msgspec.Struct, frozen=True):
    """A platform whose image is made, and who made it."""

    placement: Placement
    result: protocol.Result
    executor: Executor | NullExecutor
    said: tuple[Said, ...] = ()
    """What the executor said of its steps, as long as that was not much."""


class PlatformFailure(msgspec.Struct, frozen=True):
    """A platform that was not built, and why."""

    placement: Placement
    error: KanifoldError


def request_executors(placements: Sequence[Placement], request: Request) -> None:
    """Have executors brought forth for a build that will need them: before their jobs are known, if that can be."""
    for each in placements:
        if each.node.forks is not None:
            each.node.forks.order(min(len(placements), request.jobs or len(placements)))


async def build_all(
    jobs: Sequence[tuple[Placement, protocol.Job]],
    request: Request,
    keychain: Keychain,
    registry: Registry,
    emit: Emit,
) -> tuple[tuple[PlatformResult, ...], tuple[PlatformFailure, ...]]:
    """Run every order; returns what was built and what was not, each in the order of the platforms.

    Cancelling ends all executors.
    """
    request_executors([placement for placement, _ in jobs], request)
    from asyncio_pool import AioPool

    stop: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    pool = AioPool(size=request.jobs or len(jobs))
    waiting = [
        pool.spawn_n(_one(placement, job, _answers(request, job, keychain, registry), request.keep_going, emit, stop))
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
    said: list[Said] = []

    def hear(message: protocol.Message) -> None:
        emit(events.FromExecutor(platform=name, message=message))
        if isinstance(message, Said) and len(said) <= _SAID:
            said.append(message)

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
    return PlatformResult(placement, executor.result, executor, tuple(said) if len(said) <= _SAID else ())


def _without_our_disk(job: protocol.Job) -> protocol.Job:
    """``job`` as an executor is told it that has another disk: directories are sent to it."""
    contexts = tuple(
        protocol.SentContext(each.name, each.ignore, each.owners)
        if isinstance(each, protocol.DirectoryContext)
        else each
        for each in job.contexts
    )
    return replace(job, contexts=contexts)


def _answers(request: Request, job: protocol.Job, keychain: Keychain, registry: Registry) -> OnAsk:
    """What the executor of ``job`` may be told: nothing beyond what this build was given."""
    secrets = {secret.id: secret for secret in request.secrets}
    contexts = {each.name: each for each in job.contexts if isinstance(each, protocol.DirectoryContext)}
    registries = _registries(job)

    async def answer(ask: protocol.Ask) -> bytes | Stream | None:
        match ask.what:
            case "credential":
                if ask.name not in registries:
                    return None  # as if nobody had one: a base's trigger may name any image
                found = await asyncio.to_thread(keychain, "/".join((ask.name, *ask.paths)))
                return None if found is None else msgspec.json.encode(found)
            case "manifest":
                wanted = _pushed(job, ask.name)
                return b"" if await asyncio.to_thread(has_manifest, registry, wanted) else None
            case "secret":
                secret = secrets.get(ask.name)
                return None if secret is None else await asyncio.to_thread(read_secret, secret.file, secret.variable)
            case "ssh":
                from orchestrator import agent

                place = request.agents.get(ask.name)
                if place is None:
                    return None
                message = _decoded(ask.paths[0]) if ask.paths else b""
                return await asyncio.to_thread(agent.ask, place, message) if message else b""
            case "context":
                context = contexts.get(ask.name)
                return None if context is None else _files(context)
            case _:
                raise ProtocolError(f"an executor asked for an unknown thing: {ask.what!r}")

    return answer


def _registries(job: protocol.Job) -> frozenset[str]:
    """The registries that a job speaks to: those of its images, caches and destinations, and their mirrors."""
    names = [*job.push, *(pin.name for pin in job.pins)]
    names += [context.image for context in job.contexts if isinstance(context, protocol.ImageContext)]
    remote = (*job.cache_from, *(each.to for each in job.cache_to))
    names += [cache.name for cache in remote if isinstance(cache, protocol.CacheInRegistry)]
    found: set[str] = set()
    for name in filter(None, names):
        with contextlib.suppress(UsageError):
            found.add(reference.parse(name).registry)
    for registry in tuple(found):
        for mirror in job.registries.mirrors_of(registry):
            found.add(mirror.removeprefix("http://").partition("/")[0])
    return frozenset(found)


def _pushed(job: protocol.Job, name: str) -> Reference:
    wanted = reference.parse(name)
    if str(wanted.repository_only()) not in job.push:
        raise ProtocolError(f"an executor asked for what is not its own: {name!r}")
    return wanted


def has_manifest(registry: Registry, wanted: Reference) -> bool:
    """Whether the registry says so; what is wrong with it, the executor hears when it goes there itself."""
    with contextlib.suppress(KanifoldError):
        return registry.has_manifest(wanted) is not None
    return False


def _decoded(text: str) -> bytes:
    import base64

    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ProtocolError("an executor's message to an SSH agent is malformed") from error


def read_secret(file: str, variable: str) -> bytes | None:
    """A secret's value; None for a variable that is not set. Raises ``KanifoldError`` for a file that is not there."""
    import os

    if variable:
        value = os.environ.get(variable)
        return None if value is None else value.encode("utf-8", "surrogateescape")
    try:
        with regular.open_file(file) as opened:
            return opened.read()
    except OSError as error:
        raise BuildError(
            f"cannot read the secret file {file}",
            why=error.strerror or str(error),
            remedy="the file was there when the build began: keep it until a step has asked for it",
        ) from error


def _files(context: protocol.DirectoryContext) -> Stream:
    """The files of ``context`` that its ignore file lets through, as an archive for who does not share our disk."""
    from executor.context.directory import open_context
    from executor.rootfs import tarwriter
    from executor.solver import files

    def stream(out: tarwriter.Out) -> None:
        tree = open_context(context.path, context.ignore, owners=context.owners)
        try:
            tarwriter.write(files.entries(tree), out)
        except OSError as error:
            raise ContextError("cannot read the build context", why=str(error)) from error
        finally:
            tree.close()

    return stream
