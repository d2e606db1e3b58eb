"""A namespace of a cluster, for all nodes of a build that are in it: connection, watch, and the Jobs that were made."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from typing import Final

import msgspec

from orchestrator.nodes.kubernetes import job_manifest, pod_states
from orchestrator.nodes.kubernetes.address import KubernetesAddress
from orchestrator.nodes.kubernetes.cluster_api import (
    DELETE_JOBS,
    APIRefusedError,
    APIStatus,
    APIUnreachableError,
    KubernetesClient,
)
from orchestrator.nodes.kubernetes.job_manifest import JobManifest, JobTemplate
from orchestrator.nodes.kubernetes.job_queue import JobQueue
from orchestrator.nodes.kubernetes.namespace_watch import NamespaceWatch
from orchestrator.process import ExecutorProcess
from platforms import debug, decoding
from platforms.errors import EnvironmentUnfit, KanifoldError, UsageError

DELETING: Final = 10.0
"""Seconds in which the deletion of a Job is tried, of which it takes a small part if the API is well."""
_TRIES: Final = 3
_PAUSES: Final = (0.1, 0.2, 0.5, 1.0)
"""Seconds until another attempt to delete a Job; the last one from then on."""
_TRANSIENT: Final = (429, 500, 502, 503, 504)


class QuotaExceededError(Exception):
    """A quota refuses the Job itself. Its text says so as ``pod_states.quota_words``."""


class ClusterNode(msgspec.Struct, frozen=True, rename="camel"):
    """core/v1 Node, as far as it is used."""

    class Metadata(msgspec.Struct, frozen=True):
        """Its labels."""

        name: str = ""
        labels: dict[str, str] = {}

    class Spec(msgspec.Struct, frozen=True):
        """Whether it takes Pods."""

        unschedulable: bool = False

    metadata: Metadata = Metadata()
    spec: Spec = Spec()

    @property
    def architecture(self) -> str:
        """The value of its label kubernetes.io/arch."""
        return self.metadata.labels.get("kubernetes.io/arch", "")


class _Nodes(msgspec.Struct, frozen=True):
    items: tuple[ClusterNode, ...] = ()


class _Created(msgspec.Struct, frozen=True):
    metadata: pod_states.ObjectMeta = pod_states.ObjectMeta()


_CREATED: Final = msgspec.json.Decoder(_Created)
_NODES: Final = msgspec.json.Decoder(_Nodes)


class Cluster:
    """The namespace at ``address``, for the declared node ``name``; ``build`` as for ``JobTemplate``."""

    def __init__(self, address: KubernetesAddress, name: str, build: str) -> None:
        self.address = address
        self.name = name
        self.client = KubernetesClient(address, name)
        self.queue = JobQueue(self._pods)
        self.watch = NamespaceWatch(self.client, self.queue.ended)
        self._build = build
        self._connecting: asyncio.Task[JobTemplate] | None = None
        self._nodes: asyncio.Task[tuple[ClusterNode, ...] | None] | None = None
        self._numbers: dict[str, int] = {}
        self._deleting: set[asyncio.Task[None]] = set()
        self._users = 0
        self.working: set[ExecutorProcess] = set()
        """Executors that run, and have not done their job yet."""
        self.kept: set[ExecutorProcess] = set()
        """Executors that have done their job, and keep files until all platforms are built."""
        self.awaited = 0
        """Executors that are wanted by others which run."""

    async def connect(self) -> JobTemplate:
        """Connect, once, and return what Jobs are made of. Raises ``KanifoldError``."""
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> JobTemplate:
        path = self.address.template
        patch = await asyncio.to_thread(job_manifest.read_patch, path) if path else {}
        await self.client.connect()
        try:
            deletes = await self.client.may(DELETE_JOBS)
        except APIUnreachableError as error:
            raise self.failure(error) from error
        if not deletes:  # a Job that cannot be deleted is not made
            why = f'the account cannot delete resource "jobs" in the namespace "{self.client.namespace}"'
            raise self.failure(APIRefusedError(APIStatus("Forbidden", why, 403)))
        return JobTemplate(self.address, self._build, patch, job_manifest.own_pod())

    async def nodes(self) -> tuple[ClusterNode, ...] | None:
        """Return the nodes of the cluster, asked once; None if that is not allowed. Raises ``EnvironmentUnfit``."""
        if self._nodes is None:
            self._nodes = asyncio.create_task(self._list_nodes())
        return await asyncio.shield(self._nodes)

    async def _list_nodes(self) -> tuple[ClusterNode, ...] | None:
        await self.connect()
        try:
            return decoding.decode(
                _NODES, await self.client.get("/api/v1/nodes", {"labelSelector": "kubernetes.io/os=linux"})
            ).items
        except APIRefusedError as error:
            if error.code == 403:
                return None
            raise self.failure(error) from error
        except APIUnreachableError as error:
            raise self.failure(error) from error

    def failure(self, error: APIRefusedError | APIUnreachableError | KanifoldError) -> KanifoldError:
        """Return the error for a request that has failed."""
        if isinstance(error, KanifoldError):
            return error
        if isinstance(error, APIUnreachableError):
            return EnvironmentUnfit(
                f"node {self.name}: cannot reach the cluster",
                why=str(error),
                remedy="see what `kubectl version` says with the same kubeconfig and context",
            )
        remedy = f"kanifold node check {self.name} says which permissions are missing" if error.code == 403 else ""
        if "being terminated" in error.status.message:
            remedy = "wait until the namespace is gone, and create it again"
        if error.code == 401:
            remedy = "log in to the cluster again: see what `kubectl auth whoami` says"
        return EnvironmentUnfit(f"node {self.name}: the cluster refuses", why=error.status.message, remedy=remedy)

    @property
    def is_busy(self) -> bool:
        """Whether one of the executors will end by itself, and leave its place to another."""
        return len(self.working) > self.awaited

    @property
    def is_held(self) -> bool:
        """Whether all Pods there are of executors that keep files until those are there that wait for a place."""
        return not self.working and bool(self.kept) and self._pods() <= len(self.kept)

    def _pods(self) -> int:
        return self.watch.pods()

    def number(self, architecture: str) -> int:
        """Return a number for the next Job for ``architecture``."""
        found = self._numbers.get(architecture, 0)
        self._numbers[architecture] = found + 1
        return found

    async def create(self, manifest: JobManifest) -> str | None:
        """Create a Job; return its uid, "" if that is not known, or None if the Job was there.

        Raises ``KanifoldError``, ``QuotaExceededError``.
        """
        path = f"/apis/batch/v1/namespaces/{self.client.namespace}/jobs"
        for attempt in range(_TRIES):
            try:
                content = await self.client.create(path, manifest.body)
            except APIRefusedError as error:
                if error.status.reason == "AlreadyExists":
                    return "" if attempt else None  # the answer to the first attempt was lost
                if error.code == 422:
                    raise UsageError(
                        f"node {self.name}: the Job is invalid", why=error.status.message, remedy="correct the template"
                    ) from error
                words = pod_states.quota_words(error.status.message) if error.code == 403 else ""
                if words:
                    raise QuotaExceededError(words) from error
                if error.code not in _TRANSIENT or attempt + 1 == _TRIES:
                    raise self.failure(error) from error
            except APIUnreachableError as error:
                if attempt + 1 == _TRIES:
                    raise self.failure(error) from error
            else:
                debug.log("job created", name=manifest.name)
                return _uid(content)
            await asyncio.sleep(0.5 * 2**attempt)
        raise AssertionError

    def delete_soon(self, name: str) -> asyncio.Task[None]:
        """Delete the Job ``name`` with its Pod, in a task."""
        task = asyncio.create_task(self._delete(name))
        self._deleting.add(task)
        task.add_done_callback(self._deleting.discard)
        return task

    async def _delete(self, name: str) -> None:
        """Delete a Job. One that cannot be deleted ends by itself: its Pod when nobody is connected, it by its ttl."""
        path = f"/apis/batch/v1/namespaces/{self.client.namespace}/jobs/{name}"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DELETING):
                for pause in itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1])):
                    if await self._deleted(path):
                        debug.log("job deleted", name=name)
                        return
                    await asyncio.sleep(pause)
        debug.log("job not deleted", name=name)

    async def _deleted(self, path: str) -> bool:
        """Ask for the deletion of a Job; return whether there is nothing more to do."""
        try:
            await self.client.delete(path, "Background")
        except APIUnreachableError:
            return False
        except APIRefusedError as error:
            return error.code not in _TRANSIENT
        except KanifoldError:  # there are no credentials any more
            return True
        return True

    def use(self) -> Callable[[], object]:
        """Count a user; what is returned is to be awaited by ``release``."""
        self._users += 1
        return self.release

    async def release(self) -> None:
        """Count a user less; the last one closes the connection, after the deletion of Jobs."""
        self._users -= 1
        if self._users > 0:
            return
        await asyncio.gather(*self._deleting, return_exceptions=True)
        await self.watch.close()
        for each in (self._connecting, self._nodes):
            if each is not None and not each.done():
                each.cancel()
        await self.client.close()


def _uid(job: bytes) -> str:
    """Return the uid of ``job``, as the API returns it; "" if it does not say."""
    try:
        return decoding.decode(_CREATED, job).metadata.uid
    except msgspec.DecodeError:
        return ""
