"""Nodes of one architecture of a Kubernetes cluster: each executor is a Job, on a node that the scheduler finds."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from executor import __version__, protocol, relay
from orchestrator import connection
from orchestrator.connection import Connection
from orchestrator.nodes import executor_loading
from orchestrator.nodes.executor_loading import Loading, Wanted
from orchestrator.nodes.inventory import NodeEntry
from orchestrator.nodes.kubernetes import job_manifest, pod_states
from orchestrator.nodes.kubernetes.cluster import Cluster, QuotaExceededError
from orchestrator.nodes.kubernetes.cluster_api import APIRefusedError
from orchestrator.nodes.kubernetes.job_manifest import CONTAINER, JobManifest
from orchestrator.nodes.kubernetes.job_queue import Order
from orchestrator.nodes.kubernetes.namespace_watch import JobView
from orchestrator.nodes.kubernetes.pod_states import ClusterEvent, Pod
from orchestrator.nodes.kubernetes.pod_stream import BusyError, PodStream
from orchestrator.nodes.node import ContextRoutes, Description, Say, Support, silent
from platforms import binfmt
from platforms.errors import EnvironmentUnfit, KanifoldError
from platforms.parsing import parse
from platforms.platform import Platform, candidates

if TYPE_CHECKING:
    import aiohttp

_HINT: Final = "see what kubectl logs says of the Pod; its image needs Python 3.11 or later"
_LOADING: Final = 60.0
"""Seconds for the first answer of the loader."""
_ADOPTIONS: Final = 20
"""Jobs of an earlier run of the same build that are looked at."""
_UNSEEN: Final = 10.0
"""Seconds after which a Job whose events cannot be seen is taken to get no Pod."""
_HELD: Final = 60.0
"""Seconds for a place where executors hold all until the one is done which wants it: others may use the quota."""
_ASKED: Final = 15.0
"""Seconds after which what others do is looked at again."""
_EVENTS_LAG: Final = 0.5
"""Seconds in which events that tell more of a Pod's end may come."""


class _ReplacedError(Exception):
    """The Job of this name is of no use: another orchestrator uses it, or it has ended."""


class _StartTimeout:
    """How long executors of ``node`` wait for a Pod, while no other one of ``cluster`` will leave its place."""

    def __init__(self, cluster: Cluster, node: str) -> None:
        self._cluster = cluster
        self._node = node
        self._begun = time.monotonic()

    def rest(self, words: str) -> float:
        """Return the seconds until it is to be asked again for what ``words`` say. Raises ``EnvironmentUnfit``."""
        now, patience = time.monotonic(), self._cluster.address.patience
        if self._cluster.is_busy:
            self._begun = now
        held = self._cluster.is_held
        left = self._begun + (min(patience, _HELD) if held else patience) - now
        if left < 0 and held:
            raise EnvironmentUnfit(
                f"node {self._node}: no place for another executor",
                why=f"{words}; the executors there keep their files until all platforms are built",
                remedy="raise the quota, build fewer platforms, or push the image: "
                "what is pushed leaves its place at once",
            )
        if left < 0:
            raise EnvironmentUnfit(
                f"node {self._node}: no Pod was started within {patience} seconds",
                why=words,
                remedy="wait= in the node's address says how long it may take",
            )
        return min(left, _ASKED) + 0.01


class _Startup(msgspec.Struct, frozen=True):
    """An executor that is being started: its place in the queue, and whom to tell what it waits for.

    ``awaited``: whether another executor, which runs, waits for what this one is to make.
    """

    order: Order
    timeout: _StartTimeout
    say: Say
    awaited: bool


class KubernetesNode:
    """Where ``cluster`` runs programs of ``architecture``, as ``entry`` declares it.

    ``sends``: whether kanifold may be sent there if the image lacks it.
    """

    def __init__(self, cluster: Cluster, entry: NodeEntry, architecture: str, *, sends: bool = True) -> None:
        self.name = f"{entry.name}/{architecture}"
        self._cluster = cluster
        self._entry = entry
        self._architecture = architecture
        self._sends = sends
        self._wanted: asyncio.Task[Wanted] | None = None
        self._streams: list[PodStream] = []
        cluster.use()

    async def describe(self, platforms: Sequence[Platform]) -> Description:
        """Return what is known without starting an executor: whether the cluster has nodes of the architecture.

        Raises ``KanifoldError`` when the cluster cannot be reached.
        """
        nodes = await self._cluster.nodes()
        declared = self._cluster.address.architectures
        own = parse(f"linux/{self._architecture}")
        count = 0 if nodes is None else sum(each.architecture == self._architecture for each in nodes)
        there = self._architecture in declared if declared else nodes is None or count > 0
        return Description(
            platform=own,
            support=tuple((each, self._support(each, own, there=there)) for each in platforms),
            kanifold=__version__,
            protocol=protocol.VERSION,
            contexts=ContextRoutes(self._cluster.address.context_limit, self._cluster.address.context_repository),
            scheduled=True,
            absent=not there,
            emulators=tuple(each for each in binfmt.QEMU if each != self._architecture) if there else (),
        )

    def _support(self, platform: Platform, own: Platform, *, there: bool) -> Support:
        if there and platform.architecture == own.architecture:
            if platform in candidates(own) or not platform.variant or own.architecture == "arm64":
                return Support("native")
        elif there and platform.architecture in binfmt.QEMU:
            return Support("emulated")
        why = f"the cluster has no node with kubernetes.io/arch={self._architecture}"
        return Support(
            unfit=EnvironmentUnfit(
                f"node {self.name} runs no programs of {platform}",
                why=why if not there else f"it is {own}",
                remedy=f"add a node pool with {platform.architecture}; if one is started on demand, say so with arch=",
            )
        )

    def supported(self, platform: Platform, emulators: Sequence[str]) -> Support:
        """Return how programs of ``platform`` run, now that an executor has named its ``emulators``."""
        found = self._support(platform, parse(f"linux/{self._architecture}"), there=True)
        if found.how == "emulated" and platform.architecture not in emulators:
            return Support(unfit=EnvironmentUnfit(f"node {self.name} has no emulator for {platform.architecture}"))
        return found

    async def start(self, say: Say = silent) -> Connection:
        """Start an executor in a Job of its own and return its connection; ``say`` is told what it waits for.

        Raises ``KanifoldError``.
        """
        return await self._start(say, awaited=False)

    async def start_awaited(self, say: Say = silent) -> Connection:
        """Start an executor as ``start``, for a job that another one waits for: before others, and only if it can be.

        Raises ``KanifoldError``, also when it would have to wait for the end of one that waits for it.
        """
        self._cluster.awaited += 1
        try:
            return await self._start(say, awaited=True)
        finally:
            self._cluster.awaited -= 1

    def keep(self, connection: Connection) -> None:
        """Take note that the executor has done its job, and stays for its files."""
        process = connection.worker.process
        if process in self._cluster.working:
            self._cluster.working.discard(process)
            self._cluster.kept.add(process)

    async def close(self) -> None:
        """End all executors, and the connection to the cluster with the last node of it."""
        for each in self._streams:
            each.close()
        await asyncio.gather(*(each.wait_closed() for each in self._streams))
        await self._cluster.release()

    # -- from a Job to an executor -------------------------------------------------------------------------------------

    async def _start(self, say: Say, *, awaited: bool) -> Connection:
        if self._wanted is None:
            self._wanted = asyncio.create_task(asyncio.to_thread(executor_loading.wanted))
        template = await self._cluster.connect()
        order = self._cluster.queue.order(first=awaited)
        start = _Startup(order, _StartTimeout(self._cluster, self.name), say, awaited)
        replaced = 0
        try:
            while replaced < _ADOPTIONS:
                number = self._cluster.number(self._architecture)
                try:
                    return await self._attempt(job_manifest.manifest(template, self._architecture, number), start)
                except _ReplacedError:
                    replaced += 1
                except QuotaExceededError as error:
                    if awaited and not self._cluster.is_busy:
                        raise EnvironmentUnfit(
                            f"node {self.name}: no place for another executor", why=str(error)
                        ) from error
        finally:
            say("")
        raise EnvironmentUnfit(
            f"node {self.name}: too many Jobs of this build are there",
            why="they belong to other runs of the same build",
            remedy="wait for these, or delete the Jobs: kubectl delete job -l app.kubernetes.io/managed-by=kanifold",
        )

    async def _attempt(self, manifest: JobManifest, start: _Startup) -> Connection:
        """Return an executor in the Job ``manifest``.

        Raises ``KanifoldError``, ``_ReplacedError``, ``QuotaExceededError``.
        """
        view = self._cluster.watch.add(manifest.name)
        try:
            async with self._cluster.queue.turn(start.order, start.say, start.timeout.rest):
                created = await self._placed(manifest, view, start)
            return await self._started(view, start, created=created)
        finally:
            self._cluster.watch.remove(view)

    async def _placed(self, manifest: JobManifest, view: JobView, start: _Startup) -> bool:
        """Create a Job and wait for its Pod; return whether the Job was not there. Nothing is left after an error."""
        queue = self._cluster.queue
        try:
            uid = await self._created(manifest)
            created = uid is not None
            view.limit(uid or "")
            try:
                await self._reached(_is_there, view, start, created=created)
            except BaseException:
                if created:
                    self._cluster.delete_soon(view.name)
                raise
        except QuotaExceededError as error:
            queue.refused(str(error))
            raise
        queue.given()
        return created

    async def _created(self, manifest: JobManifest) -> str | None:
        """Create a Job, which is deleted if this is cancelled meanwhile; return what ``Cluster.create`` returns."""
        creating = asyncio.create_task(self._cluster.create(manifest))
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            with contextlib.suppress(KanifoldError, QuotaExceededError):
                if await creating is not None:
                    self._cluster.delete_soon(manifest.name)
            raise

    async def _started(self, view: JobView, start: _Startup, *, created: bool) -> Connection:
        """Return the executor of the Job ``view``, which this has ``created``, or found.

        A Job that was found may be of another run, which waits for its Pod: it is left alone until this is connected.
        """
        ours = created
        try:
            pod = await self._reached(_runs, view, start, created=created)
            stream = PodStream(
                secrets.token_hex(16),
                partial(self._dial, pod),
                connection.LINE_LIMIT,
                partial(self._cluster.delete_soon, view.name),
            )
            try:
                await self._connected(stream, view)
                ours = True
            except BusyError as error:
                ours = False
                raise _ReplacedError from error
            return await self._loaded(stream, view.name, start.say)
        except BaseException:
            if ours:
                self._cluster.delete_soon(view.name)
            raise

    async def _reached(self, state: Callable[[Pod], bool], view: JobView, start: _Startup, *, created: bool) -> Pod:
        """Wait for the Pod, and until it is in ``state``; return it.

        Raises ``KanifoldError``, ``_ReplacedError``, ``QuotaExceededError``.
        """
        told, failing_since, begun = "", 0.0, time.monotonic()
        while True:
            pod, events = view.pod, view.events
            if pod is not None and state(pod):
                return pod
            if (pod is not None and (pod.is_over or pod.metadata.deletion_timestamp)) or (pod is None and view.had_pod):
                if not created:
                    raise _ReplacedError
                raise await self._ended(view)
            if self._cluster.watch.failed is not None:
                raise self._cluster.failure(self._cluster.watch.failed)
            words, now = pod_states.waiting_words(pod, events, self._architecture), time.monotonic()
            if pod is None:
                self._is_refused(words, events, now - begun, created=created)
            failure = pod_states.start_failure(pod, events, self.name)
            failing_since = 0.0 if failure is None else failing_since or now
            if failure is not None and now - failing_since >= failure.patience:
                raise failure.error
            if words != told:
                told = words
                start.say(words)
            rest = start.timeout.rest(words)
            if failure is not None:
                rest = failure.patience - (now - failing_since) + 0.01
            await view.wait(min(rest, _UNSEEN) if pod is None else rest)

    def _is_refused(self, words: str, events: Sequence[ClusterEvent], seconds: float, *, created: bool) -> None:
        """Raise ``QuotaExceededError`` or ``_ReplacedError`` if a Job will not have a Pod by itself soon.

        ``seconds``: since when it is waited for. Without events a quota is what the absence of a Pod tells.
        """
        refused = bool(pod_states.quota_refusal(events))
        if not refused and (seconds < _UNSEEN or (created and not self._cluster.watch.events_denied)):
            return
        if not created:
            raise _ReplacedError
        raise QuotaExceededError(words)

    async def _ended(self, view: JobView) -> KanifoldError:
        """Return the error for a Pod that has ended."""
        pod = view.pod
        await view.wait(_EVENTS_LAG)
        return pod_states.end(view.pod or pod, view.events, self.name)

    @contextlib.asynccontextmanager
    async def _dial(self, pod: Pod) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        client = self._cluster.client
        command = ["python3", "-I", "-S", "-c", relay.BRIDGE, f"{relay.PLACE}/{relay.SOCKET}"]
        query = [("container", CONTAINER), ("stdin", "true"), ("stdout", "true"), ("stderr", "true")]
        path = f"/api/v1/namespaces/{client.namespace}/pods/{pod.metadata.name}/exec"
        try:
            async with client.stream(path, [*query, *(("command", each) for each in command)]) as socket:
                yield socket
        except APIRefusedError as error:
            if error.code == 403:
                raise self._cluster.failure(error) from error
            raise

    async def _connected(self, stream: PodStream, view: JobView) -> None:
        """Wait until ``stream`` is connected, and watch its Pod from then on."""
        watching = asyncio.create_task(self._watch(stream, view))
        try:
            await stream.connected
        except BaseException:
            watching.cancel()
            stream.abort()
            raise

    async def _watch(self, stream: PodStream, view: JobView) -> None:
        """Tell ``stream`` when its Pod has ended."""
        kept = self._cluster.watch.follow(view)
        self._cluster.working.add(stream.process)
        stream.process.ended.add_done_callback(kept.changed)
        try:
            while not stream.process.ended.done() and not stream.is_closing():
                pod = kept.pod
                if pod is None or pod.is_over or pod.metadata.deletion_timestamp is not None:
                    await stream.fail_soon(await self._ended(kept))
                    return
                await kept.wait(3600.0)
        finally:
            self._cluster.working.discard(stream.process)
            self._cluster.kept.discard(stream.process)
            self._cluster.watch.remove(kept)

    async def _loaded(self, stream: PodStream, job: str, say: Say) -> Connection:
        """Return the connection to the executor at the other end of ``stream``."""
        assert self._wanted is not None
        self._streams = [each for each in self._streams if not each.process.ended.done()]
        self._streams.append(stream)
        say("loading kanifold")
        wanted = await asyncio.shield(self._wanted)
        try:
            return await Loading(self._entry, self.name, wanted, self._sends, _HINT).load(stream.worker, _LOADING)
        except TimeoutError as error:
            raise EnvironmentUnfit(
                f"node {self.name}: the Pod of {job} does not answer", why="nothing came from it", remedy=_HINT
            ) from error


def _is_there(_: Pod) -> bool:
    return True


def _runs(pod: Pod) -> bool:
    return pod.is_running
