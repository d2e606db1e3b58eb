"""Answering the requests of executors, limited to what their build was given.

Credentials for the registries of the job, accounts for its remote caches, whether a registry has a manifest, secrets,
replies of an SSH agent, and the files of contexts for nodes that do not share this machine's disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, assert_never

import msgspec

from executor import protocol
from executor.protocol import DirectoryContext
from executor.registry import reference
from executor.registry.auth import Keychain
from executor.registry.reference import Reference
from orchestrator import publish
from orchestrator.job_session import Answer, OnAsk, Stream
from orchestrator.loans import check_loan
from orchestrator.registries import Registry
from orchestrator.request import BuildRequest
from platforms import regular
from platforms.errors import BuildError, ProtocolError, UsageError

if TYPE_CHECKING:
    from executor.solver.lazy import Lazy
    from orchestrator.node_caches import NodeCaches
    from orchestrator.node_services import NodeServices
    from orchestrator.sent_contexts import SentContexts

ContextQuestion = protocol.AskContext | protocol.AskContextParts | protocol.AskContextFiles
CacheQuestion = protocol.AskCacheEntry | protocol.AskCacheBlob | protocol.AskCacheExport
_BLOCK: Final = 1 << 20
"""Bytes of a file that are read at a time."""


def answers(
    request: BuildRequest,
    job: protocol.Job,
    keychain: Keychain,
    registry: Registry,
    services: NodeServices,
    repository: str = "",
) -> OnAsk:
    """Return the function that answers requests of the executor of ``job``.

    ``services`` are for one on a node with another disk, ``repository`` is the one that content of contexts may be
    pushed to for it; "" for none.
    """
    secrets = {secret.id: secret for secret in request.secrets}
    contexts = {each.name: each for each in job.contexts}
    accounts = {each.name: each for each in request.cache_accounts}
    registries = registries_of(job)

    async def answer(ask: protocol.Ask) -> Answer:
        match ask.question:
            case protocol.AskToken(name, path, scopes, fresh):
                if not job.lends or not check_loan(job, name, path, scopes, repository):
                    return None
                loan = await asyncio.to_thread(registry.lend, name, path, scopes, fresh)
                return None if loan is None else msgspec.json.encode(loan)
            case protocol.AskCredential(name, path):
                if job.lends or name not in registries:
                    return None  # no credential: a trigger of a base may name any image
                found = await asyncio.to_thread(keychain, f"{name}/{path}")
                return None if found is None else msgspec.json.encode(found)
            case protocol.AskCacheAccount(name):
                from orchestrator import cache_accounts

                source = accounts.get(name)
                if source is None:
                    return None
                return msgspec.json.encode(await asyncio.to_thread(cache_accounts.find, source))
            case protocol.AskManifest(name):
                wanted = _pushed(job, name)
                return b"" if await asyncio.to_thread(publish.is_there, registry, wanted) else None
            case protocol.AskSecret(name):
                secret = secrets.get(name)
                return None if secret is None else await asyncio.to_thread(read_secret, secret.file, secret.variable)
            case protocol.AskAgent(name, message):
                from orchestrator import ssh_agent

                place = request.agents.get(name)
                if place is None:
                    return None
                return await asyncio.to_thread(ssh_agent.query, place, message) if message else b""
            case protocol.AskContext() | protocol.AskContextParts() | protocol.AskContextFiles():
                context = contexts.get(ask.question.name)
                return (
                    await _of_context(services.contexts, context, ask.question)
                    if isinstance(context, DirectoryContext)
                    else None
                )
            case protocol.AskContextArtifact(name, listing, picked):
                context = contexts.get(name)
                if not repository or not isinstance(context, DirectoryContext):
                    return None
                sent = await asyncio.to_thread(services.contexts)
                artifact = await asyncio.to_thread(sent.artifact, context, listing, picked, repository)
                return None if artifact is None else msgspec.json.encode(artifact)
            case protocol.AskCacheEntry() | protocol.AskCacheBlob() | protocol.AskCacheExport():
                if isinstance(ask.question, protocol.AskCacheEntry) and ask.question.name in services.ready:
                    await services.ready[ask.question.name]()
                return await asyncio.to_thread(_of_cache, services.caches, ask.question)
            case protocol.AskLayout(name, file):
                context = contexts.get(name)
                if not isinstance(context, protocol.LayoutContext):
                    return None
                return await asyncio.to_thread(_layout_file, context.path, file)
            case _:
                assert_never(ask.question)

    return answer


def registries_of(job: protocol.Job) -> frozenset[str]:
    """Return the registries of a job: those of its images, caches and destinations, and their mirrors."""
    names = [*job.push, *(pin.name for pin in job.pins)]
    names += [context.image for context in job.contexts if isinstance(context, protocol.ImageContext)]
    remote = (*job.options.cache_from, *(each.to for each in job.options.cache_to))
    names += [cache.name for cache in remote if isinstance(cache, protocol.CacheInRegistry)]
    found: set[str] = set()
    for name in filter(None, names):
        with contextlib.suppress(UsageError):
            found.add(reference.parse(name).registry)
    for registry in tuple(found):
        for mirror in job.options.registries.mirrors_of(registry):
            found.add(mirror.removeprefix("http://").partition("/")[0])
    return frozenset(found)


def _pushed(job: protocol.Job, name: str) -> Reference:
    wanted = reference.parse(name)
    if str(wanted.repository_only()) not in job.push:
        raise ProtocolError(f"an executor asked for what is not its own: {name!r}")
    return wanted


def read_secret(file: str, variable: str) -> bytes | None:
    """Return the value of a secret; None for a variable that is not set. Raises ``KanifoldError`` for a missing
    file."""
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


def _of_cache(shared: Lazy[NodeCaches], question: CacheQuestion) -> Answer:
    """Return the answer to a ``question`` about a cache on this machine; None for one that the job does not use."""
    caches = shared()
    cache = (caches.targets if isinstance(question, protocol.AskCacheExport) else caches.sources).get(question.name)
    if cache is None:
        return None
    match question:
        case protocol.AskCacheEntry(_, key):
            return cache.find(key)
        case protocol.AskCacheBlob(_, digest):
            return cache.stream(digest)
        case protocol.AskCacheExport(_, key, record):
            return cache.put(key, record)
        case _:
            assert_never(question)


async def _of_context(shared: Lazy[SentContexts], context: DirectoryContext, question: ContextQuestion) -> Answer:
    """Return the answer to a ``question`` about the files of ``context``; None for a listing that was not made."""
    sent = await asyncio.to_thread(shared)
    match question:
        case protocol.AskContext(_, patterns):
            return await asyncio.to_thread(sent.listing, context, patterns)
        case protocol.AskContextParts(_, listing, parts):
            return partial(sent.parts, context, listing, parts) if sent.has(context, listing) else None
        case protocol.AskContextFiles(_, listing, picked):
            return partial(sent.files, context, listing, picked) if sent.has(context, listing) else None
        case _:
            assert_never(question)


def _layout_file(location: str, name: str) -> Stream | None:
    """Return the file ``name`` of the OCI layout ``location``; None if it does not exist. Raises ``ProtocolError`` for
    a name that is not part of a layout."""
    from executor.registry import layout, oci_archive

    if not layout.is_file_of(name):
        raise ProtocolError(f"an executor asked for what is not in a layout: {name!r}")
    path, _ = layout.split_location(location)
    opened = oci_archive.read_archive(path) if os.path.isfile(path) else layout.read_layout(path)
    try:
        file, _ = opened.open_file(name)
    except OSError:
        return None

    def stream(out: Callable[[bytes | memoryview], object]) -> None:
        with file:
            while block := file.read(_BLOCK):
                out(block)

    return stream
