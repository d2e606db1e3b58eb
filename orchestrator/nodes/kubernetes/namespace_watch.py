"""What happens to the Pods of executors in a namespace: one watch of Pods and one of events, for all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import msgspec

from orchestrator.nodes.kubernetes.cluster_api import APIRefusedError, APIUnreachableError, KubernetesClient
from orchestrator.nodes.kubernetes.job_manifest import SELECTOR
from orchestrator.nodes.kubernetes.pod_states import ClusterEvent, ObjectMeta, Pod
from platforms import debug, decoding
from platforms.errors import KanifoldError

_EVENTS: Final = 50
"""Events of a Job that are kept."""
_SERVER_SECONDS: Final = 300
"""Seconds after which the API is to end a watch, which then goes on by another request."""
_PAUSES: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds before a request is made again that has failed; the last one from then on."""


class _Listed(msgspec.Struct, frozen=True):
    metadata: ObjectMeta = ObjectMeta()
    items: tuple[Pod, ...] = ()


class _Changed(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw = msgspec.Raw(b"{}")


_LISTED: Final = msgspec.json.Decoder(_Listed)
_CHANGED: Final = msgspec.json.Decoder(_Changed)
_POD: Final = msgspec.json.Decoder(Pod)
_EVENT: Final = msgspec.json.Decoder(ClusterEvent)


class _HeadOfList(msgspec.Struct, frozen=True):
    metadata: ObjectMeta = ObjectMeta()


_HEAD: Final = msgspec.json.Decoder(_HeadOfList)


class JobView:
    """A Job as far as it is known: its Pod and the events of both."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._uid = ""
        self.pod: Pod | None = None
        self.had_pod = False
        """Whether there was one, which may be gone."""
        self.events: list[ClusterEvent] = []
        self._changed = asyncio.Event()

    def copy(self) -> JobView:
        """Return another view with what is known now."""
        found = JobView(self.name)
        found._uid, found.pod, found.had_pod, found.events = self._uid, self.pod, self.had_pod, self.events
        return found

    def limit(self, uid: str) -> None:
        """Take notice only of the Pod of the Job ``uid``; "" if that is not known.

        Pods of another one of the same name may take their time to end after its deletion.
        """
        self._uid = uid
        if self.pod is not None and not self.is_of(self.pod):
            self.pod, self.had_pod = None, False

    def is_of(self, pod: Pod) -> bool:
        """Whether ``pod``, whose Job has the name of this one, is its Pod."""
        return not self._uid or not pod.job_uid or pod.job_uid == self._uid

    def changed(self, _: object = None) -> None:
        """Wake who waits for a change."""
        self._changed.set()

    async def wait(self, seconds: float) -> None:
        """Wait for a change, ``seconds`` at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()


class NamespaceWatch:
    """The watches of the namespace of ``client``; they begin with the first Job.

    ``ended`` is called when a Pod is gone, or nothing runs in it any more.
    """

    def __init__(self, client: KubernetesClient, ended: Callable[[], object]) -> None:
        self._client = client
        self._ended = ended
        self._views: dict[str, list[JobView]] = {}
        self._pods: dict[str, Pod] = {}
        """All Pods of executors, by name."""
        self._tasks: list[asyncio.Task[None]] = []
        self.failed: APIRefusedError | KanifoldError | None = None
        """Why Pods cannot be watched."""
        self.events_denied = False

    def pods(self) -> int:
        """Return how many Pods of executors count for a quota of Pods."""
        return sum(not each.is_terminal for each in self._pods.values())

    def add(self, name: str) -> JobView:
        """Return a view of the Job ``name``, from now on."""
        view = JobView(name)
        left = [each for each in self._pods.values() if each.job == name]  # of a Job that was left behind
        view.pod = next((each for each in left if each.metadata.deletion_timestamp is None), left[0] if left else None)
        view.had_pod = view.pod is not None
        self._views.setdefault(name, []).append(view)
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._watch_pods()), asyncio.create_task(self._watch_events())]
        return view

    def follow(self, view: JobView) -> JobView:
        """Return another view of what ``view`` shows, from now on."""
        found = view.copy()
        self._views.setdefault(view.name, []).append(found)
        return found

    def remove(self, view: JobView) -> None:
        """Forget ``view``."""
        views = self._views.get(view.name, [])
        if view in views:
            views.remove(view)
        if not views:
            self._views.pop(view.name, None)

    async def close(self) -> None:
        """End the watches."""
        for each in self._tasks:
            each.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch_pods(self) -> None:
        path = f"/api/v1/namespaces/{self._client.namespace}/pods"
        failures = 0
        while True:
            try:
                listed = decoding.decode(_LISTED, await self._client.get(path, {"labelSelector": SELECTOR}))
                self._know(listed.items)
                failures, self.failed = 0, None
                await self._follow_pods(path, listed.metadata.resource_version)
            except APIRefusedError as error:
                if error.code in (401, 403, 404):
                    self._fail(error)
            except KanifoldError as error:  # there are no credentials any more
                self._fail(error)
            except (APIUnreachableError, msgspec.DecodeError) as error:
                debug.log("watch ends", why=str(error))
            await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
            failures += 1

    async def _follow_pods(self, path: str, version: str) -> None:
        """Take changes after ``version`` until the API has none of them any more."""
        while True:
            query = {
                "labelSelector": SELECTOR,
                "resourceVersion": version,
                "allowWatchBookmarks": "true",
                "timeoutSeconds": str(_SERVER_SECONDS),
            }
            async for line in self._client.watch(path, query):
                change = decoding.decode(_CHANGED, line)
                if change.type == "ERROR":
                    return
                pod = decoding.decode(_POD, change.object)
                version = pod.metadata.resource_version or version
                if change.type != "BOOKMARK":
                    self._take(pod, gone=change.type == "DELETED")

    def _know(self, pods: tuple[Pod, ...]) -> None:
        """Take a list of all Pods."""
        there = {each.metadata.uid for each in pods}
        self._pods = {each.metadata.name: each for each in pods}
        for views in self._views.values():
            for view in views:
                if view.pod is not None and view.pod.metadata.uid not in there:
                    view.pod = None
                    view.changed()
        for each in pods:
            self._take(each, gone=False)
        self._ended()

    def _take(self, pod: Pod, *, gone: bool) -> None:
        if gone:
            self._pods.pop(pod.metadata.name, None)
        else:
            self._pods[pod.metadata.name] = pod
        for view in self._views.get(pod.job, ()):
            if not view.is_of(pod):
                continue
            if gone and view.pod is not None and view.pod.metadata.uid == pod.metadata.uid:
                view.pod = pod if pod.is_over else None
            elif not gone:
                view.pod = pod
            view.had_pod = True
            view.changed()
        if gone or pod.is_terminal:
            self._ended()

    def _fail(self, error: APIRefusedError | KanifoldError) -> None:
        self.failed = error
        for views in self._views.values():
            for view in views:
                view.changed()

    async def _watch_events(self) -> None:
        path = f"/api/v1/namespaces/{self._client.namespace}/events"
        failures = 0
        while True:
            try:
                head = decoding.decode(_HEAD, await self._client.get(path, {"limit": "1"}))
                failures = 0
                await self._follow_events(path, head.metadata.resource_version)
            except APIRefusedError as error:
                if error.code == 403:  # less is told
                    self.events_denied = True
                    return
            except (APIUnreachableError, KanifoldError, msgspec.DecodeError) as error:
                debug.log("watch ends", why=str(error))
            await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
            failures += 1

    async def _follow_events(self, path: str, version: str) -> None:
        while True:
            query = {"resourceVersion": version, "timeoutSeconds": str(_SERVER_SECONDS)}
            async for line in self._client.watch(path, query):
                change = decoding.decode(_CHANGED, line)
                if change.type == "ERROR":
                    return
                event = decoding.decode(_EVENT, change.object)
                version = event.metadata.resource_version or version
                if change.type != "DELETED":
                    self._tell(event.shortened())

    def _tell(self, event: ClusterEvent) -> None:
        name = event.involved_object.name
        job = name if event.involved_object.kind == "Job" else name.rpartition("-")[0]  # a Pod's has a random suffix
        for view in self._views.get(job, ()):
            view.events = [*view.events[1 - _EVENTS :], event]
            view.changed()
