"""Converting a job for a node that does not share this machine's disk, and the errors of such a node.

Nothing that is sent contains a path of this machine. Files, and entries of a remote cache in a directory, are sent on
request, and so are accounts for remote caches at services, which the node uses itself; what is valid on this machine
only is rejected with an error. An error of this machine (a secret file that cannot be read) is sent without its texts,
and has them again when the node reports it as the cause of its failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, Protocol, assert_never
from urllib.parse import urlsplit

from msgspec.structs import replace

from executor import protocol
from executor.registry.registry_settings import RegistrySettings
from orchestrator.answers import registries_of
from orchestrator.node_services import cache_name
from orchestrator.nodes.node import ContextRoutes
from orchestrator.nodes.placement import Placement
from platforms.errors import Problem, StoreError, UsageError
from platforms.hosts import is_loopback

UNCHANGED: Final = frozenset({
    "version", "platform", "build_platform",
    "dockerfile", "build_args", "annotations", "pins", "build", "push", "local", "oci", "epoch",
    "target", "labels", "compression", "rewrite_timestamps", "no_cache", "no_cache_stages", "cache_ttl",
    "implicit_platform", "snapshotter", "isolation", "hosts", "network", "default_network", "shm_size", "ulimits",
    "limits", "allow", "insecure", "mirrors", "token_services", "tls", "without_tls", "failing", "timeouts",
})  # fmt: skip
"""The fields of a job, and of its options, that mean the same on every node."""
TRANSLATED: Final = frozenset({
    "clock_ahead", "emulation", "lends", "dockerfile_name", "contexts", "root", "cache_from", "cache_to",
})  # fmt: skip
REFUSED: Final = frozenset({"cgroup_parent", "certificates", "emulator_image"})
"""Fields that may refer to something of this machine, which is an error."""
_KEPT: Final = 1000
_KEPT_LENGTH: Final = 10_000
"""Errors that are kept for a job, however many an executor provokes, and characters of one."""


class Translation(Protocol):
    """A job as it is sent to a node, and the conversion of errors."""

    @property
    def job(self) -> protocol.Job:
        """The job to send."""
        ...

    def sent(self, question: protocol.Question, problem: Problem) -> Problem:
        """Return the ``problem`` of answering ``question``, as it is sent to the node."""
        ...

    def received(self, problem: Problem) -> Problem:
        """Return a ``problem`` that the node reports, as it is shown here."""
        ...

    def is_ours(self, problem: Problem) -> bool:
        """Whether the ``problem``, as it is shown here, is one of this machine: that of answering a question."""
        ...


class Unchanged:
    """For a node that shares this machine's disk: nothing is converted."""

    def __init__(self, job: protocol.Job) -> None:
        self.job = job

    def sent(self, question: protocol.Question, problem: Problem) -> Problem:
        return problem

    def received(self, problem: Problem) -> Problem:
        return problem

    def is_ours(self, problem: Problem) -> bool:
        return False


class Apart:
    """For a node ``node`` with another disk. Raises ``UsageError`` for a job that is not possible there."""

    def __init__(self, job: protocol.Job, node: str, routes: ContextRoutes | None = None) -> None:
        _refuse(job, node)
        artifacts = routes is not None and bool(routes.repository_for(job))
        large = 0 if routes is None else routes.large
        self._name = job.dockerfile_name
        self._node = node
        self._kept: dict[tuple[str, str], Problem] = {}
        """Problems of this machine, by the kind and the texts with which they were sent."""
        caches = (*job.options.cache_from, *(each.to for each in job.options.cache_to))
        self._directories = {
            cache_name(each.name): each.name for each in caches if isinstance(each, protocol.CacheInDirectory)
        }
        """Remote caches on this machine, by the name that is sent."""
        self.job = replace(
            job,
            emulation=None,  # determined there
            lends=True,  # a password stays here
            dockerfile_name=_shown(job.dockerfile_name),
            contexts=tuple(_context(each, large, artifacts=artifacts) for each in job.contexts),
            options=replace(
                job.options,
                root="",  # the default store of executors there
                cache_from=tuple(map(_cache, job.options.cache_from)),
                cache_to=tuple(map(_export, job.options.cache_to)),
                registries=_without_files(job.options.registries),
            ),
        )

    def sent(self, question: protocol.Question, problem: Problem) -> Problem:
        told = Problem(problem.kind, f"the orchestrator cannot give the {question.kind} {question.name!r}")
        if len(self._kept) < _KEPT and len(told.what) < _KEPT_LENGTH:  # else it is shown as it was sent
            self._kept[told.kind, told.what] = problem
        return told

    def received(self, problem: Problem) -> Problem:
        where = problem.where
        if where is not None and where.file == self.job.dockerfile_name:
            problem = replace(problem, where=replace(where, file=self._name))
        for name, directory in self._directories.items():
            problem = replace(
                problem, what=problem.what.replace(name, directory), why=problem.why.replace(name, directory)
            )
        kept = self._kept.get((problem.kind, problem.what))
        if kept is not None:
            return replace(kept, where=problem.where or kept.where)
        if problem.kind == StoreError.__name__:  # which names a path that may be here, too
            return replace(problem, what=f"node {self._node}: {problem.what}")
        return problem

    def is_ours(self, problem: Problem) -> bool:
        return any(replace(problem, where=each.where) == each for each in self._kept.values())


def translate(job: protocol.Job, placement: Placement) -> Translation:
    """Return ``job`` for the node of ``placement``. Raises ``UsageError`` if it is not possible there."""
    return Unchanged(job) if placement.shares_disk else Apart(job, placement.node.name, placement.contexts)


def loopback_registries(job: protocol.Job, placement: Placement) -> Problem | None:
    """Return a warning if ``job`` names registries, or services with caches, that on its node are others: those on a
    loopback interface."""
    found = {*registries_of(job), *_cache_hosts(job.options)}
    names = sorted(filter(is_loopback, found)) if not placement.shares_disk else []
    if not names:
        return None
    return Problem(
        "LoopbackRegistry",
        f"node {placement.node.name} has to reach {', '.join(names)}",
        why="such a name leads to the machine that uses it: if the node is another one, to another registry, or none",
        remedy="name the registry so that both machines reach it",
    )


def _cache_hosts(options: protocol.BuildOptions) -> Iterator[str]:
    """Yield the hosts, with their ports, of the services that keep remote caches."""
    for each in (*options.cache_from, *(export.to for export in options.cache_to)):
        match each:
            case (
                protocol.CacheInBucket(endpoint=url)
                | protocol.CacheInContainer(account_url=url)
                | protocol.CacheInActions(url=url)
            ):
                yield urlsplit(url).netloc
            case _:
                pass


def _refuse(job: protocol.Job, node: str) -> None:
    """Raise ``UsageError`` for what refers to this machine and cannot be sent to ``node``."""
    options = job.options
    group = options.steps.cgroup_parent
    if group:
        raise UsageError(
            f"--cgroup-parent: node {node} does not have {group}",
            why="it is a control group of this machine",
            remedy="leave it out for builds on other nodes",
        )
    if options.emulator_image.startswith(("oci-layout:", "oci-archive:")):
        raise UsageError(
            f"--emulator-image: node {node} cannot read {options.emulator_image}",
            why="it is on this machine, whose disk the node does not share",
            remedy="name an image in a registry",
        )
    spoken_to = registries_of(job)
    for each in options.registries.certificates:
        if each.registry in spoken_to and (each.cert or each.key):
            raise UsageError(
                f"node {node} cannot show the client certificate for {each.registry}",
                why="certificate and key are files of this machine",
                remedy="build on this machine, or let the registry take a password or a token",
            )


def _context(context: protocol.Context, large: int, *, artifacts: bool) -> protocol.Context:
    match context:
        case protocol.DirectoryContext(name):
            return protocol.SentContext(name, large, context.git if large else None, artifacts)
        case protocol.LayoutContext(name, path):
            from executor.registry.layout import split_location

            return protocol.SentLayoutContext(name, split_location(path)[1])
        case (
            protocol.SentContext() | protocol.SentLayoutContext() | protocol.ImageContext() | protocol.ScratchContext()
        ):
            return context
        case _:
            assert_never(context)


def _cache(location: protocol.CacheLocation) -> protocol.CacheLocation:
    if isinstance(location, protocol.CacheInDirectory):
        return protocol.CacheAtOrchestrator(cache_name(location.name))
    return location


def _export(export: protocol.CacheExport) -> protocol.CacheExport:
    return export if isinstance(export.to, protocol.CacheInImage) else replace(export, to=_cache(export.to))


def _without_files(settings: RegistrySettings) -> RegistrySettings:
    """Return ``settings`` without client certificates, which are files; authorities are text and are kept."""
    kept = tuple(replace(each, cert="", key="") for each in settings.certificates)
    return replace(settings, certificates=kept)


def _shown(path: str) -> str:
    """Return the path of the Dockerfile for error messages: unchanged, unless it leads out of the current directory."""
    return os.path.basename(path) if os.path.isabs(path) or os.pardir in path.split(os.sep) else path
