"""Executors in Jobs of a namespace that is simulated: which Pod is theirs, and how long they wait for one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar, cast

import pytest
from pod_sockets import Message

from executor.relay import HEADER
from orchestrator.connection import Connection
from orchestrator.nodes.inventory import NodeEntry
from orchestrator.nodes.kubernetes import address, kubernetes_node
from orchestrator.nodes.kubernetes.cluster import Cluster
from orchestrator.nodes.kubernetes.cluster_api import APIRefusedError, APIStatus
from orchestrator.nodes.kubernetes.job_manifest import CONTAINER
from orchestrator.nodes.kubernetes.kubernetes_node import KubernetesNode
from orchestrator.nodes.kubernetes.namespace_watch import NamespaceWatch
from orchestrator.nodes.node import ExecutorPool
from orchestrator.process import Worker
from platforms.errors import EnvironmentUnfit

T = TypeVar("T")


class Socket:
    """A stream to an executor that greets if it ``answers``, and says nothing more."""

    def __init__(self, greeting: bytes, *, answers: bool) -> None:
        self._greeting = greeting
        self._greeted = not answers

    async def send_bytes(self, _: bytes) -> None: ...

    async def receive(self) -> Message:
        if self._greeted:
            await asyncio.Event().wait()
        self._greeted = True
        return Message(b"\1" + HEADER.pack(self._greeting, 0, 1) + b"0")


class API:
    """The API of a namespace with room for so many Pods, which run at once, unless no node takes them."""

    namespace = "builds"

    def __init__(self, room: int = 100) -> None:
        self.room = room
        self.schedules = True
        self.expired = False
        self.answers = True
        """Whether executors greet."""
        self.jobs: set[str] = set()
        self.refused = 0
        """How often a Job was there already."""
        self.busy = False
        """Whether executors greet as ones that another orchestrator is connected to."""
        self.ends_at_once = True
        """Whether Pods are gone with their Job; else they go on."""
        self.pods: dict[str, dict[str, Any]] = {}
        self.connected: list[str] = []
        """The Pods that streams were opened to."""
        self._watches: dict[str, list[asyncio.Queue[bytes]]] = {"pods": [], "events": []}
        self._numbers = itertools.count(1)

    async def connect(self) -> None: ...

    async def close(self) -> None: ...

    async def may(self, _: object) -> bool:
        return True

    async def get(self, path: str, _: object = None) -> bytes:
        if self.expired:
            raise EnvironmentUnfit("no credentials")
        items = [*self.pods.values()] if path.endswith("/pods") else []
        return json.dumps({"metadata": {"resourceVersion": "1"}, "items": items}).encode()

    async def watch(self, path: str, _: Mapping[str, str]) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._watches[path.rpartition("/")[2]].append(queue)
        while True:
            yield await queue.get()

    async def until(self, state: Callable[[], bool]) -> None:
        while not state():
            await asyncio.sleep(0.005)

    def tell(self, kind: str, change: str, what: object) -> None:
        for each in self._watches[kind]:
            each.put_nowait(json.dumps({"type": change, "object": what}).encode())

    async def create(self, _: str, body: Any) -> bytes:
        job, number = body["metadata"]["name"], next(self._numbers)
        if job in self.jobs:
            self.refused += 1
            raise APIRefusedError(APIStatus("AlreadyExists", "", 409))
        self.jobs.add(job)
        asyncio.get_running_loop().call_later(0.02, self._control, job, number)  # as the Job controller does
        return json.dumps({"kind": "Job", "metadata": {"name": job, "uid": f"uid-{number}"}}).encode()

    def _control(self, job: str, number: int) -> None:
        if len(self.pods) < self.room:
            self.add(job, f"uid-{number}")
        else:
            used = f"pods={len(self.pods)}"
            message = f"exceeded quota: few, requested: pods=1, used: {used}, limited: pods={self.room}"
            involved = {"kind": "Job", "name": job}
            self.tell("events", "ADDED", {"reason": "FailedCreate", "message": message, "involvedObject": involved})

    def add(self, job: str, uid: str, **metadata: object) -> None:
        """Start the Pod of the Job ``uid``."""
        name = f"{job}-{uid}"
        labels = {"batch.kubernetes.io/job-name": job, "batch.kubernetes.io/controller-uid": uid}
        running = {"containerStatuses": [{"name": CONTAINER, "state": {"running": {}}}], "phase": "Running"}
        self.pods[name] = {
            "metadata": {"name": name, "uid": f"pod-{uid}", "labels": labels, **metadata},
            "spec": {"nodeName": "n1"} if self.schedules else {},
            "status": running if self.schedules else {"phase": "Pending"},
        }
        self.tell("pods", "ADDED", self.pods[name])

    async def delete(self, path: str, _: str) -> None:
        job = path.rpartition("/")[2]
        self.jobs.discard(job)
        for name, pod in [*self.pods.items()]:
            if pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] == job and self.ends_at_once:
                self.tell("pods", "DELETED", self.pods.pop(name))

    @contextlib.asynccontextmanager
    async def stream(self, path: str, _: object) -> AsyncIterator[Socket]:
        self.connected.append(path.split("/")[-2])
        yield Socket(b"B" if self.busy else b"H", answers=self.answers)


class Loaded:
    """In place of the loader of kanifold: it is there."""

    def __init__(self, *_: object) -> None: ...

    async def load(self, worker: Worker, _: float) -> Connection:
        return Connection(worker, cast("Any", None), "farm")


@pytest.fixture(autouse=True)
def _loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_node, "Loading", Loaded)
    monkeypatch.setattr(kubernetes_node.executor_loading, "wanted", lambda: None)


class Farm:
    """A build on the namespace ``api``."""

    def __init__(self, api: API, options: str = "", build: str = "") -> None:
        self.cluster = Cluster(address.parse(f"kubernetes:///builds?image=i&{options}"), "farm", build)
        self.cluster.client = cast("Any", api)
        self.cluster.watch = NamespaceWatch(self.cluster.client, self.cluster.queue.ended)
        self.node = KubernetesNode(self.cluster, NodeEntry("farm", "kubernetes:///"), "amd64")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 30))


@pytest.mark.parametrize("metadata", [{}, {"deletionTimestamp": "2026-01-01T00:00:00Z"}])
def test_the_pod_of_a_job_that_was_deleted_is_not_taken_for_that_of_its_successor(metadata: dict[str, str]) -> None:
    async def work() -> list[str]:
        api = API()
        api.ends_at_once = False
        before = Farm(api)
        await before.node.start()
        await before.node.close()
        (left,) = api.pods.values()
        left["metadata"] |= metadata
        farm = Farm(api)
        await farm.node.start()
        api.tell("pods", "DELETED", left)
        await asyncio.sleep(0)
        assert len(farm.cluster.working) == 1, "the end of the other one is not its own"
        await farm.node.close()
        return api.connected

    first, second = run(work())
    assert first.rpartition("-uid")[0] == second.rpartition("-uid")[0], "the Jobs have the same name"
    assert first != second


@pytest.mark.parametrize("state", ["is pending", "says nothing", "is busy"])
def test_a_job_that_another_run_of_the_build_has_made_is_left_alone(state: str) -> None:
    """When this one ends before it is connected to the Pod, or is told that the other one is."""

    async def work() -> None:
        api = API()
        api.schedules = state != "is pending"
        api.answers = state == "is busy"
        other, farm = Farm(api), Farm(api)
        first = asyncio.create_task(other.node.start())
        await api.until(lambda: bool(api.pods if state == "is pending" else api.connected))
        api.busy = True
        (other_job,) = api.jobs
        second = asyncio.create_task(farm.node.start())
        await api.until(lambda: api.refused > 0)
        if state != "is pending":
            await api.until(lambda: len(api.connected) == 2)
        if state == "is busy":
            await api.until(lambda: len(api.jobs) == 2)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        await farm.node.close()
        assert api.jobs == {other_job}
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await other.node.close()
        assert not api.jobs

    run(work())


def test_credentials_that_cannot_be_renewed_end_the_wait_for_a_pod() -> None:
    async def work() -> None:
        api = API()
        api.expired = True
        farm = Farm(api)
        try:
            await farm.node.start()
        finally:
            await farm.node.close()

    with pytest.raises(EnvironmentUnfit, match="no credentials"):
        run(work())


def test_a_place_that_is_free_when_a_job_is_done_is_waited_for() -> None:
    async def work() -> int:
        farm = Farm(API(room=1), "wait=1s")
        first = await farm.node.start()
        second = asyncio.create_task(farm.node.start())
        assert await asyncio.wait({second}, timeout=1.5) == (set(), {second})
        await first.end()
        await second
        await farm.node.close()
        return len(farm.cluster.client.connected)  # type: ignore[attr-defined]

    assert run(work()) == 2


def test_a_place_that_is_kept_until_all_are_built_is_not_waited_for() -> None:
    async def work() -> str:
        farm, pool = Farm(API(room=1), "wait=1s"), ExecutorPool()
        first = await pool.acquire(farm.node)
        second = asyncio.create_task(pool.acquire(farm.node))
        await asyncio.sleep(0)
        pool.keep(farm.node, first)
        try:
            await second
        except EnvironmentUnfit as error:
            return str(error)
        finally:
            await farm.node.close()
        return ""

    said = run(work())
    assert "no place for another executor" in said
    assert "waiting for the quota few: pods 1 of 1" in said
    assert "keep their files until all platforms are built" in said


def test_an_executor_that_another_waits_for_does_not_wait_for_that_one_to_leave_its_node() -> None:
    async def work() -> str:
        api = API()
        farm = Farm(api, "wait=1s")
        await farm.node.start()
        api.schedules = False
        try:
            await farm.node.start_awaited()
        except EnvironmentUnfit as error:
            return str(error)
        finally:
            await farm.node.close()
        return ""

    assert "no Pod was started within 1 seconds" in run(work())
